//! Counters of many that come and go, as one that only grows.

use std::collections::HashMap;

/// Polls after which one that does not answer is forgotten; what it counted stays in the sum.
/// Longer than a broker's restart at the usual pace of polls, since one that comes back must not be
/// counted twice.
const FORGET_AFTER: u32 = 600;

/// What one of them has counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that were ever finished.
    pub completed: u64,
    /// Requests that were ever turned away.
    pub refused: u64,
    /// Requests that were begun and never finished: cancelled, or past their deadline.
    pub dropped: u64,
    /// Time that was ever spent, in nanoseconds.
    pub busy_ns: u64,
}

/// The sum over all that were ever seen.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    seen: HashMap<String, Seen>,
    gone: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    counters: Counters,
    polls_since: u32,
}

impl Counters {
    fn add(&mut self, other: Self) {
        self.completed = self.completed.saturating_add(other.completed);
        self.refused = self.refused.saturating_add(other.refused);
        self.dropped = self.dropped.saturating_add(other.dropped);
        self.busy_ns = self.busy_ns.saturating_add(other.busy_ns);
    }

    fn at_least(self, other: Self) -> Self {
        Self {
            completed: self.completed.max(other.completed),
            refused: self.refused.max(other.refused),
            dropped: self.dropped.max(other.dropped),
            busy_ns: self.busy_ns.max(other.busy_ns),
        }
    }
}

impl Totals {
    /// Takes one poll: who answered, by an identity that changes when its counters begin anew, and
    /// what it has counted. Gives the sum over all that ever answered, which never falls.
    pub fn poll(&mut self, answers: impl IntoIterator<Item = (String, Counters)>) -> Counters {
        for seen in self.seen.values_mut() {
            seen.polls_since += 1;
        }
        for (identity, counters) in answers {
            let seen = self.seen.entry(identity).or_default();
            *seen = Seen { counters: seen.counters.at_least(counters), polls_since: 0 };
        }
        let gone = &mut self.gone;
        self.seen.retain(|_, seen| {
            let is_kept = seen.polls_since <= FORGET_AFTER;
            if !is_kept {
                gone.add(seen.counters);
            }
            is_kept
        });
        let mut sum = self.gone;
        for seen in self.seen.values() {
            sum.add(seen.counters);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: &str, completed: u64) -> (String, Counters) {
        (id.to_owned(), Counters { completed, ..Counters::default() })
    }

    #[test]
    fn the_sum_never_falls_whoever_comes_and_goes() {
        let mut totals = Totals::default();
        assert_eq!(totals.poll([answer("a", 10), answer("b", 5)]).completed, 15);
        assert_eq!(totals.poll([answer("a", 12)]).completed, 17, "b is silent");
        assert_eq!(
            totals.poll([answer("a", 12), answer("b", 9), answer("c", 1)]).completed,
            22,
            "b is back"
        );
        for _ in 0..2 * FORGET_AFTER {
            assert_eq!(totals.poll([answer("c", 1)]).completed, 22);
        }
        assert_eq!(totals.seen.len(), 1, "those that stay away are not kept for ever");
    }
}
