//! One target at work: look, decide, set.

use std::time::Duration;

use async_nats::Client;
use natsway_boot::Clock;
use tracing::{info, warn};

use crate::backend::directives::Directives;
use crate::backend::docker::{Docker, DockerRules};
use crate::backend::processes::{ProcessRules, Processes};
use crate::backend::{self, Backend, BackendError, Instance, InstanceState};
use crate::config::{BackendDocument, SignalDocument, Target as TargetConfig};
use crate::controller::Controller;
use crate::decision::{Decision, Direction};
use crate::renewal::{Renewal, Step};
use crate::restarts::Restarts;
use crate::roll_call::{self, Attendance, RollCall, Standing};
use crate::sample::{Fault, Fleet};
use crate::scale::Limit;
use crate::signal::{ConsumerSignal, MonitoringSignal, ServicesSignal, Signal, TallySignal, Via};

/// How long a backend may take for one poll or one change; what takes longer is tried again.
const BACKEND_WITHIN: Duration = Duration::from_secs(20);

/// Of so many instances one is stopped at a time because it does not answer; of fewer, one.
const SILENT_SHARE: usize = 4;

/// A signal, a controller and a backend.
pub struct Target {
    name: String,
    signal: Box<dyn Signal>,
    controller: Controller,
    backend: Box<dyn Backend>,
    restarts: Restarts,
    roll: RollCall,
    /// Looks in a row without an answer after which an instance counts no more.
    silent_after: u32,
    /// The bounds, for renewals.
    bounds: (u32, u32),
    /// Whether one more was started than was decided on, in the place of one that is outdated.
    has_spare: bool,
    /// Now, in milliseconds since the Unix epoch.
    now: Box<dyn Fn() -> u64 + Send>,
    last_fleet: Fleet,
    is_frozen: bool,
    /// Those that count no more, as the log has said it.
    silent: Vec<String>,
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
        let backend = open_backend(client, config.backend())?;
        let mut target = Target::new(controller, open_signal(client, config.signal()), backend);
        target.set_limits(config);
        Ok(target)
    }

    fn set_limits(&mut self, config: &TargetConfig) {
        let scale = config.rules().scale;
        (self.bounds, self.silent_after) = ((scale.min, scale.max), config.silent_after());
    }

    /// What is told of a target that cannot be opened now.
    pub fn not_opened(config: &TargetConfig, error: &BackendError) -> Decision {
        let controller = Controller::new(config.name(), config.rules(), Vec::new());
        let fault = Fault::Missing(format!("the backend cannot be used: {error}"));
        controller.freeze(crate::signal::now_ms(&Clock::start()), Fleet::default(), fault)
    }

    /// A target of parts of one's own. Nobody is missed, and nothing is renewed.
    pub fn new(
        controller: Controller,
        signal: Box<dyn Signal>,
        backend: Box<dyn Backend>,
    ) -> Target {
        let name = controller.target().to_owned();
        let clock = Clock::start();
        Target {
            name,
            signal,
            controller,
            backend,
            restarts: Restarts::default(),
            roll: RollCall::default(),
            silent_after: 0,
            bounds: (0, 0),
            has_spare: false,
            now: Box::new(move || crate::signal::now_ms(&clock)),
            last_fleet: Fleet::default(),
            is_frozen: false,
            silent: Vec::new(),
            refused: None,
        }
    }

    /// Takes other rules and policies.
    pub fn reload(&mut self, config: &TargetConfig) {
        self.controller.reload(config.rules(), config.policies());
        self.set_limits(config);
    }

    /// One poll: looks, decides, and sets what was decided. The decision says what was meant, and
    /// what stood in the way, which is tried again: starts ever more rarely, the rest at the next
    /// poll.
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
        let poll = self.signal.poll().await;
        let now_ms = self.now_ms();
        let answers = self.signal.answers();
        let is_asking = answers.is_some();
        let (standings, attendance) =
            self.roll.take(now_ms, &instances, answers, self.silent_after);
        let known = Known { instances, standings, attendance };
        let present = known.fleet();
        // The decision is about those that are meant to stay.
        let mut fleet = present;
        if self.has_spare {
            let counted = if fleet.starting > 0 { &mut fleet.starting } else { &mut fleet.ready };
            self.has_spare = *counted > 0;
            *counted = counted.saturating_sub(1);
        }
        self.last_fleet = fleet;
        let poll = match poll {
            Err(_) if is_asking && known.nobody_answers() => {
                Err(Fault::Silence { instances: fleet.silent })
            }
            poll => poll,
        };
        let mut decision = self.controller.decide(now_ms, fleet, poll);
        decision.attendance =
            (is_asking || !known.attendance.silent.is_empty()).then(|| known.attendance.clone());
        self.note_freezing(&decision);
        self.note_silence(&known);
        if decision.to != decision.from {
            self.carry_out(&mut decision, &known).await;
        } else if decision.frozen.is_none() {
            self.renew(&mut decision, &known, present).await;
        }
        self.stop_silent(&mut decision, &known).await;
        decision
    }

    /// Stops instances that count no more, while others answer or it is known that they are frozen.
    /// A few at a time, and none while their successors start: what makes many silent may pass.
    async fn stop_silent(&mut self, decision: &mut Decision, known: &Known) {
        if !self.backend.stops_whom_it_is_told() || known.fleet().starting > 0 {
            return;
        }
        let somebody = known.attendance.somebody_answers();
        let most = (known.instances.len() / SILENT_SHARE).max(1);
        let may_go = known.attendance.silent.iter().filter(|absent| somebody || absent.is_frozen);
        let silent: Vec<String> = may_go.take(most).map(|absent| absent.instance.clone()).collect();
        match within(backend::change(&mut *self.backend, 0, &silent)).await {
            Ok(()) => self.restarts.changed(silent.len() as u32, 0),
            Err(error) => {
                decision.obstacle.get_or_insert(error.to_string());
            }
        }
    }

    /// Takes the next step in replacing instances that were started by other rules.
    async fn renew(&mut self, decision: &mut Decision, known: &Known, present: Fleet) {
        let outdated: Vec<String> = known.outdated();
        if outdated.is_empty() {
            self.has_spare = false;
            return;
        }
        let now_ms = self.now_ms();
        let next = Renewal {
            outdated: outdated.len() as u32,
            present: present.present(),
            starting: present.starting,
            wanted: decision.to,
            min: self.bounds.0,
            max: self.bounds.1,
            has_spare: self.has_spare,
            is_paused: self.restarts.pause(now_ms).is_some(),
        };
        decision.renewal = Some(format!(
            "{} of {} instances were started by another command or environment; they are replaced \
             one at a time",
            outdated.len(),
            present.present(),
        ));
        let done = match next.next() {
            Step::Wait => return,
            Step::Start => within(backend::change(&mut *self.backend, 1, &[])).await,
            Step::Stop => within(backend::change(&mut *self.backend, 0, &outdated[..1])).await,
        };
        match (done, next.next()) {
            (Ok(()), Step::Start) => {
                self.restarts.changed(0, 1);
                self.has_spare = true;
            }
            (Ok(()), _) => {
                info!(target_name = %self.name, left = outdated.len() - 1, "outdated instance told to stop");
                self.restarts.changed(1, 0);
                self.has_spare = false;
            }
            (Err(error), step) => {
                let error = error.to_string();
                decision.obstacle = Some(match step {
                    Step::Start => self.restarts.refused(now_ms).describe(now_ms, Some(&error)),
                    _ => error,
                });
            }
        }
    }

    /// Says once of each instance that it counts no more.
    fn note_silence(&mut self, known: &Known) {
        let silent: Vec<String> =
            known.attendance.silent.iter().map(|absent| absent.instance.clone()).collect();
        for instance in silent.iter().filter(|id| !self.silent.contains(id)) {
            warn!(target_name = %self.name, %instance, polls = self.silent_after, "does not answer, counts no more");
        }
        self.silent = silent;
    }

    /// Says once that nothing can be decided, and once that it can again.
    fn note_freezing(&mut self, decision: &Decision) {
        let is_frozen = decision.direction() == Direction::Frozen;
        match &decision.frozen {
            // Every beginning is so.
            Some(Fault::WarmingUp) => return,
            Some(fault) if !self.is_frozen => {
                warn!(target_name = %self.name, %fault, "nothing can be decided, as many as were \
                                                         decided on stay");
            }
            None if self.is_frozen => info!(target_name = %self.name, "decided again"),
            _ => {}
        }
        self.is_frozen = is_frozen;
    }

    fn note_restarts(&mut self, instances: &[Instance]) {
        let now_ms = self.now_ms();
        if let Some(failures) = self.restarts.observe(now_ms, instances) {
            warn!(target_name = %self.name, reason = %failures.describe(now_ms, None), "not started for now");
        }
    }

    /// StartupEstimator or stops instances, and notes what stood in the way.
    async fn carry_out(&mut self, decision: &mut Decision, known: &Known) {
        let Decision { from, to, .. } = *decision;
        let now_ms = self.now_ms();
        if let Some(failures) = self.restarts.pause(now_ms).filter(|_| to > from) {
            let error = self.refused.as_ref().map(|refused| refused.2.as_str());
            decision.obstacle = Some(failures.describe(now_ms, error));
            return;
        }
        let refused = self.refused.take();
        let is_news = refused
            .as_ref()
            .is_none_or(|(last_from, last_to, _)| (from, to) != (*last_from, *last_to));
        if is_news {
            let reason = decision.reason();
            info!(target_name = %self.name, from, to, direction = %decision.direction(), %reason, "scaling");
        }
        let spare = u32::from(self.has_spare);
        let stop = roll_call::surplus(&known.instances, &known.standings, to.saturating_add(spare));
        match within(backend::change(&mut *self.backend, to.saturating_sub(from), &stop)).await {
            Ok(()) => self.restarts.changed(from, to),
            Err(error) if error.is_floor() => {
                // As few as this backend can do is as few as there shall be.
                decision.limits.push(Limit {
                    rule: "backend".to_owned(),
                    from: to,
                    to: from,
                    because: error.to_string(),
                });
                self.refused = Some((from, to, error.to_string()));
                decision.to = from;
            }
            Err(error) => {
                let error = error.to_string();
                if refused.is_none_or(|(.., last)| last != error) {
                    warn!(target_name = %self.name, %error, "not scaled, it will be tried again");
                }
                self.refused = Some((from, to, error.clone()));
                decision.obstacle = Some(match to > from {
                    true => self.restarts.refused(now_ms).describe(now_ms, Some(&error)),
                    false => error,
                });
            }
        }
    }

    fn now_ms(&self) -> u64 {
        (self.now)()
    }
}

