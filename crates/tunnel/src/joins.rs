//! Which connections are tunnels: those whose secret came in an answer by the broker. Pure.
//!
//! A worker chooses a secret, dials, shows it on the connection, and says it in its answer. Which
//! of the two the gateway hears first is open, so either waits for the other, not for long and not
//! in any number. A secret makes one connection a tunnel, once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natsway_wire::offer::TunnelSecret;

/// How long a secret that was said waits for its connection.
pub const EXPECTED_FOR: Duration = Duration::from_secs(10);
/// How long a connection waits for its secret to be said: anybody may dial, so not long.
pub const EARLY_FOR: Duration = Duration::from_secs(3);

/// How long the secret of a tunnel that ended is known for that. Longer than it takes its worker to
/// notice.
pub const ENDED_FOR: Duration = Duration::from_secs(30);

/// The secrets and connections of one thread of a gateway.
#[derive(Debug)]
pub struct Joins<C> {
    entries: HashMap<TunnelSecret, Entry<C>>,
    limits: JoinLimits,
    /// How many secrets that were said, tunnels among them, each subject has.
    by_subject: HashMap<Arc<str>, usize>,
    open: usize,
    expected: usize,
    early: usize,
}

/// How many there may be of each.
#[derive(Clone, Copy, Debug)]
pub struct JoinLimits {
    /// Tunnels.
    pub open: usize,
    /// Tunnels whose secrets were said for one subject, and secrets that are to become such: who
    /// answers for one service leaves some to others.
    pub of_one: usize,
    /// Secrets that were said and whose connection is not there.
    pub expected: usize,
    /// Connections whose secret was not said.
    pub early: usize,
}

impl JoinLimits {
    /// Returns the usual limits of a thread with so many tunnels: three quarters of them are what
    /// one subject may have.
    pub fn of(open: usize) -> Self {
        Self { open, of_one: open - open / 4, expected: open, early: open.min(256) }
    }
}

#[derive(Debug)]
enum Entry<C> {
    Expected { until: Instant, subject: Arc<str> },
    Early { connection: C, until: Instant },
    Open { subject: Arc<str> },
    Ended { until: Instant },
}

/// What became of a secret that was said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<C> {
    /// Its tunnel is open.
    Open,
    /// Its connection was waiting, and is a tunnel now.
    Admitted(C),
    /// Its connection is not there yet.
    Expected,
    /// Its tunnel has ended, and there will be none.
    Ended,
    /// There are as many as there may be, in all or [of its subject](Joins::is_full_of).
    Full,
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived<C> {
    /// It is a tunnel.
    Admitted(C),
    /// Its secret was not said yet. `instead_of` had waited longest, and does not any more.
    Early {
        /// To be closed.
        instead_of: Option<C>,
    },
    /// Another connection showed the secret before.
    Twice(C),
    /// There are as many tunnels as there may be. Its secret is of no use any more.
    Full(C),
}

impl<C> Joins<C> {
    /// Returns one that knows nobody.
    pub fn new(limits: JoinLimits) -> Self {
        let (entries, by_subject) = Default::default();
        Self { entries, limits, by_subject, open: 0, expected: 0, early: 0 }
    }

    /// Returns how many tunnels are open.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Returns how many connections and secrets wait for each other.
    pub fn waiting(&self) -> usize {
        self.expected + self.early
    }

    /// Whether there are as many tunnels as there may be.
    pub fn is_full(&self) -> bool {
        self.open >= self.limits.open
    }

    /// Whether a subject has as many as one may have.
    pub fn is_full_of(&self, subject: &str) -> bool {
        self.by_subject.get(subject).is_some_and(|own| *own >= self.limits.of_one)
    }

    /// Whether the secret of a tunnel was said for this subject.
    pub fn is_of(&self, secret: TunnelSecret, subject: &str) -> bool {
        let entry = self.entries.get(&secret);
        matches!(entry, Some(Entry::Open { subject: own }) if **own == *subject)
    }

    /// Whether a secret waits for its connection.
    pub fn is_expected(&self, secret: TunnelSecret) -> bool {
        matches!(self.entries.get(&secret), Some(Entry::Expected { .. }))
    }

