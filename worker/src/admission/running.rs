//! The handlers that run: which of them callers should be told about, which have overrun, which to
//! cancel.
//!
//! Most handlers end within a few milliseconds, so a request costs a push to a queue here and
//! nothing else: no timer, no map. One that still runs after a while
//! ([`RunningHandlers::accepted_after`]) is moved to the short list of long ones.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::Subject;

/// How long a handler is left alone that its deadline does not end.
const UNBOUND_LOOK: Duration = Duration::from_secs(1);

/// A handler that was started somewhere.
pub(crate) trait Handler {
    /// Whether it has ended by itself.
    fn is_finished(&self) -> bool;
    /// Drops it at its next await.
    fn abort(&self);
}

/// The handlers of one reader. The caller gives the time, so this is pure.
#[derive(Debug)]
pub(crate) struct RunningHandlers<H> {
    accepted_after: Duration,
    /// Started lately, oldest first.
    recent: VecDeque<Entry<H>>,
    /// What is watched: those that were reported as accepted, and those with a deadline before
    /// that.
    long: Vec<Entry<H>>,
}

#[derive(Debug)]
struct Entry<H> {
    started: Instant,
    deadline: Instant,
    caller: Caller,
    accepted: bool,
    handler: H,
}

/// Who waits for a handler.
#[derive(Debug)]
pub(crate) enum Caller {
    /// Somebody who is answered by the broker.
    Broker {
        /// Where it is answered.
        reply: Subject,
        /// Where its sender hears the answer, if the broker put another subject in the place of
        /// that one.
        asked_at: Option<Box<str>>,
    },
    /// The gateway of a tunnel, which knows who has its requests without being told.
    Tunnel {
        /// Which one.
        tunnel: u64,
        /// The request on it.
        key: u64,
    },
    /// Nobody: it is a request that a stream has stored.
    Stream,
}

/// What a look at the handlers brought up.
#[derive(Debug)]
pub(crate) struct Tick<H> {
    /// Where to say that a handler is at work.
    pub(crate) accepted: Vec<Subject>,
    /// The handlers that were dropped because their deadline has passed.
    pub(crate) overran: Vec<H>,
}

impl Caller {
    fn is_asked_at(&self, subject: &str) -> bool {
        match self {
            Self::Broker { reply, asked_at } => {
                asked_at.as_deref().unwrap_or(reply.as_str()) == subject
            }
            Self::Tunnel { .. } | Self::Stream => false,
        }
    }
}

impl<H: Handler> RunningHandlers<H> {
    pub(crate) fn new(accepted_after: Duration) -> Self {
        Self { accepted_after, recent: VecDeque::new(), long: Vec::new() }
    }

    /// Takes note of a handler that was started.
    pub(crate) fn started(
        &mut self,
        started: Instant,
        deadline: Instant,
        caller: Caller,
        handler: H,
    ) {
        // Keeps the queue as short as what really runs, at constant cost.
        for _ in 0..2 {
            if self.recent.front().is_some_and(|oldest| oldest.handler.is_finished()) {
                self.recent.pop_front();
            }
        }
        let entry = Entry { started, deadline, caller, accepted: false, handler };
        if deadline < started + self.accepted_after {
            self.long.push(entry);
        } else {
            self.recent.push_back(entry);
        }
    }

    /// Looks for handlers that became long ones and for those past their deadline, unless that does
    /// not end them (`is_unbound`). To be called every few milliseconds while there are any.
    pub(crate) fn tick(&mut self, now: Instant, is_unbound: impl Fn(&H) -> bool) -> Tick<H> {
        while self.recent.front().is_some_and(|oldest| {
            oldest.handler.is_finished() || oldest.started + self.accepted_after <= now
        }) {
            self.long.extend(self.recent.pop_front());
        }
        let mut tick = Tick { accepted: Vec::new(), overran: Vec::new() };
        let mut index = 0;
        while let Some(entry) = self.long.get_mut(index) {
            if entry.handler.is_finished() {
                self.long.swap_remove(index);
                continue;
            }
            if entry.deadline <= now && is_unbound(&entry.handler) {
                entry.deadline = now + UNBOUND_LOOK;
            }
            if entry.deadline <= now {
                entry.handler.abort();
                tick.overran.push(self.long.swap_remove(index).handler);
                continue;
            }
            if !entry.accepted && entry.started + self.accepted_after <= now {
                entry.accepted = true;
                if let Caller::Broker { reply, .. } = &entry.caller {
                    tick.accepted.push(reply.clone());
                }
            }
            index += 1;
        }
        tick
    }