/// What is known of the instances at one poll.
struct Known {
    instances: Vec<Instance>,
    standings: Vec<Standing>,
    attendance: Attendance,
}

impl Known {
    fn fleet(&self) -> Fleet {
        roll_call::fleet(&self.instances, &self.standings)
    }

    /// Whether some have ceased to answer, and nobody else answers.
    fn nobody_answers(&self) -> bool {
        !self.attendance.silent.is_empty() && self.attendance.answers == 0
    }

    /// Those that were started by other rules, the oldest first.
    fn outdated(&self) -> Vec<String> {
        let is_outdated = |of: &&Instance| of.is_outdated && of.state != InstanceState::Stopping;
        let mut outdated: Vec<&Instance> = self.instances.iter().filter(is_outdated).collect();
        outdated.sort_by(|one, other| (one.since_ms, &one.id).cmp(&(other.since_ms, &other.id)));
        outdated.into_iter().map(|of| of.id.clone()).collect()
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
            let via =
                route.clone().zip(version.clone()).map(|(route, version)| Via { route, version });
            Box::new(ServicesSignal::new(client, service.as_str(), via))
        }
        SignalDocument::Monitoring { servers, subject, queue_group } => {
            let servers = servers.iter().filter_map(|server| server.parse().ok()).collect();
            Box::new(MonitoringSignal::new(servers, subject.as_str(), queue_group.as_str()))
        }
    }
}

