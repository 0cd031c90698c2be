//! Which bytes of a message are new: the rule that makes every line arrive once.
//!
//! The consumer reads a source's messages in the order of the stream and keeps a mark: what it has
//! written of the source's history.
//!
//! | message | verdict |
//! |---|---|
//! | begins at the mark | take it |
//! | ends at or below the mark | a repetition: acknowledge it |
//! | begins below and ends above | take what is above: the producer cut its repetition elsewhere |
//! | begins above the mark, the producer was told that all in between is stored | the broker lost it: count it, go on from there |
//! | begins above the mark, nobody was told | what stands behind it in the stream decides, see [`GapResolution`] |
//! | its source came from another partition, whose rest is not written yet | wait |
//! | an older history | a producer with a lost checkpoint took over: drop it, and say so |

use serde::{Deserialize, Serialize};

use super::head::{Generation, Head};

/// How much of a source is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The history.
    #[serde(with = "as_text")]
    pub generation: Generation,
    /// Everything below this offset is written, or known to be lost.
    pub offset: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// Write the payload without its first `skip` bytes; the mark then is the message's end.
    Take {
        /// Bytes that are written already.
        skip: u64,
        /// Bytes before this message that the broker lost.
        lost: u64,
    },
    /// Written before.
    Duplicate,
    /// It begins above the mark, and what is in between was never acknowledged:
    /// [`GapResolution`] says what to do.
    Ahead,
    /// Its predecessors are in another partition.
    Wait,
    /// Of an older history.
    Stale,
}

/// What becomes of a message that is [`Acceptance::Ahead`], by what stands behind it in the stream.
///
/// Nothing is dropped because its producer *ought* to send it again: only what the stream holds is
/// believed. Until something decides, the message waits and is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapResolution {
    /// The missing bytes, sent again, and so whatever follows them: the message may be dropped.
    Repeated,
    /// The missing bytes will never come: they were stored once and are removed, or their producer
    /// could not read them any more, or it began a new history. The message is to be written.
    Never,
}

impl GapResolution {
    /// What a `later` message of the same subject says of one that begins above the `mark`; `None`
    /// when it does not decide. The messages have to be asked in the order of the stream, none left
    /// out.
    pub fn says(mark: u64, head: &Head, later: &Head) -> Option<Self> {
        if later.generation != head.generation {
            // A late message of an older history says nothing.
            return (later.generation > head.generation).then_some(Self::Never);
        }
        if later.floor > mark {
            return Some(Self::Never);
        }
        let repeats = later.start <= mark && mark < later.end;
        repeats.then_some(if later.gap.is_none() { Self::Repeated } else { Self::Never })
    }
}

/// The offset from which on messages of this history are wanted, and whether what is missing above
/// it counts as lost.
///
/// A source that is not known begins where its first message does: what the stream kept no longer
/// is not missed.
pub fn wanted(known: Option<Watermark>, head: &Head) -> (u64, bool) {
    match known {
        Some(mark) if mark.generation == head.generation => (mark.offset, true),
        Some(_) => (0, true),
        None => (head.floor, false),
    }
}

