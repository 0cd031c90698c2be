//! The life of one instance of a member: pure, `(event, now) -> actions`.
//!
//! It decides when a consumer is created, joined, drained, deleted and left. Messages are the business of
//! [`crate::flow`]; this machine only tells it to begin, to drain and to stop.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// Why a member stopped, when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// [`Consuming::stop`](crate::Consuming::stop) was called.
    Stopped,
    /// The group was deleted.
    GroupDeleted,
}

#[derive(Debug)]
pub(crate) enum Event {
    /// The configuration gives this member these filter subjects; none while it has no partitions.
    Assigned(Vec<String>),
    GroupDeleted,
    /// The configuration changed in a way that a running member cannot follow, or cannot be read.
    Broken(Error),
    /// The consumer exists with these filter subjects.
    Created(Vec<String>),
    CreateFailed(CreateFault),
    Inspected(Existing),
    /// Our consumer does not exist any more; whether it did until we deleted it.
    Deleted {
        by_us: bool,
    },
    /// The server says that the consumer is gone.
    ConsumerGone,
    Pinned(bool),
    Drained,
    Stop,
    Tick,
}

/// Why a consumer could not be created.
#[derive(Debug)]
pub(crate) enum CreateFault {
    /// Another member still has one of our partitions (10100).
    Overlaps,
    /// Our consumer exists with other settings (10148).
    Differs,
    /// The stream is gone (10059).
    NoStream,
    /// Anything else.
    Other(Error),
}

/// The consumer of our name, as the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    Absent,
    /// Nobody is pinned. Somebody may be at work all the same, with messages in flight, and not know yet: a restart of the
    /// broker and a step-down take the pin at once, while its holder's lease goes on.
    Unpinned {
        in_flight: bool,
    },
    /// Another instance of this member is at work; whether it has the filters that we want.
    Pinned {
        same_filters: bool,
    },
    Unknown,
}

#[derive(Debug)]
pub(crate) enum Action {
    Create(Vec<String>),
    Inspect(Vec<String>),
    Delete,
    /// Begin to pull from the consumer with these filters.
    Attach,
    Drain,
    /// Cancel handlers, drop what is buffered, pull no more.
    Abort,
    /// Give the buffered messages back and the pin up, then abort: another instance goes on at once.
    HandOver,
    Report(Report),
    End(Result<End, Error>),
}

/// What the machine tells the user about.
#[derive(Debug)]
pub(crate) enum Report {
    Joined { filters: usize },
    Waiting,
    Retrying(Error),
}

#[derive(Debug, PartialEq)]
enum State {
    /// No partitions.
    Out,
    Creating,
    Inspecting,
    Deleting(Deleter),
    /// Waiting to try again.
    Pausing {
        until: Duration,
    },
    Attached,
    Draining {
        then: Then,
        deadline: Duration,
    },
    Ended,
}

/// As what this instance deletes the member's consumer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deleter {
    /// It was the pinned one, so nobody else deletes.
    Holder,
    /// Nobody was at work with it; several may have seen that.
    Cleaner,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Rejoin,
    /// As `Rejoin`, after somebody else deleted the consumer.
    RejoinLater,
    Stop,
    Delete,
    Break,
}

/// Settings of a lifecycle.
#[derive(Clone, Debug)]
pub(crate) struct LifecycleConfig {
    /// A static member: its consumer is durable, is never deleted here, and no change can be followed.
    pub(crate) fixed: bool,
    /// How long running handlers may take before they are cancelled.
    pub(crate) drain_timeout: Duration,
    /// How long a holder that lost its pin may go on without knowing.
    pub(crate) lease: Duration,
    /// Seed of the pauses between attempts.
    pub(crate) seed: u64,
}

/// See the module.
pub(crate) struct Lifecycle {
    config: LifecycleConfig,
    state: State,
    wanted: Vec<String>,
    pinned: bool,
    attempts: u32,
    broken: Option<Error>,
    mismatch_told: bool,
    unpinned_since: Option<Duration>,
    random: fastrand::Rng,
}

/// At the least what the broker takes for a deletion, many times over.
const OVERLAP_PAUSE_MS: std::ops::RangeInclusive<u64> = 50..=250;
const FAULT_PAUSE_MS: u64 = 250;
const FAULT_PAUSE_MAX_MS: u64 = 2_000;

impl Lifecycle {
    pub(crate) fn new(config: LifecycleConfig) -> Self {
        let random = fastrand::Rng::with_seed(config.seed);
        Self {
            config,
            state: State::Out,
            wanted: Vec::new(),
            pinned: false,
            attempts: 0,
            broken: None,
            mismatch_told: false,
            unpinned_since: None,
            random,
        }
    }

