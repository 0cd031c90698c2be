//! What to do with a source's waiting messages, given its commit: pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::accept::{Acceptance, GapResolution, Watermark, judge, wanted};
use crate::commit::Commit;
use crate::head::Head;

/// A waiting message, as far as it matters here.
pub(super) struct Item {
    pub(super) head: Option<Head>,
    pub(super) partition: u32,
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
}

/// What is known from the stream about messages that cannot be judged by the mark alone.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The source's messages of other partitions are gone.
    pub(super) alone: bool,
    /// What is missing in front of messages below this sequence is sent again at it.
    repeated_at: u64,
    /// Messages whose predecessors never come, by their sequence.
    orphans: BTreeSet<u64>,
}

impl Facts {
    /// Notes what the message of sequence `at` says of the one of sequence `of`.
    pub(super) fn learn(&mut self, of: u64, (at, behind): (u64, GapResolution)) {
        match behind {
            GapResolution::Repeated => self.repeated_at = self.repeated_at.max(at),
            GapResolution::Never => drop(self.orphans.insert(of)),
        }
    }
}

/// What the messages at hand say of the one at `index`, which begins above its mark: the sequence
/// of the one that decides.
///
/// They are all that the stream has up to the last of them, because a reader hands them over in
/// order.
pub(super) fn behind(
    mark: Option<Watermark>,
    items: &[Item],
    index: usize,
) -> Option<(u64, GapResolution)> {
    let head = items[index].head?;
    let mark = wanted(mark, &head).0;
    let Item { partition, sequence, .. } = items[index];
    let later = items[index + 1..]
        .iter()
        .filter(|item| item.partition == partition && item.sequence > sequence);
    let mut later = later.filter_map(|item| Some((item.sequence, item.head?)));
    later.find_map(|(sequence, later)| Some((sequence, GapResolution::says(mark, &head, &later)?)))
}

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// To be appended, each with a line feed behind it.
    pub(super) pieces: Vec<Bytes>,
    /// The source's mark when that is done.
    pub(super) mark: Option<Watermark>,
    /// The last message without a head, by partition.
    pub(super) plain: BTreeMap<u32, u64>,
    /// Bytes that the broker lost.
    pub(super) lost_bytes: u64,
    /// Bytes that the producer skipped.
    pub(super) skipped_bytes: u64,
    /// Which of the messages have to wait for another partition.
    pub(super) waiting: Vec<usize>,
    /// The first message above the mark of which nothing is known from the stream, and the mark.
    pub(super) unclear: Option<(usize, Option<Watermark>)>,
    /// Messages that were written before.
    pub(super) duplicates: u64,
    /// Messages that come again behind what is missing in front of them.
    pub(super) ahead: u64,
    /// Messages of an older history.
    pub(super) stale: u64,
}

impl Plan {
    /// Plans in the order of the messages.
    pub(super) fn new(commit: Option<&Commit>, items: &[Item], facts: &Facts) -> Self {
        let mut plan = Self {
            mark: commit.and_then(|commit| commit.mark),
            plain: commit.map(|commit| commit.plain.clone()).unwrap_or_default(),
            ..Self::default()
        };
        for (index, item) in items.iter().enumerate() {
            match item.head {
                Some(head) if facts.alone => {
                    plan.take(index, item, &Head { since: 0, ..head }, facts)
                }
                Some(head) => plan.take(index, item, &head, facts),
                None => plan.take_plain(item),
            }
        }
        plan
    }

    /// Whether it rests on something that only the newest commit can say.
    pub(super) fn is_doubtful(&self) -> bool {
        self.lost_bytes > 0 || self.stale > 0 || !self.waiting.is_empty()
    }

    /// Whether a commit has to be written.
    pub(super) fn changes(&self, commit: Option<&Commit>) -> bool {
        self.mark != commit.and_then(|commit| commit.mark) || !self.pieces.is_empty()
    }