/// Judges a message by what is `known` of its source.
///
/// A source that is not known begins at the floor of its first message: what the stream kept no
/// longer is not missed.
pub fn judge(known: Option<Watermark>, head: &Head) -> Acceptance {
    if known.is_some_and(|mark| mark.generation > head.generation) {
        return Acceptance::Stale;
    }
    if known.is_none() && head.since > 0 {
        return Acceptance::Wait;
    }
    let (mark, counts) = wanted(known, head);
    if head.end <= mark {
        return Acceptance::Duplicate;
    }
    if mark < head.since {
        return Acceptance::Wait;
    }
    let begin = mark.max(head.floor);
    if head.start > begin {
        return Acceptance::Ahead;
    }
    Acceptance::Take { skip: begin - head.start, lost: if counts { begin - mark } else { 0 } }
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::head::Generation;

    pub(super) fn serialize<S: Serializer>(
        generation: &Generation,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.collect_str(generation)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Generation, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::head::tests::{generation, head};
    use super::super::head::{Gap, Skipped};
    use super::*;

    fn mark(offset: u64) -> Option<Watermark> {
        Some(Watermark { generation: generation(7), offset })
    }

    #[test]
    fn the_rule_as_a_table() {
        let take = |skip, lost| Acceptance::Take { skip, lost };
        assert_eq!(judge(mark(100), &head(100, 200, 100)), take(0, 0));
        assert_eq!(judge(mark(200), &head(100, 200, 100)), Acceptance::Duplicate);
        assert_eq!(judge(mark(150), &head(100, 200, 100)), take(50, 0));
        assert_eq!(judge(mark(50), &head(100, 200, 50)), Acceptance::Ahead);
        assert_eq!(judge(mark(50), &head(100, 200, 100)), take(0, 50));
        assert_eq!(judge(None, &head(100, 200, 100)), take(0, 0));
        assert_eq!(judge(None, &head(100, 200, 50)), Acceptance::Ahead);
        let unknown_and_pipelined = judge(None, &head(100, 200, 50));
        assert_eq!(unknown_and_pipelined, Acceptance::Ahead, "what is below may be sent again");
        let moved = Head { since: 100, ..head(100, 200, 100) };
        assert_eq!(judge(mark(50), &moved), Acceptance::Wait);
        assert_eq!(judge(None, &moved), Acceptance::Wait);
        assert_eq!(judge(mark(100), &moved), take(0, 0));
        let older = Some(Watermark { generation: generation(6), offset: 9_999 });
        assert_eq!(judge(older, &head(0, 10, 0)), take(0, 0));
        let newer = Some(Watermark { generation: generation(8), offset: 0 });
        assert_eq!(judge(newer, &head(0, 10, 0)), Acceptance::Stale);
    }

    #[test]
    fn only_the_stream_says_what_becomes_of_a_message_above_the_mark() {
        let ahead = head(100, 200, 50);
        let says = |later: Head| GapResolution::says(50, &ahead, &later);
        assert_eq!(says(head(200, 300, 50)), None, "of the same round");
        assert_eq!(says(head(50, 100, 50)), Some(GapResolution::Repeated));
        assert_eq!(says(head(40, 60, 40)), Some(GapResolution::Repeated));
        assert_eq!(
            says(head(200, 300, 200)),
            Some(GapResolution::Never),
            "all below was acknowledged, and is not here"
        );
        let gap = Some(Skipped { why: Gap::Vanished, bytes: 9 });
        assert_eq!(says(Head { gap, ..head(50, 900, 50) }), Some(GapResolution::Never));
        assert_eq!(
            says(Head { generation: generation(8), ..head(0, 9, 0) }),
            Some(GapResolution::Never)
        );
        assert_eq!(says(Head { generation: generation(6), ..head(0, 90, 0) }), None);
    }

    /// What a producer does with one stream: it sends, some of it is stored, some acknowledgements
    /// come, it goes back.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Send { bytes: u64, stored: bool, told: bool },
        GoBack,
        Restart,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let send = (1_u64..9, any::<bool>(), any::<bool>());
        let send = send.prop_map(|(bytes, stored, told)| Act::Send { bytes, stored, told });
        proptest::collection::vec(
            prop_oneof![6 => send, 2 => Just(Act::GoBack), 1 => Just(Act::Restart)],
            1..60,
        )
    }

    /// The stream that a producer's acts make, and how far everything was acknowledged.
    fn shipped(acts: Vec<Act>) -> (Vec<Head>, u64) {
        let mut stream: Vec<Head> = Vec::new();
        let (mut next, mut floor, mut checkpoint) = (0_u64, 0_u64, 0_u64);
        for act in acts {
            match act {
                Act::Send { bytes, stored, told } => {
                    if stored {
                        stream.push(head(next, next + bytes, floor));
                    }
                    // Acknowledgements count in order only.
                    if stored && told && floor == next {
                        floor = next + bytes;
                    }
                    next += bytes;
                }
                Act::GoBack => next = floor,
                Act::Restart => {
                    // The checkpoint is anywhere at or below the floor.
                    checkpoint += (floor - checkpoint) / 2;
                    floor = checkpoint;
                    next = checkpoint;
                }
            }
        }
        (stream, floor)
    }

    proptest! {
        /// Whatever was stored in whatever pieces, each byte is written once and in order, up to
        /// what was acknowledged.
        #[test]
        fn every_byte_is_written_once(acts in acts(), deliveries in proptest::collection::vec(any::<bool>(), 0..400)) {
            let (stream, acknowledged) = shipped(acts);
            let mut known = None;
            let mut written: Vec<u64> = Vec::new();
            let mut again = deliveries.into_iter();
            let mut position = 0;
            while position < stream.len() {
                let head = stream[position];
                match judge(known, &head) {
                    Acceptance::Take { skip, lost } => {
                        prop_assert_eq!(lost, 0);
                        written.extend(head.start + skip..head.end);
                        known = Some(Watermark { generation: head.generation, offset: head.end });
                    }
                    Acceptance::Ahead => {
                        let mark = wanted(known, &head).0;
                        let resolution = |later| GapResolution::says(mark, &head, later);
                        let behind = stream[position + 1..].iter().find_map(resolution);
                        // Undecided: everything behind it waits as well, and so does the proof.
                        let Some(behind) = behind else { break };
                        prop_assert_eq!(behind, GapResolution::Repeated);
                    }
                    Acceptance::Duplicate => {}
                    other => prop_assert!(false, "{other:?}"),
                }
                // A crash before the acknowledgement: part of the stream is delivered again.
                position = if again.next() == Some(true) { position.saturating_sub(2) } else { position + 1 };
            }
            prop_assert!(written.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{written:?}");
            prop_assert!(written.first().is_none_or(|first| *first == 0));
            prop_assert!(written.len() as u64 >= acknowledged, "{} of {acknowledged}", written.len());
        }

        /// A cluster that comes when the stream has dropped its oldest messages gets all that is
        /// left of what was acknowledged.
        #[test]
        fn what_the_stream_still_has_is_written_once(acts in acts(), removed in 0_usize..40) {
            let (mut stream, acknowledged) = shipped(acts);
            stream.drain(..removed.min(stream.len()));
            // The producer goes on beyond what it ever sent, and then everything is decided.
            let end = stream.iter().map(|head| head.end).max().unwrap_or(0).max(acknowledged);
            stream.extend((acknowledged..=end).map(|byte| head(byte, byte + 1, byte)));
            let (mut known, mut written) = (None, Vec::new());
            for (position, head) in stream.iter().enumerate() {
                let mark = wanted(known, head).0;
                let decided = || stream[position + 1..].iter().find_map(|later| GapResolution::says(mark, head, later));
                let from = match judge(known, head) {
                    Acceptance::Take { skip, .. } => head.start + skip,
                    Acceptance::Ahead if decided() == Some(GapResolution::Never) => head.start,
                    Acceptance::Ahead => {
                        prop_assert_eq!(decided(), Some(GapResolution::Repeated));
                        continue;
                    }
                    Acceptance::Duplicate => continue,
                    other => return Err(TestCaseError::fail(format!("{other:?}"))),
                };
                written.extend(from..head.end);
                known = Some(Watermark { generation: head.generation, offset: head.end });
            }
            prop_assert!(written.windows(2).all(|pair| pair[0] < pair[1]), "{written:?}");
            // What was acknowledged before the first that is left may be repeated behind it: that
            // is old, and not missed.
            let begin = stream.first().map_or(0, |first| first.floor);
            let left = |byte: &u64| stream.iter().any(|head| head.start <= *byte && *byte < head.end);
            let missing: Vec<u64> =
                (begin..acknowledged).filter(left).filter(|byte| !written.contains(byte)).collect();
            prop_assert!(missing.is_empty(), "{missing:?} of {acknowledged}, {written:?}");
        }

        /// What the broker lost although it said that it was stored is counted to the byte.
        #[test]
        fn a_loss_is_counted(lost in proptest::collection::vec(any::<bool>(), 1..40)) {
            let mut known = None;
            let (mut written, mut counted, mut missing) = (0, 0, 0);
            for (number, gone) in lost.iter().enumerate().map(|(n, gone)| (n as u64, *gone && n > 0)) {
                if gone {
                    missing += 10;
                    continue;
                }
                let head = head(number * 10, number * 10 + 10, number * 10);
                let Acceptance::Take { skip: 0, lost } = judge(known, &head) else { panic!("not taken") };
                written += 10;
                counted += lost;
                known = Some(Watermark { generation: head.generation, offset: head.end });
            }
            let trailing = lost.len() as u64 * 10 - known.map_or(0, |mark: Watermark| mark.offset);
            prop_assert_eq!(counted + trailing, missing);
            prop_assert_eq!(written + missing, lost.len() as u64 * 10);
        }
    }
}