    /// Takes note of a secret that came in an answer for a subject.
    pub fn said(&mut self, secret: TunnelSecret, subject: &str, now: Instant) -> Said<C> {
        match self.entries.get(&secret) {
            Some(Entry::Open { .. }) => Said::Open,
            Some(Entry::Ended { .. }) => Said::Ended,
            Some(Entry::Expected { .. }) => Said::Expected,
            Some(Entry::Early { .. }) if self.is_full() || self.is_full_of(subject) => Said::Full,
            Some(Entry::Early { .. }) => {
                let subject = self.count(subject);
                let Some(Entry::Early { connection, .. }) =
                    self.entries.insert(secret, Entry::Open { subject })
                else {
                    unreachable!("it was just seen")
                };
                self.early -= 1;
                self.open += 1;
                Said::Admitted(connection)
            }
            None if self.expected >= self.limits.expected || self.is_full_of(subject) => Said::Full,
            None => {
                let (subject, until) = (self.count(subject), now + EXPECTED_FOR);
                self.entries.insert(secret, Entry::Expected { until, subject });
                self.expected += 1;
                Said::Expected
            }
        }
    }

    /// Takes note of a connection on which a secret was shown.
    pub fn arrived(&mut self, secret: TunnelSecret, connection: C, now: Instant) -> Arrived<C> {
        match self.entries.get(&secret) {
            Some(Entry::Open { .. } | Entry::Early { .. } | Entry::Ended { .. }) => {
                Arrived::Twice(connection)
            }
            Some(Entry::Expected { subject, .. }) if self.is_full() => {
                self.uncount(&Arc::clone(subject));
                // Nobody waits for it: its worker may come with another one.
                self.entries.insert(secret, Entry::Ended { until: now + ENDED_FOR });
                self.expected -= 1;
                Arrived::Full(connection)
            }
            Some(Entry::Expected { subject, .. }) => {
                let subject = Arc::clone(subject);
                self.entries.insert(secret, Entry::Open { subject });
                self.expected -= 1;
                self.open += 1;
                Arrived::Admitted(connection)
            }
            None => {
                let instead_of = match self.early >= self.limits.early {
                    true => self.take_oldest_early(),
                    false => None,
                };
                let until = now + EARLY_FOR;
                self.entries.insert(secret, Entry::Early { connection, until });
                self.early += 1;
                Arrived::Early { instead_of }
            }
        }
    }

    /// Takes note that a tunnel ended. Its secret is of no use any more, and known for that for a
    /// while: its worker may still name it.
    pub fn ended(&mut self, secret: TunnelSecret, now: Instant) {
        if let Some(Entry::Open { subject }) = self.entries.get(&secret) {
            self.uncount(&Arc::clone(subject));
            self.entries.insert(secret, Entry::Ended { until: now + ENDED_FOR });
            self.open -= 1;
        }
    }

    /// Whether a secret's tunnel is open, or may come to be.
    pub fn is_to_come(&self, secret: TunnelSecret) -> bool {
        !matches!(self.entries.get(&secret), None | Some(Entry::Ended { .. }))
    }

    /// Forgets what has waited too long; returns the connections among that, to be closed.
    pub fn expire(&mut self, now: Instant) -> Vec<C> {
        let is_over = |entry: &Entry<C>| match entry {
            Entry::Expected { until, .. } | Entry::Early { until, .. } | Entry::Ended { until } => {
                *until <= now
            }
            Entry::Open { .. } => false,
        };
        let mut given_up = Vec::new();
        let over: Vec<_> = self.entries.extract_if(|_, entry| is_over(entry)).collect();
        for (_, entry) in over {
            match entry {
                Entry::Early { connection, .. } => {
                    self.early -= 1;
                    given_up.push(connection);
                }
                Entry::Expected { subject, .. } => {
                    self.uncount(&subject);
                    self.expected -= 1;
                }
                Entry::Ended { .. } => {}
                Entry::Open { .. } => unreachable!("a tunnel does not wait"),
            }
        }
        given_up
    }

