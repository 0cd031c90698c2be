//! Whole rollouts on simulated time and traffic: the decisions as they are, everything around them
//! made up.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use natsway_routes::document::RouteDocument;
use natsway_routes::metrics::AttemptMetrics;
use natsway_routes::rollout::{Criteria, Phase, Rollout, Step, Strategy};

use super::analysis::{AnalysisResult, Window};
use super::command::{self, Plan};
use super::machine::{Action, Observation, Sender, Workers, next, verdict};

/// How a version behaves.
#[derive(Clone, Copy)]
struct Version {
    /// Share of its requests that fail.
    failing: f64,
    /// Its median latency; one in a hundred takes ten times as long and more.
    median_us: f64,
    /// How long until a failure is known.
    failure_us: u64,
}

const HEALTHY: Version = Version { failing: 0.005, median_us: 5_000.0, failure_us: 5_000 };

/// A world with two versions behind one route, one second at a time.
struct World {
    document: RouteDocument,
    revision: u64,
    random: Rng,
    requests_per_second: u64,
    versions: BTreeMap<&'static str, Version>,
    /// Since the phase and step began: how long, what was seen, and how often it was slower.
    in_phase: Duration,
    window: Window,
    slow_polls: u32,
    /// Failures that are not known yet: when they are, and whose.
    pending: Vec<(u64, &'static str)>,
    second: u64,
    new_requests: u64,
    writes: usize,
}

fn route() -> RouteDocument {
    let json = r#"{"name":"math","path":"/","target":[
        {"version":"blue","subject":"svc.math.blue","weight":100},
        {"version":"green","subject":"svc.math.green","weight":0}]}"#;
    RouteDocument::from_json(json.as_bytes()).unwrap()
}

fn canary(patience: Duration) -> Plan {
    let step = |percent| Step { percent, hold: Duration::from_secs(60) };
    Plan {
        to: "green".to_owned(),
        strategy: Strategy::Canary,
        steps: [1, 5, 25, 50, 100].map(step).to_vec(),
        criteria: Criteria { patience, ..Criteria::default() },
        smoke: None,
        stop_old: false,
        take_over: false,
    }
}

impl World {
    fn new(seed: u64, requests_per_second: u64, green: Version, patience: Duration) -> Self {
        let document = command::start(&route(), canary(patience), "r".to_owned(), 0).unwrap();
        Self {
            document,
            revision: 1,
            random: Rng::with_seed(seed),
            requests_per_second,
            versions: BTreeMap::from([("blue", HEALTHY), ("green", green)]),
            in_phase: Duration::ZERO,
            window: Window::default(),
            slow_polls: 0,
            pending: Vec::new(),
            second: 0,
            new_requests: 0,
            writes: 0,
        }
    }

    fn rollout(&self) -> &Rollout {
        self.document.rollout.as_ref().unwrap()
    }

    fn count(&mut self, version: &'static str, us: u64, failed: bool) {
        let metrics: &mut AttemptMetrics = match version {
            "blue" => &mut self.window.old,
            _ => &mut self.window.new,
        };
        metrics.latency.add(us, 1);
        metrics.errors += u64::from(failed);
    }

    fn request(&mut self) {
        let green = self.document.weights().find(|(version, _)| *version == "green").unwrap().1;
        let version = if self.random.u32(0..100) < green { "green" } else { "blue" };
        self.new_requests += u64::from(version == "green");
        let Version { failing, median_us, failure_us } = self.versions[version];
        if self.random.f64() < failing {
            self.pending.push((self.second + failure_us / 1_000_000, version));
            return;
        }
        // Log-normal, from twelve uniform numbers: a long tail as services have it.
        let normal: f64 = (0..12).map(|_| self.random.f64()).sum::<f64>() - 6.0;
        self.count(version, (median_us * normal.exp()) as u64, false);
    }

    /// One second: traffic, then a look.
    fn tick(&mut self) {
        for _ in 0..self.requests_per_second {
            self.request();
        }
        let due: Vec<_> = self.pending.extract_if(.., |(when, _)| *when <= self.second).collect();
        for (_, version) in due {
            self.count(version, self.versions[version].failure_us, true);
        }
        self.second += 1;
        self.in_phase += Duration::from_secs(1);
        self.poll();
    }

    fn poll(&mut self) {
        self.slow_polls = match verdict(self.rollout(), &self.window) {
            Some(AnalysisResult::Slower(_)) => self.slow_polls + 1,
            _ => 0,
        };
        let sender = Sender {
            name: "gateway".to_owned(),
            revision: Some(self.revision),
            refuses: false,
            silent: Duration::ZERO,
            in_flight: 0,
        };
        let answered = Ok("it answers".to_owned());
        let observation = Observation {
            in_phase: self.in_phase,
            window: self.window.clone(),
            slow_polls: self.slow_polls,
            check: Some(&answered),
            listened: self.in_phase + Duration::from_secs(60),
            uses_tunnels: self.second.is_multiple_of(2),
            senders: &[sender],
            workers: Some(Workers::Gone),
        };
        if let Some(Action::Write(document)) =
            next(&self.document, self.revision, &observation, self.second * 1_000)
        {
            document.check(None).expect("what the machine writes is sound");
            self.document = *document;
            self.revision += 1;
            self.writes += 1;
            self.forget();
        }
    }

    /// As another driver finds it.
    fn forget(&mut self) {
        self.in_phase = Duration::ZERO;
        self.window = Window::default();
        self.slow_polls = 0;
    }

