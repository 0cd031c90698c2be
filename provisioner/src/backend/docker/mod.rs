//! Instances as containers of a Compose service, by the Docker Engine's own API.
//!
//! Containers are cloned from one that Compose made, with its labels, so that Compose sees its own; the number is theirs alone and
//! an owner label is ours. `docker compose up` sets the scale back to what its file says: the next poll counts, and
//! sets it right again. Everything that must be remembered is in the engine: a container that is told to leave is
//! renamed first, so that another provisioner counts it as leaving too.

mod api;
mod clone;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use natsway_boot::Clock;
use tracing::{info, warn};

use super::{Backend, BackendError, Instance, InstanceState};
use api::{Container, Engine};

/// The owner label of containers that we made.
pub const OWNER: &str = "io.natsway.provisioner";

/// What the name of a container that leaves ends with.
const LEAVING: &str = "-natsway-leaving";

/// What a Docker backend is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerRules {
    /// The engine's socket.
    pub socket: PathBuf,
    /// The Compose project.
    pub project: String,
    /// The Compose service.
    pub service: String,
    /// How long a container takes until it works: it counts as starting until then.
    pub ready_after: Duration,
    /// How long one may take to leave after its stop signal; then the engine kills it.
    pub stop_deadline: Duration,
}

/// Starts and stops containers.
pub struct Docker {
    rules: DockerRules,
    engine: Engine,
    clock: Clock,
}

impl Docker {
    /// A backend of the engine behind a socket; nothing is asked yet.
    pub fn new(rules: DockerRules) -> Docker {
        Docker { engine: Engine::new(rules.socket.clone()), rules, clock: Clock::start() }
    }

    fn failed(&self, error: impl ToString) -> BackendError {
        let DockerRules { project, service, socket, .. } = &self.rules;
        BackendError::new(format!("service {service} of {project} at {}", socket.display()), error)
    }

    async fn list(&self) -> Result<Vec<Container>, BackendError> {
        let containers = self.engine.containers(&self.rules.project, &self.rules.service).await;
        let containers = containers.map_err(|error| self.failed(error))?;
        Ok(containers.into_iter().filter(|container| !container.is_one_off()).collect())
    }

    async fn survey(&mut self) -> Result<Vec<Instance>, BackendError> {
        let now_ms = self.clock.unix_ms_at(Instant::now());
        let mut instances = Vec::new();
        for container in self.list().await? {
            if !container.is_running() {
                self.clear(&container).await;
                continue;
            }
            let since_ms = container.created_s * 1_000;
            let age = Duration::from_millis(now_ms.saturating_sub(since_ms));
            let state = if container.is_leaving() {
                InstanceState::Stopping
            } else if age < self.rules.ready_after {
                InstanceState::Starting
            } else {
                InstanceState::Ready
            };
            instances.push(Instance { id: container.id, state, since_ms });
        }
        Ok(instances)
    }

    /// Removes what we made and has ended; what Compose made is Compose's to remove.
    async fn clear(&self, container: &Container) {
        if container.is_ours() && container.has_ended() {
            match self.engine.remove(&container.id).await {
                Ok(()) => info!(container = %container.name(), "container removed"),
                Err(error) => warn!(container = %container.name(), %error, "container not removed"),
            }
        }
    }

    async fn launch(&mut self) -> Result<(), BackendError> {
        let containers = self.list().await?;
        let is_template = |container: &&Container| !container.is_leaving();
        let running = containers.iter().filter(|container| container.is_running()).find(is_template);
        let Some(template) = running.or_else(|| containers.iter().find(is_template)) else {
            return Err(self.failed("it has no container to clone: `docker compose up` it once"));
        };
        let started = async {
            let template = self.engine.inspect(&template.id).await?;
            let number = clone::next_number(&containers);
            let DockerRules { project, service, .. } = &self.rules;
            let name = format!("{project}-{service}-{number}");
            let id = self.engine.create(&name, &clone::of(&template, number)).await?;
            self.engine.start(&id).await?;
            info!(container = %name, "container started");
            Ok::<(), String>(())
        };
        started.await.map_err(|error| self.failed(error))
    }

    async fn tell_to_stop(&mut self, id: &str) -> Result<(), BackendError> {
        let containers = self.list().await?;
        let Some(container) = containers.iter().find(|container| container.id == id) else { return Ok(()) };
        if !container.is_leaving() {
            let name = format!("{}{LEAVING}", container.name());
            self.engine.rename(id, &name).await.map_err(|error| self.failed(error))?;
        }
        info!(container = %container.name(), "container told to stop");
        // The engine answers when it has stopped, and goes on when nobody waits for that.
        let (engine, id, limit) = (self.engine.clone(), id.to_owned(), self.rules.stop_deadline);
        tokio::spawn(async move {
            if let Err(error) = engine.stop(&id, limit).await {
                warn!(%id, %error, "container not stopped");
            }
        });
        Ok(())
    }
}

impl Container {
    fn is_leaving(&self) -> bool {
        self.name().ends_with(LEAVING)
    }

    fn is_ours(&self) -> bool {
        self.labels.contains_key(OWNER)
    }
}

impl Backend for Docker {
    fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
        self.survey().boxed()
    }

    fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.launch().boxed()
    }

    fn stop<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        self.tell_to_stop(id).boxed()
    }
}
