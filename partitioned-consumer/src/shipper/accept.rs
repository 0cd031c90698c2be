//! Which bytes of a message are new: the rule that makes every line arrive once.
//!
//! The consumer reads a source's messages in the order of the stream and keeps a mark: what it has written of the source's history.
//!
//! | message | verdict |
//! |---|---|
//! | begins at the mark | take it |
//! | ends at or below the mark | a repetition: acknowledge it |
//! | begins below and ends above | take what is above: the producer cut its repetition elsewhere |
//! | begins above the mark, nothing in between was acknowledged to the producer | acknowledge it: the producer goes back and sends it again, behind what is missing |
//! | begins above the mark, the producer was told that all in between is stored | the broker lost it: count it, go on from there |
//! | its source came from another partition, whose rest is not written yet | wait |
//! | an older history | a producer with a lost checkpoint took over: drop it, and say so |

use serde::{Deserialize, Serialize};

use super::head::{Generation, Head};

/// How much of a source is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The history.
    #[serde(with = "as_text")]
    pub generation: Generation,
    /// Everything below this offset is written, or known to be lost.
    pub offset: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write the payload without its first `skip` bytes; the mark then is the message's end.
    Take {
        /// Bytes that are written already.
        skip: u64,
        /// Bytes before this message that the broker lost.
        lost: u64,
    },
    /// Written before.
    Duplicate,
    /// Its predecessor will come, and then it will come again.
    Ahead,
    /// Its predecessors are in another partition.
    Wait,
    /// Of an older history.
    Stale,
}

/// Judges a message by what is `known` of its source.
///
/// A source that is not known begins at the floor of its first message: what the stream kept no longer is not missed.
pub fn judge(known: Option<Mark>, head: &Head) -> Verdict {
    let (mark, lost) = match known {
        Some(mark) if mark.generation > head.generation => return Verdict::Stale,
        Some(mark) if mark.generation == head.generation => {
            (mark.offset, head.floor.saturating_sub(mark.offset))
        }
        Some(_) => (0, head.floor),
        None if head.since > 0 => return Verdict::Wait,
        None => (head.floor, 0),
    };
    if head.end <= mark {
        return Verdict::Duplicate;
    }
    if mark < head.since {
        return Verdict::Wait;
    }
    let mark = mark.max(head.floor);
    if head.start > mark {
        return Verdict::Ahead;
    }
    Verdict::Take { skip: mark - head.start, lost }
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::shipper::head::Generation;

    pub(super) fn serialize<S: Serializer>(generation: &Generation, out: S) -> Result<S::Ok, S::Error> {
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
    use super::*;

    fn mark(offset: u64) -> Option<Mark> {
        Some(Mark { generation: generation(7), offset })
    }

    #[test]
    fn the_rule_as_a_table() {
        let take = |skip, lost| Verdict::Take { skip, lost };
        assert_eq!(judge(mark(100), &head(100, 200, 100)), take(0, 0));
        assert_eq!(judge(mark(200), &head(100, 200, 100)), Verdict::Duplicate);
        assert_eq!(judge(mark(150), &head(100, 200, 100)), take(50, 0));
        assert_eq!(judge(mark(50), &head(100, 200, 50)), Verdict::Ahead);
        assert_eq!(judge(mark(50), &head(100, 200, 100)), take(0, 50));
        assert_eq!(judge(None, &head(100, 200, 100)), take(0, 0));
        assert_eq!(judge(None, &head(100, 200, 50)), Verdict::Ahead);
        let moved = Head { since: 100, ..head(100, 200, 100) };
        assert_eq!(judge(mark(50), &moved), Verdict::Wait);
        assert_eq!(judge(None, &moved), Verdict::Wait);
        assert_eq!(judge(mark(100), &moved), take(0, 0));
        let older = Some(Mark { generation: generation(6), offset: 9_999 });
        assert_eq!(judge(older, &head(0, 10, 0)), take(0, 0));
        let newer = Some(Mark { generation: generation(8), offset: 0 });
        assert_eq!(judge(newer, &head(0, 10, 0)), Verdict::Stale);
    }

    /// What a producer does with one stream: it sends, some of it is stored, some acknowledgements come, it goes back.
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

    proptest! {
        /// Whatever was stored in whatever pieces, each byte is written once and in order, up to what was acknowledged.
        #[test]
        fn every_byte_is_written_once(acts in acts(), deliveries in proptest::collection::vec(any::<bool>(), 0..400)) {
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
            let acknowledged = floor;
            let mut known = None;
            let mut written: Vec<u64> = Vec::new();
            let mut again = deliveries.into_iter();
            let mut position = 0;
            while position < stream.len() {
                let head = stream[position];
                match judge(known, &head) {
                    Verdict::Take { skip, lost } => {
                        prop_assert_eq!(lost, 0);
                        written.extend(head.start + skip..head.end);
                        known = Some(Mark { generation: head.generation, offset: head.end });
                    }
                    Verdict::Duplicate | Verdict::Ahead => {}
                    other => prop_assert!(false, "{other:?}"),
                }
                // A crash before the acknowledgement: part of the stream is delivered again.
                position = if again.next() == Some(true) { position.saturating_sub(2) } else { position + 1 };
            }
            prop_assert!(written.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{written:?}");
            prop_assert!(written.first().is_none_or(|first| *first == 0));
            prop_assert!(written.len() as u64 >= acknowledged, "{} of {acknowledged}", written.len());
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
                let Verdict::Take { skip: 0, lost } = judge(known, &head) else { panic!("not taken") };
                written += 10;
                counted += lost;
                known = Some(Mark { generation: head.generation, offset: head.end });
            }
            let trailing = lost.len() as u64 * 10 - known.map_or(0, |mark: Mark| mark.offset);
            prop_assert_eq!(counted + trailing, missing);
            prop_assert_eq!(written + missing, lost.len() as u64 * 10);
        }
    }
}