    /// Runs to its end; gives the phase and why.
    fn run(&mut self) -> (Phase, String) {
        while self.rollout().phase.is_active() {
            self.tick();
            assert!(self.second < 1_000_000, "it ends: {:?}", self.rollout());
        }
        (self.rollout().phase, self.rollout().reason.clone().unwrap_or_default())
    }
}

/// Long enough for the samples of a step at 2 requests a second, at one percent.
const PATIENT: Duration = Duration::from_secs(4 * 3_600);

#[test]
fn at_two_requests_a_second_no_healthy_version_goes_back() {
    for seed in 0..50 {
        let mut world = World::new(seed, 2, HEALTHY, PATIENT);
        let (phase, reason) = world.run();
        assert_eq!(phase, Phase::Promoted, "run {seed}: {reason}");
    }
}

#[test]
fn at_two_requests_a_second_a_version_that_always_fails_is_gone_within_twenty() {
    for seed in 0..50 {
        let mut world = World::new(seed, 2, Version { failing: 1.0, ..HEALTHY }, PATIENT);
        let (phase, reason) = world.run();
        assert_eq!(phase, Phase::RolledBack, "run {seed}");
        assert!(reason.starts_with("worse: errors are "), "{reason}");
        assert!(world.new_requests <= 20, "run {seed}: {} requests saw it", world.new_requests);
    }
}

#[test]
fn what_is_worse_goes_back_and_few_have_seen_it() {
    let slow = Version { median_us: 15_000.0, ..HEALTHY };
    let failing = Version { failing: 0.05, ..HEALTHY };
    let silent = Version { failing: 1.0, failure_us: 10_000_000, ..HEALTHY };
    for seed in 0..10 {
        for (version, expected) in
            [(slow, "worse: p9"), (failing, "worse: errors"), (silent, "worse: errors")]
        {
            let mut world = World::new(seed, 200, version, Duration::from_secs(600));
            let (phase, reason) = world.run();
            assert_eq!(phase, Phase::RolledBack, "run {seed}");
            assert!(reason.starts_with(expected), "{reason}");
            let exposure = world.rollout().exposure;
            assert!(exposure.new_requests * 20 < exposure.requests, "run {seed}: {exposure:?}");
        }
    }
}

#[test]
fn a_healthy_version_under_traffic_is_promoted_in_the_time_of_its_holds() {
    for seed in 0..20 {
        let mut world = World::new(seed, 200, HEALTHY, Duration::from_secs(600));
        assert_eq!(world.run().0, Phase::Promoted, "run {seed}");
        assert!(world.second < 10 * 60, "run {seed}: {} s", world.second);
        assert_eq!(world.document.weights().collect::<Vec<_>>(), [("blue", 0), ("green", 100)]);
    }
}

#[test]
fn too_few_requests_go_back_and_never_forward() {
    let mut world = World::new(1, 2, HEALTHY, Duration::from_secs(300));
    let (phase, reason) = world.run();
    assert_eq!((phase, world.rollout().step), (Phase::RolledBack, 0));
    assert!(reason.starts_with("too few requests to tell"), "{reason}");
}

#[test]
fn drivers_that_die_at_every_step_and_between_change_the_time_and_not_the_end() {
    for (green, expected) in
        [(HEALTHY, Phase::Promoted), (Version { failing: 0.2, ..HEALTHY }, Phase::RolledBack)]
    {
        let mut world = World::new(7, 200, green, Duration::from_secs(600));
        while world.rollout().phase.is_active() {
            world.tick();
            // Another driver knows nothing of what the last one saw; each lives long enough for one
            // step.
            if world.second.is_multiple_of(97) {
                world.forget();
            }
            assert!(world.second < 10_000);
        }
        assert_eq!(world.rollout().phase, expected);
    }
}

#[test]
fn a_paused_rollout_stays_and_still_goes_back() {
    let mut world = World::new(3, 200, HEALTHY, Duration::from_secs(600));
    while world.rollout().step == 0 {
        world.tick();
    }
    world.document = command::pause(&world.document, 0).unwrap();
    assert!(command::pause(&world.document, 0).is_err());
    for _ in 0..2_000 {
        world.tick();
    }
    assert_eq!((world.rollout().phase, world.rollout().step), (Phase::Canary, 1));
    world.versions.insert("green", Version { failing: 0.5, ..HEALTHY });
    assert_eq!(world.run().0, Phase::RolledBack);
}

#[test]
fn whatever_happens_the_weights_are_whole() {
    for seed in 0..30 {
        let mut random = Rng::with_seed(seed);
        let mut world = World::new(seed, 100, HEALTHY, Duration::from_secs(120));
        for second in 0..2_000 {
            world.tick();
            let asked = match random.u32(0..200) {
                0 => command::pause(&world.document, second),
                1 => command::resume(&world.document, second),
                2 => command::promote(&world.document, second),
                3 => command::abort(&world.document, "again".to_owned(), second),
                4 => command::start(
                    &world.document,
                    canary(Duration::from_secs(120)),
                    "new".to_owned(),
                    second,
                ),
                _ => continue,
            };
            if let Ok(document) = asked {
                document.check(None).expect("what a command writes is sound");
                world.document = document;
                world.revision += 1;
                world.forget();
            }
            let weights: u32 = world.document.weights().map(|(_, weight)| weight).sum();
            assert_eq!(weights, 100, "all traffic goes somewhere: {:?}", world.document);
        }
    }
}
