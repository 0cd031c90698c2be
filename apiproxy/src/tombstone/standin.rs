//! When a gateway stands in for a subject, whom it tells so, and when it goes: pure.
//!
//! A worker that is told leaves at once. So nobody is told before the broker has taken the
//! subscription in, nor from the moment on at which it is given up; and a member that was seen
//! before somebody asked may be the very one that leaves.

/// Workers that may wait to be told; more ask again, or leave without a word, as they do without a
/// gateway.
const MOST_WAITING: usize = 64;

/// One subject and queue group; `A` is who asks, and how to tell them.
#[derive(Debug)]
pub(super) struct StandIn<A> {
    state: State,
    waiting: Vec<A>,
    /// The newest watch for members; what an older one has seen does not count.
    watch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The queue group is being joined.
    Joining,
    /// What is sent is answered.
    Standing,
    /// The queue group is being left.
    Leaving,
    /// It is over.
    Ended,
}

/// What happens.
#[derive(Debug)]
pub(super) enum Event<A> {
    /// A worker that leaves asks for it.
    Asked(A),
    /// The broker has taken the subscription in.
    Joined,
    /// It has not.
    NotJoined,
    /// This watch has seen a member, or its time is up.
    Back(u64),
    /// Its place is wanted for another.
    Superseded,
    /// The queue group is left, and all that came by then is answered.
    Left,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<A> {
    /// Join the queue group.
    Join,
    /// Begin this watch for members in place of the one before.
    Watch(u64),
    /// Tell the worker that it may go.
    Confirm(A),
    /// Leave the queue group.
    Leave,
    /// Forget the place.
    End,
}

impl<A> StandIn<A> {
    /// Begins because somebody asks; the first thing to do is to [`Join`](Action::Join).
    pub(super) fn new(asker: A) -> Self {
        Self { state: State::Joining, waiting: vec![asker], watch: 0 }
    }

    /// Says what to do about an event.
    pub(super) fn on(&mut self, event: Event<A>) -> Vec<Action<A>> {
        match (self.state, event) {
            (State::Joining | State::Leaving, Event::Asked(asker)) => {
                if self.waiting.len() < MOST_WAITING {
                    self.waiting.push(asker);
                }
                Vec::new()
            }
            (State::Joining, Event::Joined) => {
                self.state = State::Standing;
                let mut actions = vec![self.watch_anew()];
                actions.extend(self.waiting.drain(..).map(Action::Confirm));
                actions
            }
            (State::Standing, Event::Asked(asker)) => {
                vec![self.watch_anew(), Action::Confirm(asker)]
            }
            (State::Standing, Event::Back(watch)) if watch == self.watch => {
                self.state = State::Leaving;
                vec![Action::Leave]
            }
            (State::Standing, Event::Superseded) => {
                self.state = State::Leaving;
                vec![Action::Leave]
            }
            (State::Leaving, Event::Left) if !self.waiting.is_empty() => {
                self.state = State::Joining;
                vec![Action::Join]
            }
            // Also when it ends by itself, as with the connection.
            (State::Joining, Event::NotJoined)
            | (State::Standing | State::Leaving, Event::Left) => {
                self.state = State::Ended;
                vec![Action::End]
            }
            _ => Vec::new(),
        }
    }

    /// Whether it stands, and is not about to leave.
    pub(super) fn stands(&self) -> bool {
        self.state == State::Standing
    }

    fn watch_anew(&mut self) -> Action<A> {
        self.watch += 1;
        Action::Watch(self.watch)
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    #[test]
    fn who_asks_while_it_leaves_is_told_once_it_stands_again() {
        let mut standin = StandIn::new("a");
        assert_eq!(standin.on(Event::Joined), [Action::Watch(1), Action::Confirm("a")]);
        assert_eq!(standin.on(Event::Back(1)), [Action::Leave]);
        assert_eq!(standin.on(Event::Asked("b")), []);
        assert_eq!(standin.on(Event::Left), [Action::Join]);
        assert_eq!(standin.on(Event::Joined), [Action::Watch(2), Action::Confirm("b")]);
    }

    #[test]
    fn a_member_that_was_seen_before_somebody_asked_is_no_reason_to_go() {
        let mut standin = StandIn::new("a");
        standin.on(Event::Joined);
        assert_eq!(standin.on(Event::Asked("b")), [Action::Watch(2), Action::Confirm("b")]);
        assert_eq!(standin.on(Event::Back(1)), []);
        assert_eq!(standin.on(Event::Back(2)), [Action::Leave]);
        assert_eq!(standin.on(Event::Left), [Action::End]);
    }

    #[test]
    fn one_whose_place_is_wanted_leaves_and_comes_again_for_whoever_asks_meanwhile() {
        let mut standin = StandIn::new("a");
        assert_eq!(standin.on(Event::Superseded), [], "nobody was told yet");
        assert!(!standin.stands());
        standin.on(Event::Joined);
        assert!(standin.stands());
        assert_eq!(standin.on(Event::Superseded), [Action::Leave]);
        assert!(!standin.stands());
        assert_eq!(standin.on(Event::Superseded), []);
        assert_eq!(standin.on(Event::Asked("b")), []);
        assert_eq!(standin.on(Event::Left), [Action::Join]);
    }

    #[test]
    fn nobody_is_told_where_the_broker_says_nothing() {
        let mut standin = StandIn::new("a");
        standin.on(Event::Asked("b"));
        assert_eq!(standin.on(Event::NotJoined), [Action::End]);
        assert_eq!(standin.on(Event::Asked("c")), []);
    }

    /// The broker's and the workers' side of it, drawn: whoever is told must be answered for from
    /// then on.
    #[test]
    fn whoever_is_told_is_answered_for_whatever_the_order() {
        for seed in 0..2_000 {
            let mut random = Rng::with_seed(seed);
            let mut standin = StandIn::new(0);
            // Whether the broker has the subscription, what is under way, and what watches have
            // seen.
            let (mut subscribed, mut joining, mut leaving) = (false, true, false);
            let (mut watch, mut seen) = (0, Vec::new());
            let (mut asked, mut told) = (1, 0);
            for _ in 0..200 {
                let event = match random.u8(0..7) {
                    0 | 1 => {
                        asked += 1;
                        Event::Asked(asked)
                    }
                    2 if joining => {
                        joining = false;
                        subscribed = random.u8(0..8) > 0;
                        if subscribed { Event::Joined } else { Event::NotJoined }
                    }
                    3 if leaving => {
                        leaving = false;
                        Event::Left
                    }
                    4 if watch > 0 => {
                        seen.push(watch);
                        continue;
                    }
                    6 => Event::Superseded,
                    // It is heard of later, when another may be the newest.
                    5 if !seen.is_empty() => {
                        Event::Back(seen.swap_remove(random.usize(..seen.len())))
                    }
                    _ => continue,
                };
                for action in standin.on(event) {
                    match action {
                        Action::Join => {
                            assert!(!subscribed && !joining);
                            joining = true;
                        }
                        Action::Watch(number) => watch = number,
                        Action::Confirm(_) => {
                            assert!(subscribed, "run {seed}: told while nobody stands in");
                            told += 1;
                        }
                        Action::Leave => {
                            assert!(subscribed && !leaving);
                            (subscribed, leaving) = (false, true);
                        }
                        Action::End => {
                            assert!(!joining && !leaving);
                            asked += 1;
                            (standin, joining, subscribed, watch) =
                                (StandIn::new(asked), true, false, 0);
                            seen.clear();
                        }
                    }
                }
            }
            assert!(told <= asked);
        }
    }
}
