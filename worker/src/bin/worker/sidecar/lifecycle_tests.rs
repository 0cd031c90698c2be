use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings { is_started_here: true, failures: 3, start_timeout: 60 * SECOND, grace: 5 * SECOND }
}

const HEALTHY: Event = Event::Checked { is_healthy: true };
const UNHEALTHY: Event = Event::Checked { is_healthy: false };

/// A life cycle whose app was started and is healthy.
fn serving(now: Instant) -> Lifecycle {
    let mut cycle = Lifecycle::new(settings(), now);
    assert_eq!(cycle.step(Event::Tick, now), [Action::Start]);
    assert_eq!(cycle.step(HEALTHY, now), [Action::Join]);
    cycle
}

#[test]
fn it_joins_once_the_app_is_healthy_and_not_before() {
    let now = Instant::now();
    let mut cycle = Lifecycle::new(settings(), now);
    assert_eq!(cycle.checks(), None, "there is nothing to check");
    assert_eq!(cycle.step(Event::Tick, now), [Action::Start]);
    assert_eq!(cycle.checks(), Some(Checks::Often));
    for _ in 0..10 {
        assert_eq!(cycle.step(UNHEALTHY, now), []);
    }
    assert_eq!(cycle.step(HEALTHY, now), [Action::Join]);
    assert_eq!(cycle.step(HEALTHY, now), []);
    assert_eq!(cycle.checks(), Some(Checks::Usual));
}

#[test]
fn three_failures_in_a_row_have_it_leave_and_one_success_has_it_come_back() {
    let now = Instant::now();
    let mut cycle = serving(now);
    for event in [UNHEALTHY, UNHEALTHY, HEALTHY, UNHEALTHY, UNHEALTHY] {
        assert_eq!(cycle.step(event, now), []);
    }
    assert_eq!(cycle.step(UNHEALTHY, now), [Action::Leave, Action::Suspend]);
    assert_eq!(cycle.step(UNHEALTHY, now), []);
    // It is well again before the worker has left: what is in hand may go on.
    assert_eq!(cycle.step(HEALTHY, now), [Action::Resume]);
    assert_eq!(cycle.step(Event::Left, now), [Action::Join]);
}

#[test]
fn an_unhealthy_app_that_once_served_is_not_restarted() {
    let now = Instant::now();
    let mut cycle = serving(now);
    for event in [UNHEALTHY, UNHEALTHY, UNHEALTHY, Event::Left] {
        cycle.step(event, now);
    }
    assert_eq!(cycle.wake_at(), None);
    assert_eq!(cycle.step(Event::Tick, now + 3_600 * SECOND), []);
    assert_eq!(cycle.step(HEALTHY, now + 3_600 * SECOND), [Action::Resume, Action::Join]);
}

#[test]
fn told_to_stop_it_leaves_before_the_app_is_told() {
    let now = Instant::now();
    let mut cycle = serving(now);
    assert_eq!(cycle.step(Event::Stop, now), [Action::Leave]);
    assert_eq!(cycle.step(Event::Tick, now + 60 * SECOND), [], "streams are in hand");
    assert_eq!(cycle.step(Event::Left, now), [Action::Terminate]);
    assert_eq!(cycle.wake_at(), Some(now + 5 * SECOND));
    let ended = Action::End(End::Stopped { code: Some(143) });
    assert_eq!(cycle.step(Event::Exited { code: 143 }, now), [ended]);
}

#[test]
fn an_app_that_does_not_end_is_killed_after_the_grace() {
    let now = Instant::now();
    let mut cycle = serving(now);
    cycle.step(Event::Stop, now);
    assert_eq!(cycle.step(Event::Left, now), [Action::Terminate]);
    assert_eq!(cycle.step(Event::Tick, now + 4 * SECOND), []);
    assert_eq!(cycle.step(Event::Tick, now + 5 * SECOND), [Action::Kill]);
    assert_eq!(cycle.step(Event::Tick, now + 6 * SECOND), []);
    let ended = Action::End(End::Stopped { code: Some(137) });
    assert_eq!(cycle.step(Event::Exited { code: 137 }, now), [ended]);
}

#[test]
fn a_crash_leaves_and_restarts_with_a_growing_pause() {
    let mut now = Instant::now();
    let mut cycle = serving(now);
    for pause_ms in [100, 200, 400, 800] {
        let crashed = cycle.step(Event::Exited { code: 1 }, now);
        assert_eq!(crashed, [Action::Leave, Action::Suspend]);
        assert_eq!(cycle.step(Event::Left, now), []);
        let restart_at = now + Duration::from_millis(pause_ms);
        assert_eq!(cycle.wake_at(), Some(restart_at));
        now = restart_at;
        assert_eq!(cycle.step(Event::Tick, now), [Action::Start]);
        assert_eq!(cycle.step(HEALTHY, now), [Action::Resume, Action::Join]);
    }
    // The fifth within the window.
    let crashed = cycle.step(Event::Exited { code: 3 }, now);
    assert_eq!(crashed, [Action::Leave, Action::Suspend]);
    let ended = Action::End(End::CrashLoop { code: 3 });
    assert_eq!(cycle.step(Event::Left, now), [ended]);
}

