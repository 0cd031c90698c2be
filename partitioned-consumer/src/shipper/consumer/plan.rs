//! What to do with a source's waiting messages, given its commit: pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::shipper::accept::{Mark, Verdict, judge};
use crate::shipper::commit::Commit;
use crate::shipper::head::Head;

/// A waiting message, as far as it matters here.
pub(super) struct Item {
    pub(super) head: Option<Head>,
    pub(super) partition: u32,
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
}

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// To be appended, each with a line feed behind it.
    pub(super) pieces: Vec<Bytes>,
    /// The source's mark when that is done.
    pub(super) mark: Option<Mark>,
    /// The last message without a head, by partition.
    pub(super) plain: BTreeMap<u32, u64>,
    /// Bytes that the broker lost.
    pub(super) lost_bytes: u64,
    /// Bytes that the producer skipped.
    pub(super) skipped_bytes: u64,
    /// Which of the messages have to wait for another partition.
    pub(super) waiting: Vec<usize>,
    /// Messages that were written before.
    pub(super) duplicates: u64,
    /// Messages whose predecessor will be sent again.
    pub(super) ahead: u64,
    /// Messages of an older history.
    pub(super) stale: u64,
}

impl Plan {
    /// Plans in the order of the messages. With `alone` the source's messages of other partitions are known to be gone.
    pub(super) fn new(commit: Option<&Commit>, items: &[Item], alone: bool) -> Self {
        let mut plan = Self {
            mark: commit.and_then(|commit| commit.mark),
            plain: commit.map(|commit| commit.plain.clone()).unwrap_or_default(),
            ..Self::default()
        };
        for (index, item) in items.iter().enumerate() {
            match item.head {
                Some(head) if alone => plan.take(index, &Head { since: 0, ..head }, &item.payload),
                Some(head) => plan.take(index, &head, &item.payload),
                None => plan.take_plain(item),
            }
        }
        plan
    }

    /// Whether it rests on something that only the newest commit can say.
    pub(super) fn is_doubtful(&self) -> bool {
        self.lost_bytes > 0 || self.ahead > 0 || self.stale > 0 || !self.waiting.is_empty()
    }

    /// Whether a commit has to be written.
    pub(super) fn changes(&self, commit: Option<&Commit>) -> bool {
        self.mark != commit.and_then(|commit| commit.mark) || !self.pieces.is_empty()
    }

    fn take(&mut self, index: usize, head: &Head, payload: &Bytes) {
        match judge(self.mark, head) {
            Verdict::Take { skip, lost } => {
                self.lost_bytes += lost;
                match head.gap {
                    Some(gap) => self.skipped_bytes += gap.bytes,
                    None if skip as usize <= payload.len() => {
                        self.pieces.push(payload.slice(skip as usize..))
                    }
                    // Only the end of a truncated line is above the mark.
                    None => {}
                }
                self.mark = Some(Mark { generation: head.generation, offset: head.end });
            }
            Verdict::Duplicate => self.duplicates += 1,
            Verdict::Ahead => self.ahead += 1,
            Verdict::Stale => self.stale += 1,
            Verdict::Wait => self.waiting.push(index),
        }
    }

    fn take_plain(&mut self, item: &Item) {
        let last = self.plain.entry(item.partition).or_default();
        if item.sequence > 0 && item.sequence <= *last {
            self.duplicates += 1;
            return;
        }
        *last = item.sequence.max(*last);
        self.pieces.push(item.payload.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shipper::head::tests::head;

    fn item(head: Option<Head>, sequence: u64, payload: &'static str) -> Item {
        Item { head, partition: 0, sequence, payload: Bytes::from_static(payload.as_bytes()) }
    }

    #[test]
    fn overlaps_are_cut_and_order_is_that_of_the_stream() {
        let items = [
            item(Some(head(0, 4, 0)), 1, "abc"),
            item(Some(head(8, 12, 4)), 2, "ghi"),
            item(Some(head(0, 8, 0)), 3, "abc\ndef"),
            item(Some(head(8, 12, 8)), 4, "ghi"),
            item(None, 5, "plain"),
            item(None, 5, "plain"),
        ];
        let plan = Plan::new(None, &items, false);
        assert_eq!(plan.pieces, ["abc", "def", "ghi", "plain"]);
        assert_eq!((plan.mark.map(|mark| mark.offset), plan.plain.clone()), (Some(12), [(0, 5)].into()));
        assert_eq!((plan.ahead, plan.duplicates, plan.is_doubtful()), (1, 1, true));
    }

    #[test]
    fn a_source_that_moved_waits_for_its_old_partition_unless_that_is_gone() {
        let moved = || [item(Some(Head { since: 8, ..head(8, 12, 8) }), 1, "ghi")];
        assert_eq!(Plan::new(None, &moved(), false).waiting, [0]);
        assert_eq!(Plan::new(None, &moved(), true).pieces, ["ghi"]);
    }
}