    /// Drops the handler whose sender hears the answer at `reply`, and gives it if it was at work.
    pub(crate) fn cancel(&mut self, reply: &str) -> Option<H> {
        self.cancel_of(|caller| caller.is_asked_at(reply))
    }

    /// Drops the handler of a request of a tunnel, and gives it if it was at work.
    pub(crate) fn cancel_on_tunnel(&mut self, tunnel: u64, key: u64) -> Option<H> {
        let asked = (tunnel, key);
        self.cancel_of(
            |caller| matches!(caller, Caller::Tunnel { tunnel, key } if (*tunnel, *key) == asked),
        )
    }

    fn cancel_of(&mut self, is_meant: impl Fn(&Caller) -> bool) -> Option<H> {
        let found = self.long.iter().position(|entry| is_meant(&entry.caller));
        let entry = match found {
            Some(index) => self.long.swap_remove(index),
            None => {
                let found = self.recent.iter().position(|entry| is_meant(&entry.caller));
                self.recent.remove(found?)?
            }
        };
        let at_work = !entry.handler.is_finished();
        entry.handler.abort();
        at_work.then_some(entry.handler)
    }

    /// Drops all of them, and gives those that were at work.
    pub(crate) fn abort_all(&mut self) -> Vec<H> {
        let entries = self.recent.drain(..).chain(self.long.drain(..));
        let at_work: Vec<H> =
            entries.map(|entry| entry.handler).filter(|handler| !handler.is_finished()).collect();
        for handler in &at_work {
            handler.abort();
        }
        at_work
    }