#[test]
fn crashes_far_apart_are_no_loop() {
    let mut now = Instant::now();
    let mut cycle = serving(now);
    for _ in 0..20 {
        now += 20 * SECOND;
        cycle.step(Event::Exited { code: 1 }, now);
        cycle.step(Event::Left, now);
        assert_eq!(cycle.wake_at(), Some(now + FIRST_PAUSE), "it ran for long");
        now += FIRST_PAUSE;
        assert_eq!(cycle.step(Event::Tick, now), [Action::Start]);
        cycle.step(HEALTHY, now);
    }
}

#[test]
fn an_app_that_never_becomes_healthy_is_restarted() {
    let now = Instant::now();
    let mut cycle = Lifecycle::new(settings(), now);
    cycle.step(Event::Tick, now);
    assert_eq!(cycle.wake_at(), Some(now + 60 * SECOND));
    assert_eq!(cycle.step(Event::Tick, now + 60 * SECOND), [Action::Terminate]);
    assert_eq!(cycle.step(Event::Exited { code: 0 }, now + 61 * SECOND), []);
    assert_eq!(cycle.wake_at(), Some(now + 61 * SECOND + FIRST_PAUSE));
}

#[test]
fn an_app_of_somebody_else_is_neither_started_nor_stopped() {
    let now = Instant::now();
    let settings = Settings { is_started_here: false, ..settings() };
    let mut cycle = Lifecycle::new(settings, now);
    assert_eq!((cycle.step(Event::Tick, now), cycle.wake_at()), (vec![], None));
    assert_eq!(cycle.step(HEALTHY, now), [Action::Join]);
    assert_eq!(cycle.step(Event::Stop, now), [Action::Leave]);
    assert_eq!(cycle.step(Event::Left, now), [Action::End(End::Stopped { code: None })]);
}

#[test]
fn a_worker_that_was_asked_to_leave_by_others_ends_with_its_app() {
    let now = Instant::now();
    let mut cycle = serving(now);
    assert_eq!(cycle.step(Event::Left, now), [Action::Terminate]);
    let ended = Action::End(End::Stopped { code: Some(0) });
    assert_eq!(cycle.step(Event::Exited { code: 0 }, now), [ended]);
}

#[test]
fn a_worker_that_cannot_serve_takes_its_app_along() {
    let now = Instant::now();
    let mut cycle = serving(now);
    assert_eq!(cycle.step(Event::ServingFailed, now), [Action::Terminate]);
    assert_eq!(cycle.step(Event::Exited { code: 0 }, now), [Action::End(End::Failed)]);
}

#[test]
fn stopped_between_two_starts_it_ends_at_once() {
    let now = Instant::now();
    let mut cycle = serving(now);
    cycle.step(Event::Exited { code: 1 }, now);
    assert_eq!(cycle.step(Event::Stop, now), []);
    assert_eq!(cycle.step(Event::Left, now), [Action::End(End::Stopped { code: None })]);
}

/// What the world does next.
#[derive(Clone, Copy, Debug)]
enum Move {
    Check { is_healthy: bool },
    Crash { code: u8 },
    FinishLeaving,
    AskedToLeave,
    Refuse,
    Stop,
    Wait { ms: u64 },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        8 => any::<bool>().prop_map(|is_healthy| Move::Check { is_healthy }),
        4 => Just(Move::Check { is_healthy: true }),
        2 => any::<u8>().prop_map(|code| Move::Crash { code }),
        4 => Just(Move::FinishLeaving),
        1 => Just(Move::AskedToLeave),
        1 => Just(Move::Refuse),
        1 => Just(Move::Stop),
        8 => (0..20_000_u64).prop_map(|ms| Move::Wait { ms }),
    ];
    proptest::collection::vec(one, 0..120)
}

/// The app, the worker and the clock, as they really are, with what must hold of them.
struct World {
    cycle: Lifecycle,
    now: Instant,
    is_ours: bool,
    runs: bool,
    is_member: bool,
    is_leaving: bool,
    /// Whether what is in hand may be at the run of the app that is on, and not at one before.
    has_joined: bool,
    is_suspended: bool,
    terminated_at: Option<Instant>,
    last_exit: Option<Instant>,
    /// Of the run that is on, the last check.
    last_check: Option<bool>,
    failures_in_a_row: u32,
    is_stopping: bool,
    end: Option<End>,
}

impl World {
    fn new(is_ours: bool) -> Self {
        let now = Instant::now();
        let settings = Settings { is_started_here: is_ours, ..settings() };
        Self {
            cycle: Lifecycle::new(settings, now),
            now,
            is_ours,
            runs: !is_ours,
            is_member: false,
            is_leaving: false,
            has_joined: false,
            is_suspended: false,
            terminated_at: None,
            last_exit: None,
            last_check: None,
            failures_in_a_row: 0,
            is_stopping: false,
            end: None,
        }
    }

