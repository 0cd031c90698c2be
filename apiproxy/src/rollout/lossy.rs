//! Drains over a network that loses, repeats and reorders every report, among senders that fall
//! silent, crash and leave, and drivers that take over: the decisions as they are, everything
//! around them drawn anew at each step.
//!
//! What is judged: a drain that is complete has nobody left that sends to the old version, but for
//! those it names. By tunnels nobody may send there, also none who is named or was never heard of.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use natsway_routes::document::RouteDocument;
use natsway_routes::metrics::AttemptMetrics;
use natsway_routes::report::{Report, Reporter, VersionMetrics};
use natsway_routes::rollout::{Phase, Strategy};
use natsway_wire::frame::LEASE;

use super::analysis::Window;
use super::command::{self, Plan};
use super::fleet::Fleet;
use super::machine::{Action, Observation, Workers, next, switch};

/// One step of the world.
const STEP: Duration = Duration::from_millis(100);

/// The revision of the switch; senders go by the one before until they have read it.
const SWITCH: u64 = 8;

/// Other versions, so that some senders' reports take several messages.
const MANY: usize = 150;

/// Somebody who sends requests.
struct Sender {
    id: String,
    reporter: Reporter,
    began: u64,
    revision: u64,
    /// Requests that are out to the old version.
    out: i64,
    others: usize,
    /// Chances in a thousand that a request begins, and that one ends: some are out for long, and
    /// change nothing.
    pace: (u32, u32),
    is_alive: bool,
    has_left: bool,
    /// Until which step it does nothing and says nothing.
    frozen_until: u64,
    /// Until which step it may go by tunnels by the routes before the switch.
    lease_until: u64,
    due: u64,
    /// The step at which something of it came to the driver of now.
    heard: Option<u64>,
}

impl Sender {
    fn new(number: usize, step: u64, revision: u64, random: &mut Rng) -> Self {
        Self {
            id: format!("sender-{number}"),
            reporter: Reporter::default(),
            began: step,
            revision,
            out: 0,
            others: if random.u8(0..16) == 0 { MANY } else { 1 },
            pace: (random.u32(5..400), if random.bool() { 300 } else { 3 }),
            is_alive: true,
            has_left: false,
            frozen_until: 0,
            // What it asked before the switch was answered.
            lease_until: random.u64(0..(LEASE.as_millis() / STEP.as_millis()) as u64),
            due: step,
            heard: None,
        }
    }

    fn state(&self, step: u64) -> Report {
        let version = |version: &str, in_flight| VersionMetrics {
            route: "math".to_owned(),
            version: version.to_owned(),
            metrics: AttemptMetrics { in_flight, ..AttemptMetrics::default() },
        };
        let other =
            |number: usize| version(&format!("other-{number}"), i64::from(number as u32 % 3));
        let mut versions: Vec<_> = (0..self.others).map(other).collect();
        // One that never went out leaves nothing behind, as in a gateway.
        versions.extend((self.out > 0).then(|| version("blue", self.out)));
        let age_ms = (step - self.began) * STEP.as_millis() as u64;
        let (id, host) = (self.id.clone(), self.id.clone());
        Report { id, host, age_ms, revision: self.revision, versions, ..Report::default() }
    }

    fn acts(&self, step: u64) -> bool {
        self.is_alive && !self.has_left && step >= self.frozen_until
    }

    /// It may still send to the old version by a tunnel, whoever hears of it.
    fn has_old_lease(&self, step: u64) -> bool {
        self.is_alive && !self.has_left && self.revision < SWITCH && step < self.lease_until
    }

    /// It may still send to the old version, or has something out to it.
    fn is_undone(&self) -> bool {
        self.is_alive && !self.has_left && (self.revision < SWITCH || self.out > 0)
    }
}

/// How bad a world is: chances in a thousand, at each step and of each message.
#[derive(Clone, Copy, Debug)]
struct Weather {
    lost: u32,
    /// Questions that do not reach a sender.
    unasked: u32,
    repeated: u32,
    freezes: u32,
    crashes: u32,
    takes_over: u32,
}

struct World {
    random: Rng,
    weather: Weather,
    step: u64,
    start: Instant,
    senders: Vec<Sender>,
    /// What is under way to the driver.
    network: Vec<Bytes>,
    document: RouteDocument,
    fleet: Fleet,
    listening_since: u64,
    in_phase_since: u64,
    uses_tunnels: bool,
    workers: usize,
}

