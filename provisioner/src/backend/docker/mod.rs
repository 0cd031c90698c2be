//! Instances as containers of a Compose service, by the Docker Engine's own API.
//!
//! Containers are cloned from one that Compose made, with its labels, so that Compose sees its own;
//! the number is theirs alone and an owner label is ours. `docker compose up` sets the scale back
//! to what its file says: the next poll counts, and sets it right again. Everything that must be
//! remembered is in the engine: a container that is told to leave is renamed first, so that another
//! provisioner counts it as leaving too, and stops it if that was not done.

mod api;
mod clone;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use natsway_boot::Clock;
use tracing::{info, warn};

use super::{Backend, BackendError, Instance, InstanceState};
use api::{Container, Engine};
use clone::ContainerSpec;

/// The owner label of containers that we made.
pub const OWNER: &str = "io.natsway.provisioner";

/// What the name of a container that leaves ends with.
const LEAVING: &str = "-natsway-leaving";

/// A container that was made and not started after this never will be: whoever made it is gone.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

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
    /// The containers whose stop is under way here.
    stopping: Arc<Mutex<HashSet<String>>>,
}

impl Docker {
    /// A backend of the engine behind a socket; nothing is asked yet.
    pub fn new(rules: DockerRules) -> Self {
        Self {
            engine: Engine::new(rules.socket.clone()),
            rules,
            clock: Clock::start(),
            stopping: Arc::default(),
        }
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
                self.clear(now_ms, &container).await;
                continue;
            }
            if container.is_leaving() {
                // Whoever renamed it may have died before it was told.
                self.stop_once(&container.id);
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
            let is_frozen = container.is_paused();
            instances.push(Instance { is_frozen, ..Instance::new(container.id, state, since_ms) });
        }
        Ok(instances)
    }

    /// Removes what we made and has ended, or never began. What Compose made is Compose's to
    /// remove; it gets its name back, by which it is started again.
    async fn clear(&self, now_ms: u64, container: &Container) {
        let age = Duration::from_millis(now_ms.saturating_sub(container.created_s * 1_000));
        let is_over = container.has_ended() || container.never_began() && age > BEGINS_WITHIN;
        let done = if container.is_ours() && is_over {
            self.engine.remove(&container.id).await
        } else if container.is_leaving() && container.has_ended() {
            self.engine.rename(&container.id, container.name().trim_end_matches(LEAVING)).await
        } else {
            return;
        };
        match done {
            Ok(()) => info!(container = %container.name(), "container cleared away"),
            Err(error) => {
                warn!(container = %container.name(), %error, "container not cleared away")
            }
        }
    }

    async fn launch(&mut self) -> Result<(), BackendError> {
        let containers = self.list().await?;
        let is_template = |container: &&Container| !container.is_leaving();
        let running =
            containers.iter().filter(|container| container.is_running()).find(is_template);
        let Some(template) = running.or_else(|| containers.iter().find(is_template)) else {
            return Err(self.failed("it has no container to clone: `docker compose up` it once"));
        };
        let started = async {
            let template = self.engine.inspect(&template.id).await?;
            let number = clone::next_number(&containers);
            let DockerRules { project, service, .. } = &self.rules;
            let name = format!("{project}-{service}-{number}");
            let twin = clone::of(&template, number);
            let id = self.engine.create(&name, &twin.config).await?;
            if let Err(error) = self.begin(&id, &twin).await {
                // Otherwise each try would leave one behind.
                let removed = self.engine.remove(&id).await;
                return Err(removed
                    .err()
                    .map_or(error.clone(), |also| format!("{error}; then {also}")));
            }
            info!(container = %name, "container started");
            Ok::<(), String>(())
        };
        started.await.map_err(|error| self.failed(error))
    }

    /// Puts a container that was just made into its networks and starts it.
    async fn begin(&self, id: &str, twin: &ContainerSpec) -> Result<(), String> {
        for (network, endpoint) in &twin.further_networks {
            self.engine.connect(network, id, endpoint).await?;
        }
        self.engine.start(id).await
    }

    async fn tell_to_stop(&mut self, id: &str) -> Result<(), BackendError> {
        let containers = self.list().await?;
        let Some(container) = containers.iter().find(|container| container.id == id) else {
            return Ok(());
        };
        if !container.is_leaving() {
            let name = format!("{}{LEAVING}", container.name());
            self.engine.rename(id, &name).await.map_err(|error| self.failed(error))?;
        }
        info!(container = %container.name(), "container told to stop");
        self.stop_once(id);
        Ok(())
    }

    /// Has a container stopped, unless that is under way. The engine answers when it has stopped,
    /// and goes on when nobody waits for that; what it could not do is tried again at the next
    /// poll.
    fn stop_once(&self, id: &str) {
        let stopping = Arc::clone(&self.stopping);
        if !stopping.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned()) {
            return;
        }
        let (engine, id, limit) = (self.engine.clone(), id.to_owned(), self.rules.stop_deadline);
        tokio::spawn(async move {
            if let Err(error) = engine.stop(&id, limit).await {
                warn!(%id, %error, "container not stopped");
            }
            stopping.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
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
