//! What a target does with backends that refuse, and with workers that fall silent and wake.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::*;
use crate::controller::ControllerRules;
use crate::instance::InstanceState;
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
        ScaleTarget::new(controller, Box::new(Silent), Box::new(Refusing(Arc::clone(&tries))));
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

fn watched(world: &Shared) -> ScaleTarget {
    let rules = ControllerRules {
        service_rate: Some(100.0),
        scale: ScaleRules { down_window_ms: 3_000, ..ScaleRules::between(BOUNDS.0, BOUNDS.1) },
        ..rules()
    };
    let policies: Vec<Box<dyn Policy>> = vec![Box::new(Rate { target_utilisation: 1.0 })];
    let controller = Controller::new("orders", rules, policies);
    let signal = Asked { world: Arc::clone(world), arrived: 0, answers: None };
    let mut target =
        ScaleTarget::new(controller, Box::new(signal), Box::new(Workers(Arc::clone(world))));
    let clock = Arc::clone(world);
    target.now = Box::new(move || clock.lock().unwrap().now_ms);
    (target.silent_after, target.bounds) = (3, BOUNDS);
    target
}

/// One poll; notes when one that answers was stopped and one that does not stays.
async fn poll(world: &Shared, target: &mut ScaleTarget) -> Decision {
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
            world.workers.iter().any(|worker| worker.id == of.instance && worker.gone_ms.is_none())
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
        world.lock().unwrap().workers.iter_mut().for_each(|worker| worker.is_silent = is_silent);
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
    let rules =
        ControllerRules { service_rate: Some(100.0), scale: ScaleRules::between(1, 4), ..rules() };
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