fn switched(stop_old: bool) -> RouteDocument {
    let json = r#"{"name":"math","path":"/","target":[
        {"version":"blue","subject":"svc.math.blue","weight":100},
        {"version":"green","subject":"svc.math.green","weight":0}]}"#;
    let document = RouteDocument::from_json(json.as_bytes()).unwrap();
    let plan = Plan {
        to: "green".to_owned(),
        strategy: Strategy::BlueGreen,
        steps: Vec::new(),
        criteria: Default::default(),
        smoke: None,
        stop_old,
        take_over: false,
    };
    let started = command::start(&document, plan, "r".to_owned(), 0).unwrap();
    switch(&started, "now", &Window::default(), 0)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let weather = Weather {
            lost: random.u32(0..950),
            unasked: if random.bool() { random.u32(0..1_000) } else { 1_000 },
            repeated: random.u32(0..300),
            freezes: random.u32(0..20),
            crashes: random.u32(0..5),
            takes_over: random.u32(0..20),
        };
        let count = random.usize(1..5);
        // Some come into being by the routes of the switch.
        let senders = (0..count)
            .map(|number| {
                let revision = SWITCH - u64::from(random.u8(0..4) > 0);
                Sender::new(number, 0, revision, &mut random)
            })
            .collect();
        let document = switched(random.bool());
        Self {
            weather,
            step: 0,
            start: Instant::now(),
            senders,
            network: Vec::new(),
            document,
            fleet: Fleet::default(),
            listening_since: 0,
            in_phase_since: 0,
            uses_tunnels: random.bool(),
            workers: random.usize(0..3),
            random,
        }
    }

    fn chance(&mut self, in_a_thousand: u32) -> bool {
        self.random.u32(0..1_000) < in_a_thousand
    }

    fn now(&self) -> Instant {
        self.start + STEP * u32::try_from(self.step).unwrap()
    }

    fn since(&self, step: u64) -> Duration {
        STEP * u32::try_from(self.step - step).unwrap()
    }

    fn phase(&self) -> Phase {
        self.document.rollout.as_ref().unwrap().phase
    }

    fn step(&mut self) {
        self.step += 1;
        for place in 0..self.senders.len() {
            self.sender(place);
        }
        self.deliver();
        let takes_over = self.weather.takes_over;
        if self.chance(takes_over) {
            self.take_over();
        }
        self.poll();
    }

    fn sender(&mut self, place: usize) {
        let Weather { freezes, crashes, .. } = self.weather;
        if self.chance(crashes) {
            self.senders[place].is_alive = false;
        }
        if !self.senders[place].acts(self.step) {
            return;
        }
        if self.chance(freezes) {
            self.senders[place].frozen_until = self.step + self.random.u64(1..150);
            return;
        }
        let (begin, end) = self.senders[place].pace;
        let (takes_routes, begins, ends, leaves) =
            (self.chance(50), self.chance(begin), self.chance(end), self.chance(3));
        let (step, sender) = (self.step, &mut self.senders[place]);
        if takes_routes {
            sender.revision = SWITCH;
        }
        sender.out += i64::from(begins && sender.revision < SWITCH);
        sender.out -= i64::from(ends && sender.out > 0);
        let report = if leaves && sender.out == 0 {
            sender.has_left = true;
            sender.reporter.whole(Report { leaving: true, ..sender.state(step) })
        } else if step >= sender.due {
            sender.due = step + 10;
            sender.reporter.due(sender.state(step))
        } else {
            return;
        };
        self.network.extend(report.messages());
    }

    /// Each message may be lost, come again, or come later than what was said after it.
    fn deliver(&mut self) {
        let Weather { lost, repeated, .. } = self.weather;
        self.random.shuffle(&mut self.network);
        for message in std::mem::take(&mut self.network) {
            if self.chance(lost) {
                continue;
            }
            if self.chance(repeated) {
                self.network.push(message.clone());
            }
            if self.chance(300) {
                self.network.push(message);
                continue;
            }
            let report = Report::read(&message).unwrap();
            let step = self.step;
            let sender = self.senders.iter_mut().find(|sender| sender.id == report.id).unwrap();
            sender.heard = Some(step);
            let now = self.now();
            if !self.fleet.hear_gateway(&report, now) {
                self.ask();
            }
        }
    }

    fn ask(&mut self) {
        for place in 0..self.senders.len() {
            let unasked = self.weather.unasked;
            let is_unasked = self.chance(unasked);
            let (step, sender) = (self.step, &mut self.senders[place]);
            if sender.acts(step) && !is_unasked {
                let answer = sender.reporter.whole(sender.state(step));
                self.network.extend(answer.messages());
            }
        }
    }

    /// Another driver, which knows nothing.
    fn take_over(&mut self) {
        self.fleet = Fleet::default();
        self.listening_since = self.step;
        self.in_phase_since = self.step;
        for sender in &mut self.senders {
            sender.heard = None;
        }
        self.ask();
    }

    fn poll(&mut self) {
        let now = self.now();
        let senders = self.fleet.senders(0, "math", "blue", now);
        let workers = (self.phase() == Phase::Stopping).then(|| {
            self.workers -= usize::from(self.workers > 0 && self.random.u8(0..20) == 0);
            match self.workers {
                0 => Workers::Gone,
                count if self.random.bool() => Workers::There(self.random.usize(1..=count)),
                _ => Workers::Silent,
            }
        });
        let observation = Observation {
            in_phase: self.since(self.in_phase_since),
            listened: self.since(self.listening_since),
            uses_tunnels: self.uses_tunnels,
            senders: &senders,
            workers,
            ..Observation::default()
        };
        match next(&self.document, SWITCH, &observation, self.step) {
            Some(Action::AskSenders) => self.ask(),
            Some(Action::Write(document)) => {
                if self.phase() == Phase::Draining {
                    self.judge(&document);
                }
                self.document = *document;
                self.in_phase_since = self.step;
            }
            _ => {}
        }
    }

    fn judge(&self, document: &RouteDocument) {
        let named = &document.rollout.as_ref().unwrap().behind;
        let is_named =
            |sender: &Sender| named.iter().any(|name| name.starts_with(&format!("{}:", sender.id)));
        // Of whom nothing has come to this driver it cannot know; a minute of silence is forgotten.
        let is_known =
            |sender: &&Sender| sender.heard.is_some_and(|heard| self.since(heard).as_secs() < 60);
        let with_lease = self.senders.iter().find(|sender| sender.has_old_lease(self.step));
        if let Some(sender) = with_lease.filter(|_| self.uses_tunnels) {
            panic!("{} may send by a tunnel at step {}", sender.id, self.step);
        }
        for sender in self.senders.iter().filter(is_known) {
            assert!(
                !sender.is_undone() || is_named(sender),
                "{} is at {} with {} out, and not among {named:?}",
                sender.id,
                sender.revision,
                sender.out
            );
        }
    }
}

