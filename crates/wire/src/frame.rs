//! Frames of a tunnel: messages that go over a connection of their own, and not over the broker.
//!
//! ```text
//! u32 payload bytes | u16 kind | u16 subject index | u64 key | payload        (little endian)
//! ```
//!
//! The payload of a request and of a reply is the [`envelope`](crate::envelope) that the broker
//! would have carried. The key says which request is meant; whoever sends requests makes it, and
//! repeats none while a tunnel lives. The subject index says which of the subjects that the tunnel
//! was opened for a request is for; it is 0 in all other frames.
//!
//! Kinds from [`IGNORABLE`] on are passed over by a reader that does not know them, the others end
//! the tunnel. So a newer peer can say more, and nothing that matters is missed.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, ErrorKind};

/// Bytes before a frame's payload.
pub const HEAD_BYTES: usize = 16;

/// The first kind that a reader may pass over.
pub const IGNORABLE: u16 = 0x8000;

/// Bytes that a reader takes from the connection at once.
pub const READ_BYTES: usize = 64 * 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A request, for the worker.
    Request,
    /// A response to the request of this key, or a signal about it.
    Reply,
    /// The request of this key is not waited for any more.
    Cancel,
    /// The worker takes no new requests; the gateway answers in kind once it sends none.
    Drain,
    /// The last frame of a worker that leaves: its key is the count of requests that it took. Those
    /// behind them never ran.
    Goodbye,
    /// The peer is asked to answer with [`FrameKind::Pong`] and the same key.
    Ping,
    /// The answer to a [`FrameKind::Ping`].
    Pong,
    /// A kind that this version does not know and may pass over.
    Ignorable(u16),
}

/// A frame, whose payload shares the memory of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Which of the tunnel's subjects a request is for.
    pub subject: u16,
    /// Which request is meant.
    pub key: u64,
    /// The envelope of a request or a reply; empty in other frames.
    pub payload: Bytes,
}

/// Cuts what was read into frames.
///
/// Holds at most one frame that is not whole, besides what came with the last read.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    payload_bytes: usize,
}

impl FrameKind {
    fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
            Self::Cancel => 3,
            Self::Drain => 4,
            Self::Goodbye => 5,
            Self::Ping => 6,
            Self::Pong => 7,
            Self::Ignorable(code) => code,
        }
    }

    fn from_code(code: u16) -> Result<Self, Error> {
        Ok(match code {
            1 => Self::Request,
            2 => Self::Reply,
            3 => Self::Cancel,
            4 => Self::Drain,
            5 => Self::Goodbye,
            6 => Self::Ping,
            7 => Self::Pong,
            IGNORABLE.. => Self::Ignorable(code),
            _ => return Err(Error::new(ErrorKind::Unsupported, "frame")),
        })
    }

    fn has_payload(self) -> bool {
        matches!(self, Self::Request | Self::Reply | Self::Ignorable(_))
    }
}

/// Writes what stands before a payload of `payload_bytes`, which the caller writes behind it.
///
/// # Panics
/// Above 4 GiB of payload; senders refuse what is above the bound of a message long before.
pub fn put_head(out: &mut BytesMut, kind: FrameKind, subject: u16, key: u64, payload_bytes: usize) {
    out.reserve(HEAD_BYTES + payload_bytes);
    out.put_u32_le(u32::try_from(payload_bytes).expect("a message is below 4 GiB"));
    out.put_u16_le(kind.code());
    out.put_u16_le(subject);
    out.put_u64_le(key);
}

/// Writes a frame.
///
/// # Panics
/// As [`put_head`].
pub fn put_frame(out: &mut BytesMut, kind: FrameKind, subject: u16, key: u64, payload: &[u8]) {
    put_head(out, kind, subject, key, payload.len());
    out.put_slice(payload);
}

impl FrameReader {
    /// Makes a reader that takes payloads up to a bound.
    pub fn new(payload_bytes: usize) -> Self {
        Self { buffer: BytesMut::with_capacity(READ_BYTES), payload_bytes }
    }

