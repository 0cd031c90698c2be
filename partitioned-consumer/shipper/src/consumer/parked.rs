//! Messages that wait for their predecessors, looked at again a few sources at a time: pure.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use crate::name::Source;

/// How often messages that wait are looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// Sources that are looked at again at once: each may cost a round trip to the broker, for which
/// all others wait.
const AT_ONCE: usize = 32;

/// See the module. `M` is a message.
#[derive(Debug)]
pub(super) struct Parked<M> {
    by_source: BTreeMap<Source, Vec<M>>,
    /// The source that was looked at last.
    last: Option<Source>,
    look_at: Instant,
}

impl<M> Parked<M> {
    pub(super) fn new(now: Instant) -> Self {
        Self { by_source: BTreeMap::new(), last: None, look_at: now }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_source.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_source.values().map(Vec::len).sum()
    }

    /// When the next look is due.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Keeps messages of one source, which are in the order of the stream. What it had of the
    /// source was taken before.
    pub(super) fn park(&mut self, source: Source, messages: Vec<M>) {
        if !messages.is_empty() {
            self.by_source.insert(source, messages);
        }
    }

    /// Takes what waits of these sources, because more of them has come, and of those whose turn it
    /// is.
    pub(super) fn take<'a>(
        &mut self,
        come: impl Iterator<Item = &'a Source>,
        now: Instant,
    ) -> Vec<M> {
        let mut sources: Vec<Source> =
            come.filter(|it| self.by_source.contains_key(*it)).cloned().collect();
        if now >= self.look_at {
            self.look_at = now + LOOK_AGAIN;
            sources.extend(self.next());
        }
        sources.iter().filter_map(|source| self.by_source.remove(source)).flatten().collect()
    }

    /// The sources whose turn it is, all in turn.
    fn next(&mut self) -> Vec<Source> {
        let behind = self.last.take().map_or(Unbounded, Excluded);
        let next = self.by_source.range((behind, Unbounded)).chain(&self.by_source);
        let count = AT_ONCE.min(self.by_source.len());
        let next: Vec<Source> = next.map(|(source, _)| source.clone()).take(count).collect();
        self.last = next.last().cloned();
        next
    }

    /// Drops what is given up. All of its source: those behind a missing one would look lost.
    pub(super) fn forget(&mut self, is_given_up: impl Fn(&M) -> bool) {
        self.by_source.retain(|_, messages| !messages.iter().any(&is_given_up));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: usize) -> Source {
        Source::new(&format!("web{number:03}"), None).unwrap()
    }

    #[test]
    fn all_sources_have_their_turn_and_one_that_goes_on_has_it_at_once() {
        let now = Instant::now();
        let mut parked = Parked::new(now);
        (0..50).for_each(|number| parked.park(source(number), vec![(number, 0), (number, 1)]));
        let first = parked.take(std::iter::empty(), now);
        assert_eq!(first.len(), 2 * AT_ONCE);
        assert_eq!(first[..2], [(0, 0), (0, 1)], "in order");
        assert!(parked.take(std::iter::empty(), now).is_empty(), "not again so soon");
        assert_eq!(parked.take([source(40), source(900)].iter(), now), [(40, 0), (40, 1)]);
        (0..AT_ONCE).for_each(|number| parked.park(source(number), vec![(number, 0)]));
        let second = parked.take(std::iter::empty(), now + LOOK_AGAIN);
        assert!(
            (AT_ONCE..50).filter(|it| *it != 40).all(|number| second.contains(&(number, 0))),
            "{second:?}"
        );
        parked.park(source(3), vec![(3, 7)]);
        parked.forget(|message| *message == (3, 7));
        assert!(!parked.by_source.contains_key(&source(3)));
    }
}