    /// Counts one more of a subject.
    fn count(&mut self, subject: &str) -> Arc<str> {
        let name = match self.by_subject.get_key_value(subject) {
            Some((name, _)) => Arc::clone(name),
            None => subject.into(),
        };
        *self.by_subject.entry(Arc::clone(&name)).or_default() += 1;
        name
    }

    fn uncount(&mut self, subject: &Arc<str>) {
        if let Some(own) = self.by_subject.get_mut(subject) {
            *own -= 1;
            if *own == 0 {
                self.by_subject.remove(subject);
            }
        }
    }

    fn take_oldest_early(&mut self) -> Option<C> {
        let early = |(secret, entry): (&TunnelSecret, &Entry<C>)| match entry {
            Entry::Early { until, .. } => Some((*until, *secret)),
            _ => None,
        };
        let (_, oldest) = self.entries.iter().filter_map(early).min_by_key(|(until, _)| *until)?;
        match self.entries.remove(&oldest)? {
            Entry::Early { connection, .. } => {
                self.early -= 1;
                Some(connection)
            }
            _ => unreachable!("it was just seen"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: JoinLimits = JoinLimits { open: 3, of_one: 3, expected: 2, early: 2 };

    fn secret(number: u8) -> TunnelSecret {
        TunnelSecret([number; 16])
    }

    #[test]
    fn a_secret_and_its_connection_meet_in_either_order() {
        let (now, mut joins) = (Instant::now(), Joins::new(LIMITS));
        assert_eq!(joins.said(secret(1), "svc.a", now), Said::Expected);
        assert_eq!(joins.arrived(secret(1), "one", now), Arrived::Admitted("one"));
        assert_eq!(joins.arrived(secret(2), "two", now), Arrived::Early { instead_of: None });
        assert_eq!(joins.said(secret(2), "svc.a", now), Said::Admitted("two"));
        assert_eq!((joins.open(), joins.waiting()), (2, 0));
        assert_eq!(joins.said(secret(2), "svc.a", now), Said::Open);
    }

    #[test]
    fn a_secret_makes_one_connection_a_tunnel_once() {
        let (now, mut joins) = (Instant::now(), Joins::new(LIMITS));
        joins.said(secret(1), "svc.a", now);
        joins.arrived(secret(1), "worker", now);
        assert_eq!(joins.arrived(secret(1), "thief", now), Arrived::Twice("thief"));
        joins.ended(secret(1), now);
        assert_eq!(joins.arrived(secret(1), "thief", now), Arrived::Twice("thief"));
        assert_eq!(
            (joins.said(secret(1), "svc.a", now), joins.is_to_come(secret(1))),
            (Said::Ended, false)
        );
        joins.expire(now + ENDED_FOR);
        assert_eq!(joins.arrived(secret(1), "thief", now), Arrived::Early { instead_of: None });
        joins.arrived(secret(2), "worker", now);
        assert_eq!(joins.arrived(secret(2), "thief", now), Arrived::Twice("thief"));
    }

    #[test]
    fn nobody_waits_for_a_tunnel_that_finds_no_place() {
        let (now, mut joins) = (Instant::now(), Joins::new(LIMITS));
        for number in 1..=3 {
            joins.said(secret(number), "svc.a", now);
            joins.arrived(secret(number), "worker", now);
        }
        assert_eq!(joins.said(secret(4), "svc.b", now), Said::Expected);
        assert_eq!(joins.arrived(secret(4), "late", now), Arrived::Full("late"));
        assert_eq!((joins.is_to_come(secret(4)), joins.waiting()), (false, 0));
        assert_eq!(joins.said(secret(4), "svc.b", now), Said::Ended);
    }

    #[test]
    fn who_answers_for_one_subject_leaves_some_to_others() {
        let limits = JoinLimits { open: 5, of_one: 2, expected: 5, early: 5 };
        let (now, mut joins) = (Instant::now(), Joins::new(limits));
        assert_eq!(joins.said(secret(1), "svc.a", now), Said::Expected);
        joins.arrived(secret(1), "one", now);
        assert_eq!(joins.said(secret(2), "svc.a", now), Said::Expected);
        assert!(joins.is_full_of("svc.a") && joins.is_of(secret(1), "svc.a"));
        assert_eq!(joins.said(secret(3), "svc.a", now), Said::Full);
        joins.arrived(secret(4), "four", now);
        assert_eq!(joins.said(secret(4), "svc.a", now), Said::Full, "it is there, and too many");
        assert_eq!(joins.said(secret(4), "svc.b", now), Said::Admitted("four"));
        // What ends makes room, and what never came.
        joins.ended(secret(1), now);
        assert_eq!(joins.said(secret(3), "svc.a", now), Said::Expected);
        joins.expire(now + EXPECTED_FOR);
        assert!(!joins.is_full_of("svc.a") && joins.by_subject.len() == 1);
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_time() {
        let (now, mut joins) = (Instant::now(), Joins::new(LIMITS));
        let at = |ms| now + Duration::from_millis(ms);
        joins.arrived(secret(1), "oldest", at(0));
        joins.arrived(secret(2), "older", at(1));
        let third = joins.arrived(secret(3), "newest", at(2));
        assert_eq!(third, Arrived::Early { instead_of: Some("oldest") });
        joins.said(secret(4), "svc.a", at(2));
        joins.said(secret(5), "svc.a", at(2));
        assert_eq!(joins.said(secret(6), "svc.a", at(2)), Said::Full);
        assert_eq!(joins.expire(now + EARLY_FOR), Vec::<&str>::new());
        let mut closed = joins.expire(at(2) + EARLY_FOR);
        closed.sort_unstable();
        assert_eq!((closed, joins.waiting()), (vec!["newest", "older"], 2));
        joins.expire(at(2) + EXPECTED_FOR);
        assert_eq!(joins.waiting(), 0);
        assert_eq!(joins.said(secret(6), "svc.a", at(3)), Said::Expected, "there is room again");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Said(u8),
        Arrived(u8),
        Ended(u8),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6u8).prop_map(Step::Said),
            (0..6u8).prop_map(Step::Arrived),
            (0..6u8).prop_map(Step::Ended),
            (0..6_000u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: a tunnel is a connection whose secret was said, at
        /// most one for each secret; every connection is open, waiting or given back.
        #[test]
        fn only_who_answered_has_a_tunnel(steps in prop::collection::vec(step(), 0..60)) {
            let (mut now, mut joins) = (Instant::now(), Joins::new(LIMITS));
            let (mut said, mut open) = (HashSet::new(), HashSet::new());
            let (mut connections, mut given_back) = (0, 0);
            for step in steps {
                match step {
                    Step::Said(number) => {
                        let outcome = joins.said(secret(number), ["svc.a", "svc.b"][usize::from(number % 2)], now);
                        if !matches!(outcome, Said::Full | Said::Ended) {
                            said.insert(number);
                        }
                        if let Said::Admitted(_) = outcome {
                            prop_assert!(open.insert(number));
                        }
                    }
                    Step::Arrived(number) => {
                        connections += 1;
                        match joins.arrived(secret(number), connections, now) {
                            Arrived::Admitted(_) => {
                                prop_assert!(said.contains(&number));
                                prop_assert!(open.insert(number));
                            }
                            Arrived::Early { instead_of } => {
                                prop_assert!(!open.contains(&number));
                                given_back += usize::from(instead_of.is_some());
                            }
                            Arrived::Twice(_) | Arrived::Full(_) => given_back += 1,
                        }
                    }
                    Step::Ended(number) => {
                        joins.ended(secret(number), now);
                        if open.remove(&number) {
                            given_back += 1;
                            said.remove(&number);
                        }
                    }
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms);
                        given_back += joins.expire(now).len();
                    }
                }
                let said: usize = joins.by_subject.values().sum();
                prop_assert_eq!(said, joins.open + joins.expected);
                prop_assert!(joins.by_subject.values().all(|own| *own > 0));
                prop_assert_eq!(joins.open(), open.len());
                prop_assert!(joins.open() <= LIMITS.open && joins.early <= LIMITS.early);
                prop_assert!(joins.expected <= LIMITS.expected);
                prop_assert_eq!(connections, given_back + joins.open + joins.early);
            }
        }
    }
}
