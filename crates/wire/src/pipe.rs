//! Messages of a pipe: bytes both ways between a worker and a gateway, by the broker.
//!
//! ```text
//! hello   0 | version u8 | window u32                     more may follow
//! data    1 | offset u64 | bytes
//! status  2 | flags u8 | sent u64 | credit u64
//! reset   3 | reason u8
//! ```
//!
//! Integers are big-endian. The gateway says hello to the subject that a worker named in a signal,
//! and the worker answers it. From then on either side sends data from offset 0 on, as far as the
//! other one gives credit for it.
//!
//! The broker keeps the order of what one connection publishes, and may lose any of it. So offsets
//! show each loss that something follows, and a status follows within a second.

use bytes::{BufMut, Bytes, BytesMut};

use crate::subject::is_plain;
use crate::{CONTROL_PREFIX, Error, ErrorKind};

/// The most bytes of one [`PipeMessage::Data`]: a broker copies more where a message is larger than
/// what it reads at once.
pub const CHUNK_BYTES: usize = 16 * 1024;

/// What a [`PipeMessage::Data`] counts at the least against its receiver's window, for memory is
/// not only bytes.
pub const LEAST_COST: u64 = 512;

/// The first token of an inbox, or the beginning of it.
const INBOX: &str = "_INBOX";

/// What the last token of a subject begins with that is no inbox, and that a pipe may be called at.
const PIPE_TOKEN: &str = "_PIPE_";

/// The version of a hello.
const VERSION: u8 = 1;

const HELLO: u8 = 0;
const DATA: u8 = 1;
const STATUS: u8 = 2;
const RESET: u8 = 3;

const ENDED: u8 = 1;
const LEAVING: u8 = 2;

/// What one end of a pipe says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipeMessage {
    /// The first thing that either end says.
    Hello {
        /// What the other end may send ahead of its reader, in costs ([`cost`]).
        window: u32,
    },
    /// Bytes.
    Data {
        /// How many came before them.
        offset: u64,
        /// 1 to [`CHUNK_BYTES`] of them.
        bytes: Bytes,
    },
    /// How far this end is. Said when it lets the other end send more, and each second.
    Status(Status),
    /// The pipe is broken.
    Reset(ResetReason),
}

/// How far one end is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes that it has sent, since the beginning.
    pub sent: u64,
    /// What the other end may send, since the beginning, in costs.
    pub credit: u64,
    /// It sends no more data.
    pub has_ended: bool,
    /// Its way to the broker will end: no further streams by this pipe.
    pub is_leaving: bool,
}

/// Why a pipe broke, or is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// Nobody uses it any more.
    Closed,
    /// Something was lost, came twice, or was never sent by the other end.
    Broken,
    /// There are as many pipes as there may be.
    Full,
    /// Anything else: a later version has reasons of its own.
    Other,
}

impl ResetReason {
    const ALL: [Self; 4] = [Self::Closed, Self::Broken, Self::Full, Self::Other];

    fn code(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Broken => 1,
            Self::Full => 2,
            Self::Other => u8::MAX,
        }
    }
}

/// Returns what data of this length counts against the window of who gets it.
pub fn cost(bytes: usize) -> u64 {
    LEAST_COST.max(bytes as u64)
}

/// Returns the subject for a pipe below a service's own. It takes the place of an inbox where the
/// sender of requests is in another account of the broker: there only the service's subjects lead.
/// `random` is one token.
pub fn subject_below(service: &str, random: &str) -> String {
    format!("{service}.{PIPE_TOKEN}{random}")
}