    fn event(&mut self, event: Event) {
        for action in self.cycle.step(event, self.now) {
            assert!(self.end.is_none(), "{action:?} after the end");
            self.act(action);
        }
        let serves = self.is_member && !self.is_leaving;
        assert!(!serves || self.runs, "a member without an app");
        assert!(!serves || self.failures_in_a_row < 3, "a member with an unhealthy app");
        assert!(!serves || !self.is_stopping, "a member that was told to stop");
        assert!(!serves || !self.is_suspended, "a member that asks nobody");
        let overdue = self.cycle.wake_at().is_some_and(|at| at <= self.now);
        assert!(!overdue || self.end.is_some() || self.is_stopping, "nothing was done in time");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start => {
                assert!(self.is_ours && !self.runs, "two apps, or another's");
                assert!(!self.is_stopping, "started to be stopped");
                let pause = self.last_exit.map(|exit| self.now - exit);
                assert!(pause.is_none_or(|pause| pause >= FIRST_PAUSE), "no pause");
                (self.runs, self.last_check, self.failures_in_a_row) = (true, None, 0);
                (self.terminated_at, self.has_joined) = (None, false);
            }
            Action::Join => {
                assert!(!self.is_member, "joined twice");
                assert_eq!(self.last_check, Some(true), "joined without an app that is well");
                (self.is_member, self.has_joined) = (true, true);
            }
            Action::Leave => {
                assert!(self.is_member && !self.is_leaving);
                self.is_leaving = true;
            }
            Action::Suspend => {
                assert!(!self.is_suspended);
                self.is_suspended = true;
            }
            Action::Resume => {
                assert!(self.is_suspended);
                self.is_suspended = false;
            }
            Action::Terminate => {
                assert!(self.is_ours && self.runs && self.terminated_at.is_none());
                let is_in_hand = self.is_member && self.has_joined;
                assert!(!is_in_hand, "the app ends before what is in hand");
                self.terminated_at = Some(self.now);
            }
            Action::Kill => {
                let at = self.terminated_at.expect("killed without a word");
                assert!(self.runs && self.now - at >= settings().grace);
            }
            Action::End(end) => {
                assert!(!self.is_member, "over, and a member");
                assert!(!self.is_ours || !self.runs, "over, and the app runs");
                self.end = Some(end);
            }
        }
    }

    fn make(&mut self, step: Move) {
        match step {
            Move::Check { is_healthy } if self.cycle.checks().is_some() => {
                assert!(self.runs, "checked an app that does not run");
                self.last_check = Some(is_healthy);
                self.failures_in_a_row = if is_healthy { 0 } else { self.failures_in_a_row + 1 };
                self.event(Event::Checked { is_healthy });
            }
            Move::Crash { code } if self.is_ours && self.runs => {
                (self.runs, self.last_exit) = (false, Some(self.now));
                self.event(Event::Exited { code });
            }
            Move::FinishLeaving if self.is_leaving => {
                (self.is_member, self.is_leaving) = (false, false);
                self.event(Event::Left);
            }
            Move::AskedToLeave if self.is_member && !self.is_leaving => {
                (self.is_member, self.is_stopping) = (false, true);
                self.event(Event::Left);
            }
            Move::Refuse if self.is_member => {
                (self.is_member, self.is_leaving, self.is_stopping) = (false, false, true);
                self.event(Event::ServingFailed);
            }
            Move::Stop => {
                self.is_stopping = true;
                self.event(Event::Stop);
            }
            Move::Wait { ms } => self.wait(Duration::from_millis(ms)),
            _ => {}
        }
    }

    /// Lets time pass, with a tick whenever one is due, as the driver does.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..1_000 {
            match self.cycle.wake_at().filter(|at| *at <= until && self.end.is_none()) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.event(Event::Tick);
                }
                None => {
                    self.now = until;
                    return self.event(Event::Tick);
                }
            }
        }
        panic!("it never comes to rest: {:?}", self.cycle);
    }
}

proptest! {
    #[test]
    fn whatever_happens_it_serves_healthy_apps_alone_and_ends_when_told(
        is_ours: bool,
        moves in moves(),
    ) {
        let mut world = World::new(is_ours);
        world.event(Event::Tick);
        for step in moves {
            if world.end.is_none() {
                world.make(step);
            }
        }
        // A healthy app is served sooner or later, unless it is over.
        for _ in 0..3 {
            if world.end.is_none() {
                world.make(Move::FinishLeaving);
                // What was told to end does, at the latest when it is killed.
                if world.terminated_at.is_some() {
                    world.make(Move::Crash { code: 143 });
                }
                world.make(Move::Wait { ms: 30_000 });
                world.make(Move::Check { is_healthy: true });
            }
        }
        let is_over = world.end.is_some() || world.is_stopping || world.cycle.ending.is_some();
        prop_assert!(world.is_member || is_over, "{:?}", world.cycle);
        // Told to stop, it ends, even if the app does not listen.
        for _ in 0..3 {
            if world.end.is_none() {
                world.make(Move::Stop);
                world.make(Move::FinishLeaving);
                world.make(Move::Wait { ms: 5_000 });
                world.make(Move::Crash { code: 137 });
            }
        }
        prop_assert!(world.end.is_some(), "{:?}", world.cycle);
    }
}