fn open_backend(
    client: &Client,
    document: &BackendDocument,
) -> Result<Box<dyn Backend>, BackendError> {
    Ok(match document.clone() {
        BackendDocument::Processes {
            command,
            environment,
            inherit,
            state,
            ready_after,
            stop_deadline,
        } => {
            let environment = environment.into_iter().collect();
            Box::new(Processes::open(ProcessRules {
                command,
                environment,
                inherit,
                state,
                ready_after,
                stop_deadline,
            })?)
        }
        BackendDocument::Directives { subject } => {
            let subject = subject
                .parse()
                .map_err(|error| BackendError::new(format!("subject {subject:?}"), error))?;
            Box::new(Directives::new(client.clone(), subject))
        }
        BackendDocument::Docker { socket, project, service, ready_after, stop_deadline } => {
            Box::new(Docker::new(DockerRules {
                socket,
                project,
                service,
                ready_after,
                stop_deadline,
            }))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, ready};

    use super::*;
    use crate::controller::ControllerRules;
    use crate::policy::{Policy, Rate};
    use crate::roll_call::Answers;
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
        fn poll(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
            ready(Err(Fault::Missing("nobody".to_owned()))).boxed()
        }
    }

    fn rules() -> ControllerRules {
        ControllerRules {
            window: WindowRules { span_ms: 5_000, stale_after_ms: 5_000 },
            lead_s: 0.0,
            service_rate: None,
            concurrency: 1.0,
            slots: None,
            prefetch: 0,
            tolerance: 0.0,
            scale: ScaleRules::between(1, 4),
        }
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_not_tried_at_every_poll_and_the_reason_is_told_at_each() {
        let rules = ControllerRules { scale: ScaleRules::between(2, 4), ..rules() };
        let tries = Arc::<AtomicUsize>::default();
        let controller = Controller::new("orders", rules, Vec::new());
        let mut target =
            Target::new(controller, Box::new(Silent), Box::new(Refusing(Arc::clone(&tries))));
        for _ in 0..20 {
            let obstacle = target.step().await.obstacle.expect("it cannot be started");
            assert!(obstacle.starts_with("not started: create: 403 Forbidden, "), "{obstacle}");
            assert!(obstacle.contains("the next start is in"), "{obstacle}");
        }
        let tries = tries.load(Ordering::Relaxed);
        assert!(tries <= 3, "{tries} tries in 20 polls");
    }

    /// Workers by a virtual clock, of which some fall silent.
    #[derive(Default)]
    struct World {
        now_ms: u64,
        made: u64,
        workers: Vec<Worker>,
        /// Whether the broker passes on what it is given.
        is_heard: bool,
        per_second: u64,
        /// Broken promises.
        broken: Vec<String>,
    }

    struct Worker {
        id: String,
        since_ms: u64,
        is_silent: bool,
        /// When it will be gone, once it was told to stop.
        gone_ms: Option<u64>,
    }

    type Shared = Arc<Mutex<World>>;

    struct Workers(Shared);

    impl Backend for Workers {
        fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
            let mut world = self.0.lock().unwrap();
            let now_ms = world.now_ms;
            world.workers.retain(|worker| worker.gone_ms.is_none_or(|gone_ms| gone_ms > now_ms));
            let instance = |worker: &Worker| {
                let state = match worker.gone_ms {
                    Some(_) => InstanceState::Stopping,
                    None => InstanceState::Ready,
                };
                Instance::new(&worker.id, state, worker.since_ms)
            };
            let instances = world.workers.iter().map(instance).collect();
            ready(Ok(instances)).boxed()
        }

        fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
            let mut world = self.0.lock().unwrap();
            world.made += 1;
            let (id, since_ms) = (format!("w{}", world.made), world.now_ms);
            world.workers.push(Worker { id, since_ms, is_silent: false, gone_ms: None });
            ready(Ok(())).boxed()
        }

        fn stop<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
            let mut world = self.0.lock().unwrap();
            let now_ms = world.now_ms;
            let worker = world.workers.iter_mut().find(|worker| worker.id == id).unwrap();
            // One that is frozen is killed after its deadline.
            worker.gone_ms.get_or_insert(now_ms + if worker.is_silent { 5_000 } else { 500 });
            ready(Ok(())).boxed()
        }
    }

    struct Asked {
        world: Shared,
        arrived: u64,
        answers: Option<Answers>,
    }

    impl Signal for Asked {
        fn poll(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
            let world = self.world.lock().unwrap();
            let answers =
                world.workers.iter().filter(|worker| !worker.is_silent && worker.gone_ms.is_none());
            let answers: Vec<Vec<String>> = answers.map(|worker| vec![worker.id.clone()]).collect();
            self.arrived += world.per_second;
            let missing = !world.is_heard || answers.is_empty();
            self.answers = world.is_heard.then_some(Answers(answers));
            let (at_ms, arrived) = (world.now_ms, self.arrived);
            let poll = match missing {
                true => Err(Fault::Missing("no instance answers".to_owned())),
                false => Ok(Sample { at_ms, arrived, completed: arrived, ..Sample::default() }),
            };
            ready(poll).boxed()
        }

        fn answers(&self) -> Option<&Answers> {
            self.answers.as_ref()
        }
    }

    const BOUNDS: (u32, u32) = (2, 8);

    fn watched(world: &Shared) -> Target {
        let rules = ControllerRules {
            service_rate: Some(100.0),
            scale: ScaleRules { down_window_ms: 3_000, ..ScaleRules::between(BOUNDS.0, BOUNDS.1) },
            ..rules()
        };
        let policies: Vec<Box<dyn Policy>> = vec![Box::new(Rate { target_utilisation: 1.0 })];
        let controller = Controller::new("orders", rules, policies);
        let signal = Asked { world: Arc::clone(world), arrived: 0, answers: None };
        let mut target =
            Target::new(controller, Box::new(signal), Box::new(Workers(Arc::clone(world))));
        let clock = Arc::clone(world);
        target.now = Box::new(move || clock.lock().unwrap().now_ms);
        (target.silent_after, target.bounds) = (3, BOUNDS);
        target
    }

    /// One poll; notes when one that answers was stopped and one that does not stays.
    async fn poll(world: &Shared, target: &mut Target) -> Decision {
        let good = |world: &World| -> Vec<String> {
            let good =
                world.workers.iter().filter(|worker| !worker.is_silent && worker.gone_ms.is_none());
            good.map(|worker| worker.id.clone()).collect()
        };
        world.lock().unwrap().now_ms += 1_000;
        let before = good(&world.lock().unwrap());
        let decision = target.step().await;
        let mut world = world.lock().unwrap();
        let after = good(&world);
        let stopped = before.iter().any(|id| !after.contains(id));
        let known = decision.attendance.as_ref();
        let absent = known.into_iter().flat_map(|of| of.doubted.iter().chain(&of.silent));
        let spared: Vec<String> = absent
            .filter(|of| {
                world
                    .workers
                    .iter()
                    .any(|worker| worker.id == of.instance && worker.gone_ms.is_none())
            })
            // Silent ones are stopped a few at a time; those that are no capacity take nobody's
            // place.
            .filter(|of| known.is_some_and(|known| known.doubted.contains(of)))
            .map(|of| of.instance.clone())
            .collect();
        if world.is_heard && stopped && !spared.is_empty() {
            world.broken.push(format!("{spared:?} stay while others were stopped: {decision}"));
        }
        decision
    }

    #[tokio::test]
    async fn instances_fall_silent_and_wake_and_min_of_those_that_answer_are_always_brought_back() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let world = Shared::default();
            world.lock().unwrap().is_heard = true;
            let mut target = watched(&world);
            for _ in 0..rng.u32(10..120) {
                {
                    let mut world = world.lock().unwrap();
                    world.is_heard = rng.u32(0..12) > 0;
                    if rng.u32(0..6) == 0 {
                        world.per_second = rng.u64(0..900);
                    }
                    for worker in &mut world.workers {
                        let changes = rng.u32(0..if worker.is_silent { 10 } else { 25 }) == 0;
                        worker.is_silent ^= changes;
                    }
                }
                let decision = poll(&world, &mut target).await;
                assert!((BOUNDS.0..=BOUNDS.1).contains(&decision.to), "seed {seed}: {decision}");
            }
            // No more faults: what is silent stays so.
            world.lock().unwrap().is_heard = true;
            let mut last = None;
            for _ in 0..120 {
                last = Some(poll(&world, &mut target).await);
            }
            let last = last.unwrap();
            let world = world.lock().unwrap();
            assert_eq!(world.broken, [""; 0], "seed {seed}");
            let good =
                world.workers.iter().filter(|worker| !worker.is_silent && worker.gone_ms.is_none());
            let good = good.count() as u32;
            assert!(good >= BOUNDS.0 && good == last.to, "seed {seed}: {good} answer: {last}");
            assert!(
                world.workers.len() as u32 == good,
                "seed {seed}: none that is silent is left: {last}"
            );
        }
    }

    #[tokio::test]
    async fn where_all_fall_silent_others_are_started_once_and_none_is_stopped_until_one_answers() {
        let world = Shared::default();
        (world.lock().unwrap().is_heard, world.lock().unwrap().per_second) = (true, 550);
        let mut target = watched(&world);
        for _ in 0..10 {
            poll(&world, &mut target).await;
        }
        let silence = |is_silent| {
            world
                .lock()
                .unwrap()
                .workers
                .iter_mut()
                .for_each(|worker| worker.is_silent = is_silent);
        };
        let all = world.lock().unwrap().workers.len();
        assert!(all >= 5);
        silence(true);
        for _ in 0..50 {
            let decision = poll(&world, &mut target).await;
            // What is started meets the same fate: nobody hears anybody.
            silence(true);
            assert!(decision.frozen.is_some(), "{decision}");
        }
        let decision = poll(&world, &mut target).await;
        assert_eq!(world.lock().unwrap().workers.len(), all + BOUNDS.0 as usize, "{decision}");
        assert!(decision.to_string().contains("as nobody answers"), "{decision}");
        silence(false);
        for _ in 0..60 {
            poll(&world, &mut target).await;
        }
        let world = world.lock().unwrap();
        assert!(world.workers.iter().all(|worker| !worker.is_silent));
        assert!((BOUNDS.0..=BOUNDS.1).contains(&(world.workers.len() as u32)));
    }

    /// Two workers that are down to one set each.
    struct AtTheFloor;

    impl Backend for AtTheFloor {
        fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
            let instance = |id: &str| Instance::new(id, InstanceState::Ready, 0);
            ready(Ok(["a", "b"].map(instance).to_vec())).boxed()
        }

        fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
            ready(Ok(())).boxed()
        }

        fn stop<'a>(&'a mut self, _: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
            ready(Err(BackendError::floor("scale-in", "every worker is down to one set"))).boxed()
        }
    }

    #[tokio::test]
    async fn as_few_as_the_backend_can_do_are_no_obstacle() {
        let world = Shared::default();
        world.lock().unwrap().is_heard = true;
        let mut target = watched(&world);
        target.backend = Box::new(AtTheFloor);
        let rules = ControllerRules {
            service_rate: Some(100.0),
            scale: ScaleRules::between(1, 4),
            ..rules()
        };
        target.controller.reload(rules, vec![Box::new(Rate { target_utilisation: 1.0 })]);
        world.lock().unwrap().workers.push(Worker {
            id: "a".to_owned(),
            since_ms: 0,
            is_silent: false,
            gone_ms: None,
        });
        for _ in 0..10 {
            let decision = poll(&world, &mut target).await;
            assert_eq!((decision.to, decision.obstacle.clone()), (2, None), "{decision}");
        }
        let decision = poll(&world, &mut target).await;
        assert!(decision.to_string().contains("backend        1 -> 2"), "{decision}");
    }
}