    /// Whether there is nothing to look after.
    pub(crate) fn is_empty(&self) -> bool {
        self.recent.is_empty() && self.long.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Fake {
        finished: Rc<Cell<bool>>,
        unbound: Rc<Cell<bool>>,
        aborted: Rc<Cell<bool>>,
    }

    impl Handler for Fake {
        fn is_finished(&self) -> bool {
            self.finished.get()
        }

        fn abort(&self) {
            self.aborted.set(true);
        }
    }

    const ACCEPTED_AFTER: Duration = Duration::from_millis(50);

    struct Scene {
        running: RunningHandlers<Fake>,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            Self { running: RunningHandlers::new(ACCEPTED_AFTER), start: Instant::now() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn start(&mut self, at_ms: u64, deadline_ms: u64, reply: &str) -> Fake {
            let fake = Fake::default();
            let (started, deadline) = (self.at(at_ms), self.at(deadline_ms));
            let caller = Caller::Broker { reply: reply.into(), asked_at: None };
            self.running.started(started, deadline, caller, fake.clone());
            fake
        }

        fn tick(&mut self, at_ms: u64) -> (Vec<String>, usize) {
            let tick = self.running.tick(self.at(at_ms), |fake| fake.unbound.get());
            (tick.accepted.iter().map(ToString::to_string).collect(), tick.overran.len())
        }
    }

    #[test]
    fn a_handler_that_takes_its_time_is_reported_once() {
        let mut scene = Scene::new();
        scene.start(0, 10_000, "a");
        let quick = scene.start(10, 10_000, "b");
        assert_eq!(scene.tick(49), (vec![], 0));
        assert_eq!(scene.tick(50), (vec!["a".to_owned()], 0));
        quick.finished.set(true);
        assert_eq!(scene.tick(100), (vec![], 0));
    }

    #[test]
    fn a_handler_past_its_deadline_is_dropped() {
        let mut scene = Scene::new();
        let (long, short) = (scene.start(0, 200, "a"), scene.start(0, 20, "b"));
        assert_eq!(scene.tick(19), (vec![], 0));
        assert_eq!(scene.tick(20), (vec![], 1));
        assert!(short.aborted.get() && !long.aborted.get());
        assert_eq!(scene.tick(199).1, 0);
        assert_eq!(scene.tick(200).1, 1);
        assert!(long.aborted.get() && scene.running.is_empty());
    }

    #[test]
    fn a_stream_goes_on_past_its_deadline_and_is_ended_with_the_others() {
        let mut scene = Scene::new();
        let stream = scene.start(0, 200, "a");
        stream.unbound.set(true);
        assert_eq!(scene.tick(60).0, ["a"]);
        assert_eq!((scene.tick(200).1, scene.tick(100_000).1), (0, 0));
        assert_eq!(scene.running.abort_all().len(), 1);
        assert!(stream.aborted.get());
    }

    #[test]
    fn cancel_finds_recent_and_long_ones() {
        let mut scene = Scene::new();
        let long = scene.start(0, 10_000, "a");
        scene.tick(60);
        let recent = scene.start(70, 10_000, "b");
        assert!(scene.running.cancel("a").is_some() && scene.running.cancel("b").is_some());
        assert!(long.aborted.get() && recent.aborted.get());
        assert!(scene.running.cancel("a").is_none() && scene.running.cancel("c").is_none());
        assert!(scene.running.is_empty());
    }

    #[test]
    fn between_accounts_a_handler_is_known_by_the_subject_that_its_sender_knows() {
        let mut scene = Scene::new();
        let (now, later) = (scene.at(0), scene.at(10_000));
        for (reply, asked_at) in
            [("_R_.x.1", "_INBOX_apiproxy.s.1"), ("_R_.x.2", "_INBOX_apiproxy.s.2")]
        {
            let caller = Caller::Broker { reply: reply.into(), asked_at: Some(asked_at.into()) };
            scene.running.started(now, later, caller, Fake::default());
        }
        assert!(scene.running.cancel("_R_.x.1").is_none());
        assert!(scene.running.cancel("_INBOX_apiproxy.s.2").is_some());
        assert_eq!(scene.tick(60).0, ["_R_.x.1"], "and accepted where the broker listens");
    }

    #[test]
    fn a_handler_of_a_tunnel_is_known_by_its_key_and_not_reported() {
        let mut scene = Scene::new();
        let (now, later) = (scene.at(0), scene.at(10_000));
        for tunnel in [1, 2] {
            let caller = Caller::Tunnel { tunnel, key: 7 };
            scene.running.started(now, later, caller, Fake::default());
        }
        assert_eq!(scene.tick(60).0, Vec::<String>::new());
        assert!(scene.running.cancel("7").is_none());
        assert!(scene.running.cancel_on_tunnel(2, 8).is_none());
        assert!(scene.running.cancel_on_tunnel(2, 7).is_some());
        assert!(scene.running.cancel_on_tunnel(2, 7).is_none());
        assert_eq!(scene.running.abort_all().len(), 1);
    }

    #[test]
    fn cancelling_what_has_ended_is_no_cancellation() {
        let mut scene = Scene::new();
        scene.start(0, 10_000, "a").finished.set(true);
        assert!(scene.running.cancel("a").is_none());
    }

    #[test]
    fn the_queue_does_not_grow_with_handlers_that_have_ended() {
        let mut scene = Scene::new();
        for request in 0..10_000 {
            scene.start(request / 1_000, 10_000, "a").finished.set(true);
        }
        assert!(scene.running.recent.len() <= 2, "{}", scene.running.recent.len());
    }

    #[test]
    fn all_can_be_dropped_at_once() {
        let mut scene = Scene::new();
        let fakes = [scene.start(0, 20, "a"), scene.start(0, 10_000, "b")];
        assert_eq!(scene.running.abort_all().len(), 2);
        assert!(fakes.iter().all(|fake| fake.aborted.get()) && scene.running.is_empty());
    }
}