    pub(crate) fn wake_at(&self) -> Option<Duration> {
        match self.state {
            State::Pausing { until } => Some(until),
            State::Draining { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    pub(crate) fn step(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) {
        if self.state == State::Ended {
            return;
        }
        match event {
            Event::Assigned(filters) => self.assigned(filters, now, out),
            Event::GroupDeleted => self.finish(Then::Delete, now, out),
            Event::Broken(error) => {
                self.broken.get_or_insert(error);
                self.finish(Then::Break, now, out);
            }
            Event::Stop => self.finish(Then::Stop, now, out),
            Event::Created(filters) => self.created(&filters, out),
            Event::CreateFailed(fault) => self.create_failed(fault, now, out),
            Event::Inspected(existing) => self.inspected(existing, now, out),
            Event::Deleted { by_us } => self.deleted(by_us, now, out),
            Event::ConsumerGone => self.consumer_gone(now, out),
            Event::Pinned(pinned) => self.pinned = pinned,
            Event::Drained => self.drained(now, out),
            Event::Tick => self.tick(now, out),
        }
    }

    fn assigned(&mut self, filters: Vec<String>, now: Duration, out: &mut Vec<Action>) {
        if self.wanted == filters {
            return;
        }
        self.wanted = filters;
        self.mismatch_told = false;
        match self.state {
            State::Out => self.join(out),
            State::Pausing { .. } => self.pause(now, 0),
            State::Attached if self.config.fixed => {
                self.broken.get_or_insert_with(|| {
                    ErrorKind::ConfigChanged.with("the group's members or filters changed")
                });
                self.finish(Then::Break, now, out);
            }
            State::Attached => {
                self.drain(Then::Rejoin, now, out);
            }
            // Under way already; the answer is judged by what is wanted then.
            _ => {}
        }
    }

    /// Begins to take part with what is wanted now.
    fn join(&mut self, out: &mut Vec<Action>) {
        if self.wanted.is_empty() {
            self.state = State::Out;
            out.push(Action::Report(Report::Waiting));
            return;
        }
        self.state = State::Creating;
        out.push(Action::Create(self.wanted.clone()));
    }

    fn created(&mut self, filters: &[String], out: &mut Vec<Action>) {
        if self.state != State::Creating {
            return;
        }
        if self.wanted != filters {
            // The assignment changed while the request was under way.
            self.inspect(out);
            return;
        }
        self.attempts = 0;
        self.state = State::Attached;
        out.push(Action::Attach);
        out.push(Action::Report(Report::Joined { filters: self.wanted.len() }));
    }

    fn create_failed(&mut self, fault: CreateFault, now: Duration, out: &mut Vec<Action>) {
        if self.state != State::Creating {
            return;
        }
        match fault {
            CreateFault::Overlaps => self.pause_randomly(now),
            CreateFault::Differs if self.config.fixed => self.end(Err(mismatch()), out),
            CreateFault::Differs => self.inspect(out),
            CreateFault::NoStream => {
                self.end(
                    Err(ErrorKind::StreamNotFound.with("the stream that the member consumes was deleted")),
                    out,
                );
            }
            CreateFault::Other(error) => {
                out.push(Action::Report(Report::Retrying(error)));
                self.attempts += 1;
                let pause = (FAULT_PAUSE_MS << self.attempts.min(4)).min(FAULT_PAUSE_MAX_MS);
                let pause = self.random.u64(pause / 2..=pause);
                self.pause(now, pause);
            }
        }
    }

    fn inspect(&mut self, out: &mut Vec<Action>) {
        self.state = State::Inspecting;
        out.push(Action::Inspect(self.wanted.clone()));
    }

    fn inspected(&mut self, existing: Existing, now: Duration, out: &mut Vec<Action>) {
        if self.state != State::Inspecting {
            return;
        }
        match existing {
            Existing::Absent => self.join_later(now, out),
            // Nobody is at work with it: its filters are not ours any more, or its settings are an old release's.
            Existing::Unpinned { in_flight: false } => self.delete(Deleter::Cleaner, out),
            Existing::Unpinned { in_flight: true } => {
                let since = *self.unpinned_since.get_or_insert(now);
                if now.saturating_sub(since) >= self.config.lease {
                    self.delete(Deleter::Cleaner, out)
                } else {
                    self.pause_randomly(now)
                }
            }
            Existing::Pinned { same_filters } => {
                self.unpinned_since = None;
                if self.wanted.is_empty() {
                    self.join(out);
                    return;
                }
                if same_filters && !self.mismatch_told {
                    self.mismatch_told = true;
                    out.push(Action::Report(Report::Retrying(mismatch())));
                }
                self.pause_randomly(now);
            }
            Existing::Unknown => self.pause_randomly(now),
        }
    }

    fn delete(&mut self, deleter: Deleter, out: &mut Vec<Action>) {
        self.unpinned_since = None;
        self.state = State::Deleting(deleter);
        out.push(Action::Delete);
    }

    fn deleted(&mut self, by_us: bool, now: Duration, out: &mut Vec<Action>) {
        match self.state {
            State::Deleting(Deleter::Holder) if by_us => self.join(out),
            // Somebody else, or the broker itself, may be at it: it says so before it has finished.
            State::Deleting(_) => self.join_later(now, out),
            _ => {}
        }
    }

    /// Joins when a deletion that somebody else began is finished for sure: see [`crate::maker`].
    fn join_later(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.wanted.is_empty() {
            self.join(out);
        } else {
            self.pause_randomly(now);
        }
    }

    fn consumer_gone(&mut self, now: Duration, out: &mut Vec<Action>) {
        match self.state {
            State::Attached if self.config.fixed => {
                out.push(Action::Abort);
                let error = "the member's durable consumer was deleted: its position is lost, create the group anew \
                             with the delivery policy that is right for it";
                self.end(Err(ErrorKind::ConsumerDeleted.with(error)), out);
            }
            State::Attached => {
                self.pinned = false;
                // The work-queue stream still has every message; handlers may still be at work with some.
                self.drain(Then::RejoinLater, now, out);
                out.push(Action::Abort);
            }
            State::Draining { then: ref mut then @ Then::Rejoin, .. } => {
                self.pinned = false;
                *then = Then::RejoinLater;
            }
            _ => {}
        }
    }

    fn drain(&mut self, then: Then, now: Duration, out: &mut Vec<Action>) {
        self.state = State::Draining { then, deadline: now + self.config.drain_timeout };
        out.push(Action::Drain);
    }

    fn drained(&mut self, now: Duration, out: &mut Vec<Action>) {
        let State::Draining { then, .. } = self.state else { return };
        let pinned = std::mem::take(&mut self.pinned);
        match then {
            Then::Rejoin => {
                out.push(Action::Abort);
                if pinned {
                    self.delete(Deleter::Holder, out);
                } else if self.wanted.is_empty() {
                    // Nobody else may be left to remove the consumer, and it keeps its partitions from the others.
                    self.inspect(out);
                } else {
                    self.join(out);
                }
            }
            Then::RejoinLater => {
                out.push(Action::Abort);
                self.join_later(now, out);
            }
            Then::Stop => {
                out.push(if pinned { Action::HandOver } else { Action::Abort });
                self.end(Ok(End::Stopped), out);
            }
            Then::Delete => {
                out.push(Action::Abort);
                self.end(Ok(End::GroupDeleted), out);
            }
            Then::Break => {
                out.push(if pinned { Action::HandOver } else { Action::Abort });
                let error =
                    self.broken.take().unwrap_or_else(|| ErrorKind::ConfigChanged.with("the group changed"));
                self.end(Err(error), out);
            }
        }
    }

    /// Leaves for good, after the running handlers.
    fn finish(&mut self, then: Then, now: Duration, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Draining { then: planned, .. } => *planned = then,
            State::Attached => self.drain(then, now, out),
            _ => {
                self.state = State::Draining { then, deadline: now };
                self.drained(now, out);
            }
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        match self.state {
            State::Pausing { until } if now >= until => self.join(out),
            State::Draining { deadline, .. } if now >= deadline => {
                out.push(Action::Abort);
                self.drained(now, out);
            }
            _ => {}
        }
    }

    fn pause_randomly(&mut self, now: Duration) {
        let pause = self.random.u64(OVERLAP_PAUSE_MS);
        self.pause(now, pause);
    }

    fn pause(&mut self, now: Duration, millis: u64) {
        self.state = State::Pausing { until: now + Duration::from_millis(millis) };
    }

    fn end(&mut self, end: Result<End, Error>, out: &mut Vec<Action>) {
        self.state = State::Ended;
        out.push(Action::End(end));
    }
}

fn mismatch() -> Error {
    ErrorKind::ConsumerMismatch.with(
        "the member's consumer exists with other settings: give every instance of a member the same consumer \
         configuration, or stop the instances that have the old one",
    )
}

#[cfg(test)]
mod tests {
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
}
