//! One queue: the messages of one partition (or subject), which run one at a time and in order.

use std::collections::{BTreeSet, VecDeque};

#[derive(Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct KeyQueue {
    /// A handler is at work, or on its way out.
    pub(super) busy: bool,
    /// Listed among the queues that can start.
    pub(super) ready: bool,
    queue: VecDeque<u64>,
    /// Messages that the server will deliver again; nothing newer may pass them.
    awaited: BTreeSet<u64>,
    /// What was handled under this pin, the newest last; no more than [`DONE_KEPT`].
    done: VecDeque<u64>,
}

/// A message that was handled longer ago, and whose acknowledgement was lost, is handled once more:
/// a repeat, never a loss.
const DONE_KEPT: usize = 512;

impl KeyQueue {
    pub(super) fn has_done(&self, seq: u64) -> bool {
        self.done.back().is_some_and(|newest| seq <= *newest) && self.done.contains(&seq)
    }

    /// A message came; says whether it was awaited.
    pub(super) fn arrived(&mut self, seq: u64) -> bool {
        self.awaited.remove(&seq)
    }

    pub(super) fn enqueue(&mut self, seq: u64) {
        match self.queue.back() {
            Some(last) if *last > seq => {
                let at = self.queue.partition_point(|queued| *queued < seq);
                self.queue.insert(at, seq);
            }
            _ => self.queue.push_back(seq),
        }
    }

    pub(super) fn runnable(&self) -> bool {
        let blocked = |next: &u64| self.awaited.first().is_some_and(|awaited| awaited < next);
        !self.busy && self.queue.front().is_some_and(|next| !blocked(next))
    }

    /// Says whether the queue can start and was not listed as such; it is from now on.
    pub(super) fn become_ready(&mut self) -> bool {
        let news = !self.ready && self.runnable();
        self.ready |= news;
        news
    }

    /// Takes a message out that will not run.
    pub(super) fn remove(&mut self, seq: u64) {
        self.queue.retain(|queued| *queued != seq);
    }

    pub(super) fn start(&mut self) -> Option<u64> {
        if !self.runnable() {
            return None;
        }
        self.busy = true;
        self.queue.pop_front()
    }

    pub(super) fn finish(&mut self, seq: u64) {
        if self.done.len() == DONE_KEPT {
            self.done.pop_front();
        }
        let newest = self.done.back().copied().unwrap_or(0);
        self.done.push_back(seq);
        if seq < newest {
            self.done.make_contiguous().sort_unstable();
        }
    }

    /// Holds everything newer back until a message returns; says whether it did not wait for that
    /// one before.
    pub(super) fn await_again(&mut self, seq: u64) -> bool {
        self.awaited.insert(seq)
    }

    /// Gives up on awaited messages up to and including `floor`; says how many.
    pub(super) fn forgive(&mut self, floor: u64) -> usize {
        let before = self.awaited.len();
        self.awaited.retain(|seq| *seq > floor);
        before - self.awaited.len()
    }

    /// Forgets everything that belonged to a pin; `busy` stays.
    pub(super) fn forget(&mut self) {
        *self = Self { busy: self.busy, ..Self::default() };
    }

    pub(super) fn is_idle_below(&self, floor: u64) -> bool {
        !self.busy
            && self.queue.is_empty()
            && self.awaited.is_empty()
            && self.done.back().is_none_or(|newest| *newest <= floor)
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> impl Iterator<Item = u64> {
        self.queue.iter().copied()
    }

    #[cfg(test)]
    pub(super) fn awaits(&self) -> impl Iterator<Item = u64> {
        self.awaited.iter().copied()
    }
}
