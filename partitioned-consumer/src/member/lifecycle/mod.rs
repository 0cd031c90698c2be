//! The life of one instance of a member: pure, `(event, now) -> actions`.
//!
//! It decides when a consumer is created, joined, drained, deleted and left. Messages are the
//! business of [`crate::order`]; this machine only tells it to begin, to drain and to stop.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

mod terms;
#[cfg(test)]
mod tests;

pub use terms::End;
pub(crate) use terms::{Action, CreateFault, Event, Existing, LifecycleConfig, Report};

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

/// See the module.
pub(crate) struct Lifecycle {
    config: LifecycleConfig,
    state: State,
    wanted: Vec<String>,
    pinned: bool,
    attempts: u32,
    broken: Option<Error>,
    mismatch_logged: bool,
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
            mismatch_logged: false,
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
        self.mismatch_logged = false;
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
                    Err(ErrorKind::StreamNotFound
                        .with("the stream that the member consumes was deleted")),
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
            // Nobody is at work with it: its filters are not ours any more, or its settings are an
            // old release's.
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
                if same_filters && !self.mismatch_logged {
                    self.mismatch_logged = true;
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

    /// Joins when a deletion that somebody else began is finished for sure: see
    /// [`super::consumer_lock`].
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
                let error = "the member's durable consumer was deleted: its position is lost, \
                             create the group anew with the delivery policy that is right for it";
                self.end(Err(ErrorKind::ConsumerDeleted.with(error)), out);
            }
            State::Attached => {
                self.pinned = false;
                // The work-queue stream still has every message; handlers may still be at work with
                // some.
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
                    // Nobody else may be left to remove the consumer, and it keeps its partitions
                    // from the others.
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
                let error = self
                    .broken
                    .take()
                    .unwrap_or_else(|| ErrorKind::ConfigChanged.with("the group changed"));
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
        "the member's consumer exists with other settings: give every instance of a member the \
         same consumer configuration, or stop the instances that have the old one",
    )
}
