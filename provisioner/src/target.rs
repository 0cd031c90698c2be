//! One target at work: look, decide, set.

use std::time::Duration;

use async_nats::Client;
use natsway_boot::Clock;
use tracing::{info, warn};

use crate::backend::directives::Directives;
use crate::backend::docker::{Docker, DockerRules};
use crate::backend::processes::{ProcessRules, Processes};
use crate::backend::{self, Backend, BackendError, Instance};
use crate::config::{BackendDocument, SignalDocument, Target as TargetConfig};
use crate::controller::Controller;
use crate::decision::{Course, Decision};
use crate::restarts::Restarts;
use crate::sample::{Fault, Fleet};
use crate::signal::{ConsumerSignal, MonitoringSignal, ServicesSignal, Signal, TallySignal, Via};

/// How long a backend may take for one look or one change; what takes longer is tried again.
const BACKEND_WITHIN: Duration = Duration::from_secs(20);

/// A signal, a controller and a backend.
pub struct Target {
    name: String,
    signal: Box<dyn Signal>,
    controller: Controller,
    backend: Box<dyn Backend>,
    restarts: Restarts,
    clock: Clock,
    last_fleet: Fleet,
    is_frozen: bool,
    /// What was tried last and why it was not done, so that the log says it once.
    refused: Option<(u32, u32, String)>,
}

impl Target {
    /// What a configuration describes.
    ///
    /// # Errors
    /// [`BackendError`] when the backend cannot be used now.
    pub fn open(client: &Client, config: &TargetConfig) -> Result<Target, BackendError> {
        let controller = Controller::new(config.name(), config.rules(), config.policies());
        Ok(Target::new(
            controller,
            open_signal(client, config.signal()),
            open_backend(client, config.backend())?,
        ))
    }

    /// What is told of a target that cannot be opened now.
    pub fn not_opened(config: &TargetConfig, error: &BackendError) -> Decision {
        let controller = Controller::new(config.name(), config.rules(), Vec::new());
        let fault = Fault::Missing(format!("the backend cannot be used: {error}"));
        controller.freeze(crate::signal::now_ms(&Clock::start()), Fleet::default(), fault)
    }

    /// A target of parts of one's own.
    pub fn new(controller: Controller, signal: Box<dyn Signal>, backend: Box<dyn Backend>) -> Target {
        let name = controller.target().to_owned();
        Target {
            name,
            signal,
            controller,
            backend,
            restarts: Restarts::default(),
            clock: Clock::start(),
            last_fleet: Fleet::default(),
            is_frozen: false,
            refused: None,
        }
    }

    /// Takes other rules and policies.
    pub fn reload(&mut self, config: &TargetConfig) {
        self.controller.reload(config.rules(), config.policies());
    }

    /// One poll: looks, decides, and sets what was decided. The decision says what was meant, and what stood in the way, which is
    /// tried again: starts ever more rarely, the rest at the next poll.
    pub async fn step(&mut self) -> Decision {
        let instances = match within(self.backend.instances()).await {
            Ok(instances) => instances,
            Err(error) => {
                let fault = Fault::Missing(format!("the backend does not say what runs: {error}"));
                let decision = self.controller.freeze(self.now_ms(), self.last_fleet, fault);
                self.note_freezing(&decision);
                return decision;
            }
        };
        self.note_restarts(&instances);
        let fleet = backend::fleet(&instances);
        self.last_fleet = fleet;
        let look = self.signal.look().await;
        let mut decision = self.controller.decide(self.now_ms(), fleet, look);
        self.note_freezing(&decision);
        if decision.to != decision.from {
            decision.obstacle = self.carry_out(&decision).await;
        }
        decision
    }

    /// Says once that nothing can be decided, and once that it can again.
    fn note_freezing(&mut self, decision: &Decision) {
        let is_frozen = decision.course() == Course::Frozen;
        match &decision.frozen {
            // Every beginning is so.
            Some(Fault::WarmingUp) => return,
            Some(fault) if !self.is_frozen => {
                warn!(target_name = %self.name, %fault, "nothing can be decided, as many as were decided on stay");
            }
            None if self.is_frozen => info!(target_name = %self.name, "decided again"),
            _ => {}
        }
        self.is_frozen = is_frozen;
    }

    fn note_restarts(&mut self, instances: &[Instance]) {
        let now_ms = self.now_ms();
        if let Some(failures) = self.restarts.look(now_ms, instances) {
            warn!(target_name = %self.name, reason = %failures.describe(now_ms, None), "not started for now");
        }
    }