/// Whether a subject is one that a pipe may be called at: an inbox, or a subject that
/// [`subject_below`] makes. Whoever calls would lend its permissions otherwise.
///
/// ```
/// use natsway_wire::pipe::{is_pipe_subject, subject_below};
///
/// assert!(is_pipe_subject("_INBOX_worker.a.b"));
/// assert!(is_pipe_subject(&subject_below("svc.team-a.demo.blue", "Q7Fz")));
/// for other in ["svc.demo.blue", "$KV.natsway-routes.a", "natsway.worker._PIPE_x", "_INBOX.*"] {
///     assert!(!is_pipe_subject(other));
/// }
/// ```
pub fn is_pipe_subject(subject: &str) -> bool {
    if !is_plain(subject) {
        return false;
    }
    let first = subject.split('.').next().unwrap_or_default();
    let last = subject.rsplit('.').next().unwrap_or_default();
    let is_reserved = first.starts_with(['$', '_']) || first == CONTROL_PREFIX;
    first.starts_with(INBOX) || (!is_reserved && last.starts_with(PIPE_TOKEN))
}

impl PipeMessage {
    /// Writes the message.
    ///
    /// # Panics
    /// If data is empty or longer than [`CHUNK_BYTES`].
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_bytes());
        match self {
            Self::Hello { window } => {
                out.put_u8(HELLO);
                out.put_u8(VERSION);
                out.put_u32(*window);
            }
            Self::Data { offset, bytes } => {
                assert!((1..=CHUNK_BYTES).contains(&bytes.len()), "data is a chunk");
                out.put_u8(DATA);
                out.put_u64(*offset);
                out.put_slice(bytes);
            }
            Self::Status(Status { sent, credit, has_ended, is_leaving }) => {
                out.put_u8(STATUS);
                let ended = if *has_ended { ENDED } else { 0 };
                out.put_u8(ended | if *is_leaving { LEAVING } else { 0 });
                out.put_u64(*sent);
                out.put_u64(*credit);
            }
            Self::Reset(reason) => {
                out.put_u8(RESET);
                out.put_u8(reason.code());
            }
        }
        out.freeze()
    }

    fn encoded_bytes(&self) -> usize {
        match self {
            Self::Hello { .. } => 6,
            Self::Data { bytes, .. } => 9 + bytes.len(),
            Self::Status(_) => 18,
            Self::Reset(_) => 2,
        }
    }

    /// Reads a message. Data is a slice of it, not a copy.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for another version and for a kind that is not known,
    /// [`ErrorKind::TooLarge`] for more data than a chunk, the other kinds for anything that is no
    /// message of a pipe.
    pub fn decode(message: &Bytes) -> Result<Self, Error> {
        let Some((kind, rest)) = message.split_first() else {
            return Err(Error::new(ErrorKind::Truncated, "message of a pipe"));
        };
        match *kind {
            HELLO => {
                let (version, rest) = take::<1>(rest, "hello")?;
                if version != [VERSION] {
                    return Err(Error::new(ErrorKind::Unsupported, "version of a pipe"));
                }
                let (window, _later) = take::<4>(rest, "hello")?;
                Ok(Self::Hello { window: u32::from_be_bytes(window) })
            }
            DATA => {
                let (offset, bytes) = take::<8>(rest, "data")?;
                match bytes.len() {
                    0 => Err(Error::malformed("data: it is empty")),
                    1..=CHUNK_BYTES => {
                        let bytes = message.slice_ref(bytes);
                        Ok(Self::Data { offset: u64::from_be_bytes(offset), bytes })
                    }
                    _ => Err(Error::too_large("data")),
                }
            }
            STATUS => {
                let ([flags], rest) = take::<1>(rest, "status")?;
                let (sent, rest) = take::<8>(rest, "status")?;
                let (credit, _later) = take::<8>(rest, "status")?;
                Ok(Self::Status(Status {
                    sent: u64::from_be_bytes(sent),
                    credit: u64::from_be_bytes(credit),
                    has_ended: flags & ENDED != 0,
                    is_leaving: flags & LEAVING != 0,
                }))
            }
            RESET => {
                let ([code], _later) = take::<1>(rest, "reset")?;
                let reason = ResetReason::ALL.into_iter().find(|reason| reason.code() == code);
                Ok(Self::Reset(reason.unwrap_or(ResetReason::Other)))
            }
            _ => Err(Error::new(ErrorKind::Unsupported, "message of a pipe")),
        }
    }
}