/// Worlds that are drawn, and the most steps of each: some 100 s of bad weather.
const WORLDS: u64 = 300;
const MOST_STEPS: u64 = 1_000;

#[test]
fn a_drain_is_complete_only_when_nobody_sends_there_whatever_is_lost() {
    let mut completed = 0;
    for seed in 0..WORLDS {
        let mut world = World::new(seed);
        while world.phase() == Phase::Draining && world.step < MOST_STEPS {
            world.step();
        }
        completed += u64::from(world.phase() != Phase::Draining);
    }
    assert!(completed > WORLDS / 2, "only {completed} of {WORLDS} came to a judgement");
}

#[test]
fn when_the_weather_clears_every_drain_ends_and_only_who_has_left_is_said_to_have() {
    for seed in 0..WORLDS / 5 {
        let mut world = World::new(seed);
        for _ in 0..100 {
            world.step();
        }
        world.weather =
            Weather { lost: 0, unasked: 0, repeated: 0, freezes: 0, crashes: 0, takes_over: 0 };
        world.senders.iter_mut().for_each(|sender| sender.pace = (100, 300));
        for _ in 0..800 {
            world.step();
        }
        let rollout = world.document.rollout.as_ref().unwrap();
        if world.senders.iter().any(|sender| sender.acts(world.step)) {
            assert_eq!(rollout.phase, Phase::Promoted, "world {seed}: {rollout:?}");
            let last = &rollout.history.last().unwrap().what;
            let have_left = last.ends_with("have left");
            assert!(
                !have_left || world.workers == 0,
                "world {seed}: {last}, and {} are there",
                world.workers
            );
        }
    }
}