    /// Starts or stops instances. Gives what stood in the way.
    async fn carry_out(&mut self, decision: &Decision) -> Option<String> {
        let Decision { from, to, .. } = *decision;
        let now_ms = self.now_ms();
        if let Some(failures) = self.restarts.pause(now_ms).filter(|_| to > from) {
            let error = self.refused.as_ref().map(|refused| refused.2.as_str());
            return Some(failures.describe(now_ms, error));
        }
        let refused = self.refused.take();
        let is_news =
            refused.as_ref().is_none_or(|(last_from, last_to, _)| (from, to) != (*last_from, *last_to));
        if is_news {
            let reason = decision.reason();
            info!(target_name = %self.name, from, to, course = %decision.course(), %reason, "scaling");
        }
        match within(backend::set(&mut *self.backend, to)).await {
            Ok(()) => {
                self.restarts.changed(from, to);
                None
            }
            Err(error) => {
                let error = error.to_string();
                if refused.is_none_or(|(.., last)| last != error) {
                    warn!(target_name = %self.name, %error, "not scaled, it will be tried again");
                }
                self.refused = Some((from, to, error.clone()));
                match to > from {
                    true => Some(self.restarts.refused(now_ms).describe(now_ms, Some(&error))),
                    false => Some(error),
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        crate::signal::now_ms(&self.clock)
    }
}

async fn within<T>(work: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
    match tokio::time::timeout(BACKEND_WITHIN, work).await {
        Ok(done) => done,
        Err(_) => Err(BackendError::new("backend", format!("not done within {BACKEND_WITHIN:?}"))),
    }
}

fn open_signal(client: &Client, document: &SignalDocument) -> Box<dyn Signal> {
    let client = client.clone();
    match document {
        SignalDocument::Consumer { stream, consumer } => {
            Box::new(ConsumerSignal::new(client, stream.as_str(), consumer.as_str()))
        }
        SignalDocument::Tally { stream, consumer } => {
            Box::new(TallySignal::new(client, stream.as_str(), consumer.as_str()))
        }
        SignalDocument::Services { service, route, version } => {
            let via = route.clone().zip(version.clone()).map(|(route, version)| Via { route, version });
            Box::new(ServicesSignal::new(client, service.as_str(), via))
        }
        SignalDocument::Monitoring { servers, subject, queue_group } => {
            let servers = servers.iter().filter_map(|server| server.parse().ok()).collect();
            Box::new(MonitoringSignal::new(servers, subject.as_str(), queue_group.as_str()))
        }
    }
}

fn open_backend(client: &Client, document: &BackendDocument) -> Result<Box<dyn Backend>, BackendError> {
    Ok(match document.clone() {
        BackendDocument::Processes { command, environment, state, ready_after, stop_deadline } => {
            let environment = environment.into_iter().collect();
            Box::new(Processes::open(ProcessRules {
                command,
                environment,
                state,
                ready_after,
                stop_deadline,
            })?)
        }
        BackendDocument::Directives { subject } => {
            let subject =
                subject.parse().map_err(|error| BackendError::new(format!("subject {subject:?}"), error))?;
            Box::new(Directives::new(client.clone(), subject))
        }
        BackendDocument::Docker { socket, project, service, ready_after, stop_deadline } => {
            Box::new(Docker::new(DockerRules { socket, project, service, ready_after, stop_deadline }))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, ready};

    use super::*;
    use crate::controller::ControllerRules;
    use crate::sample::Sample;
    use crate::scale::ScaleRules;
    use crate::window::WindowRules;

    /// A backend that starts nothing, and counts how often it was to.
    struct Refusing(Arc<AtomicUsize>);

    impl Backend for Refusing {
        fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
            ready(Ok(Vec::new())).boxed()
        }

        fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            ready(Err(BackendError::new("create", "403 Forbidden"))).boxed()
        }

        fn stop<'a>(&'a mut self, _: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
            ready(Ok(())).boxed()
        }
    }

    struct Silent;

    impl Signal for Silent {
        fn look(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
            ready(Err(Fault::Missing("nobody".to_owned()))).boxed()
        }
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_not_tried_at_every_poll_and_the_reason_is_told_at_each() {
        let rules = ControllerRules {
            window: WindowRules { span_ms: 5_000, stale_after_ms: 5_000 },
            lead_s: 0.0,
            service_rate: None,
            concurrency: 1.0,
            prefetch: 0,
            tolerance: 0.0,
            scale: ScaleRules::between(2, 4),
        };
        let tries = Arc::<AtomicUsize>::default();
        let controller = Controller::new("orders", rules, Vec::new());
        let mut target = Target::new(controller, Box::new(Silent), Box::new(Refusing(Arc::clone(&tries))));
        for _ in 0..20 {
            let obstacle = target.step().await.obstacle.expect("it cannot be started");
            assert!(obstacle.starts_with("not started: create: 403 Forbidden, "), "{obstacle}");
            assert!(obstacle.contains("the next start is in"), "{obstacle}");
        }
        let tries = tries.load(Ordering::Relaxed);
        assert!(tries <= 3, "{tries} tries in 20 polls");
    }
}