fn take<'a, const N: usize>(
    bytes: &'a [u8],
    what: &'static str,
) -> Result<([u8; N], &'a [u8]), Error> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(Error::new(ErrorKind::Truncated, what))?;
    Ok((*taken, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(bytes: &[u8]) -> Result<PipeMessage, ErrorKind> {
        PipeMessage::decode(&Bytes::copy_from_slice(bytes)).map_err(|error| error.kind())
    }

    #[test]
    fn what_is_no_message_of_a_pipe_is_refused() {
        for (bytes, kind) in [
            (&[][..], ErrorKind::Truncated),
            (&[HELLO, VERSION, 0, 0, 0], ErrorKind::Truncated),
            (&[HELLO, 2, 0, 0, 0, 0], ErrorKind::Unsupported),
            (&[DATA, 0, 0, 0, 0, 0, 0, 0], ErrorKind::Truncated),
            (&[DATA, 0, 0, 0, 0, 0, 0, 0, 0], ErrorKind::Malformed),
            (&[DATA; 9 + CHUNK_BYTES + 1], ErrorKind::TooLarge),
            (&[STATUS; 17], ErrorKind::Truncated),
            (&[RESET], ErrorKind::Truncated),
            (&[9, 0], ErrorKind::Unsupported),
            // A request is an array.
            (&[0x98, 1, 0], ErrorKind::Unsupported),
        ] {
            assert_eq!(decoded(bytes), Err(kind), "{bytes:?}");
        }
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        assert_eq!(
            decoded(&[HELLO, VERSION, 0, 0, 1, 0, 77]),
            Ok(PipeMessage::Hello { window: 256 })
        );
        let mut status = vec![STATUS, 0xfc | LEAVING];
        status.extend([0; 16]);
        status.push(5);
        let leaving = Status { is_leaving: true, ..Status::default() };
        assert_eq!(decoded(&status), Ok(PipeMessage::Status(leaving)));
        assert_eq!(decoded(&[RESET, 200]), Ok(PipeMessage::Reset(ResetReason::Other)));
    }

    #[test]
    fn a_subject_for_pipes_is_an_inbox_or_says_so() {
        for subject in ["_INBOX.a", "_INBOX_worker.s.t", "svc.team-a.demo.blue._PIPE_x"] {
            assert!(is_pipe_subject(subject), "{subject}");
        }
        let long = format!("_INBOX.{}", "x".repeat(300));
        for subject in [
            "",
            "_INBOX..a",
            "_INBOX.>",
            "_INBOX a",
            "_INBOX.ä",
            "svc.demo.blue",
            "svc._PIPE_x.blue",
            "natsway.worker._PIPE_x",
            "$JS.API._PIPE_x",
            "_R_._PIPE_x",
            "_PIPE_x",
            &long,
        ] {
            assert!(!is_pipe_subject(subject), "{subject}");
        }
    }

    proptest! {
        #[test]
        fn messages_round_trip(offset: u64, sent: u64, credit: u64, window: u32,
                               bytes in proptest::collection::vec(any::<u8>(), 1..64),
                               has_ended: bool, is_leaving: bool) {
            for message in [
                PipeMessage::Hello { window },
                PipeMessage::Data { offset, bytes: bytes.into() },
                PipeMessage::Status(Status { sent, credit, has_ended, is_leaving }),
                PipeMessage::Reset(ResetReason::Full),
            ] {
                prop_assert_eq!(PipeMessage::decode(&message.encode()), Ok(message));
            }
        }

        #[test]
        fn any_bytes_are_a_message_or_none(bytes: Vec<u8>) {
            if let Ok(message) = PipeMessage::decode(&bytes.into()) {
                prop_assert_eq!(PipeMessage::decode(&message.encode()), Ok(message));
            }
        }
    }
}
