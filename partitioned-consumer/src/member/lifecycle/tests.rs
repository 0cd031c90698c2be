//! The lifecycle against hand-written events.

use std::time::Duration;

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Bench {
    life: Lifecycle,
    now: Duration,
}

impl Bench {
    fn new(fixed: bool) -> Self {
        let config = LifecycleConfig { fixed, drain_timeout: MS(5000), lease: MS(2000), seed: 7 };
        Self { life: Lifecycle::new(config), now: Duration::ZERO }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.life.step(event, self.now, &mut out);
        out
    }

    /// Joined, at work, with these filters.
    fn pinned(fixed: bool, filters: &[String]) -> Self {
        let mut bench = Self::new(fixed);
        bench.step(Event::Assigned(filters.to_vec()));
        bench.step(Event::Created(filters.to_vec()));
        bench.step(Event::Pinned(true));
        bench
    }

    /// Lets the pause pass, and says what is tried then.
    fn after_pause(&mut self) -> Vec<Action> {
        self.now = self.life.wake_at().expect("a pause has an end");
        self.step(Event::Tick)
    }
}

fn filters(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_change_that_leaves_our_partitions_alone_does_nothing() {
    let mut bench = Bench::pinned(false, &filters(&["0.>"]));
    assert!(bench.step(Event::Assigned(filters(&["0.>"]))).is_empty());
}

#[test]
fn the_pinned_instance_drains_before_it_deletes_and_joins_again() {
    let mut bench = Bench::pinned(false, &filters(&["0.>"]));
    assert!(matches!(bench.step(Event::Assigned(filters(&["0.>", "1.>"])))[..], [Action::Drain]));
    assert!(matches!(bench.step(Event::Drained)[..], [Action::Abort, Action::Delete]));
    assert!(matches!(bench.step(Event::Deleted { by_us: true })[..], [Action::Create(_)]));
}

#[test]
fn only_the_holder_makes_a_deleted_consumer_anew_at_once() {
    // A standby hears of the deletion while the broker is still at it.
    let mut standby = Bench::new(false);
    standby.step(Event::Assigned(filters(&["0.>"])));
    standby.step(Event::Created(filters(&["0.>"])));
    standby.step(Event::ConsumerGone);
    let actions = standby.step(Event::Drained);
    assert!(matches!(actions[..], [Action::Abort]), "{actions:?}");
    assert!(standby.life.wake_at().unwrap() >= MS(50));
    assert!(matches!(standby.after_pause()[..], [Action::Create(_)]));
    // Two instances may clean up at once; the second is told that it is done before it is.
    let mut cleaner = Bench::new(false);
    cleaner.step(Event::Assigned(filters(&["0.>"])));
    cleaner.step(Event::CreateFailed(CreateFault::Differs));
    cleaner.step(Event::Inspected(Existing::Unpinned { in_flight: false }));
    assert!(cleaner.step(Event::Deleted { by_us: true }).is_empty());
    assert!(matches!(cleaner.after_pause()[..], [Action::Create(_)]));
}

#[test]
fn a_holder_whose_consumer_was_deleted_by_another_takes_its_time() {
    let mut told = Bench::pinned(false, &filters(&["0.>"]));
    told.step(Event::Assigned(filters(&["1.>"])));
    told.step(Event::ConsumerGone);
    assert!(matches!(told.step(Event::Drained)[..], [Action::Abort]));
    assert!(matches!(told.after_pause()[..], [Action::Create(_)]));
    let mut untold = Bench::pinned(false, &filters(&["0.>"]));
    untold.step(Event::Assigned(filters(&["1.>"])));
    untold.step(Event::Drained);
    assert!(untold.step(Event::Deleted { by_us: false }).is_empty());
    assert!(matches!(untold.after_pause()[..], [Action::Create(_)]));
}

#[test]
fn an_overlap_is_tried_again_within_a_quarter_second() {
    let mut bench = Bench::new(false);
    bench.step(Event::Assigned(filters(&["0.>"])));
    bench.step(Event::CreateFailed(CreateFault::Overlaps));
    assert!((MS(50)..=MS(250)).contains(&bench.life.wake_at().unwrap()));
    assert!(matches!(bench.after_pause()[..], [Action::Create(_)]));
}

#[test]
fn a_consumer_with_messages_in_flight_is_left_alone_for_a_lease() {
    let mut bench = Bench::new(false);
    bench.step(Event::Assigned(filters(&["0.>"])));
    let mut attempts = 0;
    loop {
        bench.step(Event::CreateFailed(CreateFault::Differs));
        let actions = bench.step(Event::Inspected(Existing::Unpinned { in_flight: true }));
        if matches!(actions[..], [Action::Delete]) {
            break;
        }
        bench.after_pause();
        attempts += 1;
    }
    assert!(bench.now >= MS(2000) && attempts > 5, "{:?} {attempts}", bench.now);
    let mut idle = Bench::new(false);
    idle.step(Event::Assigned(filters(&["0.>"])));
    idle.step(Event::CreateFailed(CreateFault::Differs));
    assert!(matches!(
        idle.step(Event::Inspected(Existing::Unpinned { in_flight: false }))[..],
        [Action::Delete]
    ));
}

#[test]
fn a_static_member_never_deletes_its_durable() {
    let mut bench = Bench::pinned(true, &filters(&["0.>"]));
    assert!(matches!(bench.step(Event::Assigned(filters(&["1.>"])))[..], [Action::Drain]));
    let end = bench.step(Event::Drained);
    assert!(
        matches!(&end[..], [Action::HandOver, Action::End(Err(error))] if error.kind() == ErrorKind::ConfigChanged),
        "{end:?}"
    );
}

#[test]
fn a_drain_that_takes_too_long_is_cut_off() {
    let mut bench = Bench::pinned(false, &filters(&["0.>"]));
    bench.step(Event::Stop);
    let end = bench.after_pause();
    assert!(
        matches!(end[..], [Action::Abort, Action::HandOver, Action::End(Ok(End::Stopped))]),
        "{end:?}"
    );
}