    /// Gives the buffer to read the connection into, behind what is there.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(READ_BYTES / 4);
        &mut self.buffer
    }

    /// Bytes that are held and no whole frame yet.
    pub fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the next whole frame, if there is one.
    ///
    /// # Errors
    /// Any [`ErrorKind`] but `Truncated`, before memory is taken for what is refused. The
    /// connection is of no use after that.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let Some(mut head) = self.buffer.get(..HEAD_BYTES) else { return Ok(None) };
        let payload_bytes = head.get_u32_le() as usize;
        let kind = FrameKind::from_code(head.get_u16_le())?;
        let (subject, key) = (head.get_u16_le(), head.get_u64_le());
        if payload_bytes > self.payload_bytes {
            return Err(Error::too_large("frame"));
        }
        if payload_bytes > 0 && !kind.has_payload() {
            return Err(Error::malformed("frame: a payload where none belongs"));
        }
        let missing_bytes = (HEAD_BYTES + payload_bytes).saturating_sub(self.buffer.len());
        if missing_bytes > 0 {
            self.buffer.reserve(missing_bytes);
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        let payload = self.buffer.split_to(payload_bytes).freeze();
        Ok(Some(Frame { kind, subject, key, payload }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 1 << 16;

    fn kinds() -> impl Strategy<Value = FrameKind> {
        prop_oneof![
            Just(FrameKind::Request),
            Just(FrameKind::Reply),
            Just(FrameKind::Cancel),
            Just(FrameKind::Drain),
            Just(FrameKind::Goodbye),
            Just(FrameKind::Ping),
            Just(FrameKind::Pong),
            (IGNORABLE..).prop_map(FrameKind::Ignorable),
        ]
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let payload = proptest::collection::vec(any::<u8>(), 0..2_000);
        (kinds(), any::<u16>(), any::<u64>(), payload).prop_map(|(kind, subject, key, payload)| {
            let payload = if kind.has_payload() { payload.into() } else { Bytes::new() };
            Frame { kind, subject, key, payload }
        })
    }

    /// Reads bytes in pieces of the given sizes, taken again and again.
    fn read(bytes: &[u8], pieces: &[usize]) -> Result<Vec<Frame>, Error> {
        let mut reader = FrameReader::new(MOST);
        let (mut frames, mut rest, mut pieces) = (Vec::new(), bytes, pieces.iter().cycle());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(*pieces.next().expect("endless")));
            reader.buffer().put_slice(piece);
            rest = later;
            while let Some(frame) = reader.next_frame()? {
                frames.push(frame);
            }
            assert!(reader.held_bytes() < HEAD_BYTES + MOST);
        }
        Ok(frames)
    }

    #[test]
    fn a_frame_is_these_bytes() {
        let mut out = BytesMut::new();
        put_frame(&mut out, FrameKind::Request, 0x0203, 0x1112_1314_1516_1718, b"hi");
        let golden = b"\x02\0\0\0\x01\0\x03\x02\x18\x17\x16\x15\x14\x13\x12\x11hi";
        assert_eq!(&out[..], golden);
    }

    #[test]
    fn a_length_above_the_bound_is_refused_before_memory_is_taken() {
        let mut out = BytesMut::new();
        put_head(&mut out, FrameKind::Reply, 0, 1, 0);
        out[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut reader = FrameReader::new(MOST);
        reader.buffer().put_slice(&out);
        assert_eq!(reader.next_frame().expect_err("4 GiB").kind(), ErrorKind::TooLarge);
        assert!(reader.buffer.capacity() < 2 * READ_BYTES);
    }

    #[test]
    fn unknown_kinds_end_the_tunnel_unless_they_may_be_passed_over() {
        for (code, is_known) in [(0, false), (8, false), (0x7fff, false), (IGNORABLE, true)] {
            assert_eq!(FrameKind::from_code(code).is_ok(), is_known, "{code}");
        }
    }

    #[test]
    fn what_has_no_payload_is_refused_with_one() {
        let mut out = BytesMut::new();
        put_frame(&mut out, FrameKind::Cancel, 0, 1, b"x");
        assert_eq!(read(&out, &[100]).expect_err("a payload").kind(), ErrorKind::Malformed);
    }

    proptest! {
        #[test]
        fn frames_are_read_as_written_however_they_arrive(
            written in proptest::collection::vec(frames(), 0..20),
            pieces in proptest::collection::vec(1_usize..3_000, 1..10),
        ) {
            let mut out = BytesMut::new();
            for Frame { kind, subject, key, payload } in &written {
                put_frame(&mut out, *kind, *subject, *key, payload);
            }
            prop_assert_eq!(read(&out, &pieces).expect("what was written"), written);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..500),
            pieces in proptest::collection::vec(1_usize..100, 1..10),
        ) {
            let frames = read(&bytes, &pieces).unwrap_or_default();
            prop_assert!(frames.iter().all(|frame| frame.payload.len() <= bytes.len()));
        }
    }
}