    fn take(&mut self, index: usize, item: &Item, head: &Head, facts: &Facts) {
        match judge(self.mark, head) {
            Acceptance::Take { skip, lost } => self.write(head, &item.payload, skip, lost),
            Acceptance::Ahead if facts.orphans.contains(&item.sequence) => {
                let (mark, counts) = wanted(self.mark, head);
                self.write(head, &item.payload, 0, if counts { head.start - mark } else { 0 });
            }
            Acceptance::Duplicate => self.duplicates += 1,
            Acceptance::Ahead if item.sequence < facts.repeated_at => self.ahead += 1,
            Acceptance::Ahead => {
                self.unclear = self.unclear.or(Some((index, self.mark)));
                self.waiting.push(index);
            }
            Acceptance::Stale => self.stale += 1,
            Acceptance::Wait => self.waiting.push(index),
        }
    }

    fn write(&mut self, head: &Head, payload: &Bytes, skip: u64, lost: u64) {
        self.lost_bytes += lost;
        match head.gap {
            // What is missing stands at the beginning, and some of it may have been written before
            // its producer died.
            Some(gap) => self.skipped_bytes += gap.bytes.saturating_sub(skip),
            None if skip as usize <= payload.len() => {
                self.pieces.push(payload.slice(skip as usize..))
            }
            // Only the end of a truncated line is above the mark.
            None => {}
        }
        self.mark = Some(Watermark { generation: head.generation, offset: head.end });
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
    use crate::head::tests::head;

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
        let mut facts = Facts::default();
        let undecided = Plan::new(None, &items, &facts);
        let (index, mark) = undecided.unclear.unwrap();
        assert_eq!((index, undecided.waiting), (1, vec![1]));
        let found = behind(mark, &items, index).unwrap();
        assert_eq!(found, (3, GapResolution::Repeated));
        facts.learn(2, found);
        let plan = Plan::new(None, &items, &facts);
        assert_eq!(plan.pieces, ["abc", "def", "ghi", "plain"]);
        assert_eq!(
            (plan.mark.map(|mark| mark.offset), plan.plain.clone()),
            (Some(12), [(0, 5)].into())
        );
        assert_eq!((plan.ahead, plan.duplicates, plan.waiting.len()), (1, 1, 0));
    }

    #[test]
    fn a_message_whose_predecessors_are_gone_is_written_and_they_are_counted_where_they_are_missed()
    {
        let items = [item(Some(head(8, 12, 4)), 1, "ghi"), item(Some(head(12, 16, 12)), 2, "jkl")];
        let mut facts = Facts::default();
        facts.learn(1, behind(None, &items, 0).unwrap());
        let plan = Plan::new(None, &items, &facts);
        assert_eq!((plan.pieces.len(), plan.lost_bytes), (2, 0), "an unknown source begins here");
        let mark = Watermark { generation: head(0, 1, 0).generation, offset: 4 };
        let commit = Commit { mark: Some(mark), ..Commit::after(None, Default::default(), 0) };
        let plan = Plan::new(Some(&commit), &items, &facts);
        assert_eq!((plan.pieces.len(), plan.lost_bytes), (2, 4));
        assert_eq!(behind(None, &items[..1], 0), None, "nothing decides, so it waits");
    }

    #[test]
    fn what_a_dead_process_left_in_the_old_partition_does_not_hold_up_the_new_one() {
        let left = item(Some(head(8, 12, 4)), 1, "ghi");
        let moved = |start, end| Some(Head { since: 4, ..head(start, end, start) });
        let items = [
            item(Some(head(0, 4, 0)), 0, "abc"),
            left,
            Item { partition: 1, ..item(moved(4, 8), 2, "def") },
            Item { partition: 1, ..item(moved(8, 12), 3, "ghi") },
        ];
        let plan = Plan::new(None, &items, &Facts::default());
        assert_eq!(
            (plan.pieces, plan.waiting),
            (vec!["abc".into(), "def".into(), Bytes::from("ghi")], vec![1])
        );
        let commit = Commit { mark: plan.mark, ..Commit::after(None, Default::default(), 0) };
        assert_eq!(Plan::new(Some(&commit), &items[1..2], &Facts::default()).duplicates, 1);
    }

    #[test]
    fn a_source_that_moved_waits_for_its_old_partition_unless_that_is_gone() {
        let moved = || [item(Some(Head { since: 8, ..head(8, 12, 8) }), 1, "ghi")];
        assert_eq!(Plan::new(None, &moved(), &Facts::default()).waiting, [0]);
        let alone = Facts { alone: true, ..Facts::default() };
        assert_eq!(Plan::new(None, &moved(), &alone).pieces, ["ghi"]);
    }
}
