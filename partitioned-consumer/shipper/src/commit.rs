//! A commit: what a cluster of consumers has written of one source, and in which files.
//!
//! One entry of a bucket for each source, replaced only by compare-and-set. So when two consumers
//! believe that a source is theirs, one of them is refused, and takes back what it wrote beyond the
//! last commit. The entry remembers where *earlier* writers stood as well: one that comes back
//! after a crash cuts its file there, because what follows was written by its successor too. It
//! remembers [`MOST_LEFT`] of them. One that more have followed cuts nothing when it comes back:
//! its files stay as they are, and may end with lines that its successor wrote too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::accept::Watermark;

/// Earlier writers that a commit remembers: some 100 bytes each, which every further commit writes
/// again.
pub const MOST_LEFT: usize = 64;

/// The end of the committed lines in a file of one writer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// The directory, by the id that is kept in it.
    pub writer: String,
    /// The file, relative to the directory.
    pub file: String,
    /// Its length in bytes; anything beyond is not committed.
    pub bytes: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// How many commits there were: what has a lower number than what is known was written by a
    /// broker that forgot some.
    #[serde(default)]
    pub number: u64,
    /// How much of the source is written; none while all came from the published tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Watermark>,
    /// For each partition, the sequence in the stream of the last message without our header that
    /// is written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plain: BTreeMap<u32, u64>,
    /// Bytes that the broker acknowledged and lost, or that producers skipped.
    #[serde(default)]
    pub missing_bytes: u64,
    /// Where the newest lines are.
    pub tail: Tail,
    /// Where writers before this one stopped, the last of them last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Tail>,
    /// How many writers that stopped are not remembered any more.
    #[serde(default, skip_serializing_if = "is_none")]
    pub forgotten: u64,
}

fn is_none(writers: &u64) -> bool {
    *writers == 0
}

impl Commit {
    /// The commit that follows `before` (if there was any) with the newest lines at `tail`, and
    /// remembers `most_left` earlier writers at the most.
    pub fn after(before: Option<&Self>, tail: Tail, most_left: usize) -> Self {
        let Some(before) = before else {
            return Self {
                number: 1,
                mark: None,
                plain: BTreeMap::new(),
                missing_bytes: 0,
                tail,
                left: Vec::new(),
                forgotten: 0,
            };
        };
        let mut left = before.left.clone();
        if before.tail.writer != tail.writer {
            left.retain(|old| old.writer != before.tail.writer);
            left.push(before.tail.clone());
        }
        left.retain(|old| old.writer != tail.writer);
        let surplus = left.len().saturating_sub(most_left);
        left.drain(..surplus);
        let forgotten = before.forgotten + surplus as u64;
        Self { number: before.number + 1, tail, left, forgotten, ..before.clone() }
    }

    /// Whether `writer` may be one of those that are not remembered any more: how far its files are
    /// committed is not known then.
    pub fn may_have_forgotten(&self, writer: &str) -> bool {
        self.forgotten > 0
            && std::iter::once(&self.tail).chain(&self.left).all(|tail| tail.writer != writer)
    }

    /// Whether the broker forgot this commit: the `newest` that it has is an earlier one of the
    /// same writer, or none. Another writer's commit counts, whatever its number: it went on from
    /// what the broker had.
    pub fn is_forgotten_by(&self, newest: Option<&Self>) -> bool {
        newest.is_none_or(|newest| {
            newest.number < self.number && newest.tail.writer == self.tail.writer
        })
    }

    /// How far `writer` may keep `file`, when this commit knows.
    pub fn length_of(&self, writer: &str, file: &str) -> Option<u64> {
        let mut tails = std::iter::once(&self.tail).chain(&self.left);
        tails.find(|tail| tail.writer == writer && tail.file == file).map(|tail| tail.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(writer: &str, file: &str, bytes: u64) -> Tail {
        Tail { writer: writer.into(), file: file.into(), bytes }
    }

    #[test]
    fn writers_that_left_are_remembered_until_they_write_again() {
        let first = Commit::after(None, tail("a", "h/1", 10), MOST_LEFT);
        let second = Commit::after(Some(&first), tail("b", "h/1", 5), MOST_LEFT);
        let third = Commit::after(Some(&second), tail("b", "h/2", 3), MOST_LEFT);
        assert_eq!(third.left, [tail("a", "h/1", 10)]);
        assert_eq!(third.length_of("a", "h/1"), Some(10));
        assert_eq!(third.length_of("b", "h/2"), Some(3));
        assert_eq!(
            third.length_of("b", "h/1"),
            None,
            "its own earlier file is closed, at whatever length it has"
        );
        let back = Commit::after(Some(&third), tail("a", "h/1", 12), MOST_LEFT);
        assert_eq!(back.left, [tail("b", "h/2", 3)]);
        assert_eq!(back.length_of("a", "h/1"), Some(12));
    }

    #[test]
    fn only_so_many_writers_are_remembered_and_the_others_are_known_to_be_forgotten() {
        let mut commit = Commit::after(None, tail("w0", "h/1", 1), 2);
        for number in 1..=3 {
            commit = Commit::after(Some(&commit), tail(&format!("w{number}"), "h/1", 1), 2);
        }
        assert_eq!((commit.left.len(), commit.forgotten), (2, 1));
        let forgotten = ["w0", "w1", "w2", "w3"].map(|writer| commit.may_have_forgotten(writer));
        assert_eq!(forgotten, [true, false, false, false], "the one that left first");
        let back = Commit::after(Some(&commit), tail("w0", "h/2", 1), 2);
        assert!(!back.may_have_forgotten("w0") && back.may_have_forgotten("w1"));
        let small = Commit::after(None, tail("a", "h/1", 1), 2);
        assert!(
            !small.may_have_forgotten("b"),
            "nobody was forgotten, so it has nothing that is committed"
        );
    }

    #[test]
    fn a_commit_that_the_broker_forgot_is_known_by_its_number_and_its_writer() {
        let first = Commit::after(None, tail("a", "h/1", 10), MOST_LEFT);
        let second = Commit::after(Some(&first), tail("a", "h/1", 20), MOST_LEFT);
        assert!(second.is_forgotten_by(Some(&first)) && second.is_forgotten_by(None));
        assert!(!first.is_forgotten_by(Some(&second)));
        let taken_over = Commit::after(Some(&first), tail("b", "h/1", 5), MOST_LEFT);
        assert!(!second.is_forgotten_by(Some(&taken_over)));
    }

    #[test]
    fn golden_json() {
        let mark = Watermark { generation: "0000000000070badcafe".parse().unwrap(), offset: 42 };
        let commit =
            Commit { mark: Some(mark), ..Commit::after(None, tail("a", "h/1", 10), MOST_LEFT) };
        let json = serde_json::to_string(&commit).unwrap();
        assert_eq!(
            json,
            r#"{"number":1,"mark":{"generation":"0000000000070badcafe","offset":42},"missing_bytes":0,"tail":{"writer":"a","file":"h/1","bytes":10}}"#
        );
        assert_eq!(serde_json::from_str::<Commit>(&json).unwrap(), commit);
    }
}
