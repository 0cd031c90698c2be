//! Frames of a tunnel: messages that go over a connection of their own, and not over the broker.
//!
//! ```text
//! u32 payload bytes | u16 kind | u16 detail | u64 key | payload        (little endian)
//! ```
//!
//! The payload of a request and of a reply is the [`envelope`](crate::envelope) that the broker
//! would have carried. The key says which request is meant; whoever sends requests makes it, and
//! repeats none while a tunnel lives. [`FrameKind`] says what key and detail are in other frames.
//!
//! Each side begins with its [`Hello`], the worker first. The last frame of a worker that leaves is
//! its goodbye.
//!
//! Kinds from [`IGNORABLE`] on are passed over by a reader that does not know them, the others end
//! the tunnel. So a newer peer can say more, and nothing that matters is missed.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, ErrorKind};

mod hello;
mod queue;

pub use self::hello::Hello;
pub use self::queue::{COPIED_BYTES, FrameQueue};

/// Bytes before a frame's payload.
pub const HEAD_BYTES: usize = 16;

/// The first kind that a reader may pass over.
pub const IGNORABLE: u16 = 0x8000;

/// Bytes that a reader takes from the connection at once.
pub const READ_BYTES: usize = 64 * 1024;

/// Bytes of the clock in a [`FrameKind::Pong`].
const CLOCK_BYTES: usize = 8;

/// The age from which a worker does not run a request of a tunnel, and how long a gateway may use
/// tunnels that has not heard that its routes are the newest. By the broker a sender that goes by
/// old routes meets whoever stands in for the workers that left; on a tunnel nobody does.
pub const LEASE: Duration = Duration::from_secs(10);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A request, for the worker. The detail is the index of its subject among those that the
    /// tunnel was joined for.
    Request,
    /// The answer to the request of this key: a response, or a signal about it. Nothing follows it.
    /// The detail is how many requests the worker has in hand, of all senders.
    Reply,
    /// The request of this key is not waited for any more.
    Cancel,
    /// Of the worker: no new requests, please. Of the gateway: it sends none after this frame.
    Drain,
    /// The last frame of a worker that leaves: its key is the count of requests that it took. Those
    /// behind them never ran.
    Goodbye,
    /// The peer is asked for a [`FrameKind::Pong`]. The key is the sender's clock, in milliseconds.
    Ping,
    /// The answer to a [`FrameKind::Ping`], with its key, and the own clock in
    /// [`Frame::clock_ms`]. The detail is as in a [`FrameKind::Reply`].
    Pong,
    /// The first frame of each side; see [`Hello`]. The key is the sender's clock, in milliseconds.
    Hello,
    /// A kind that this version does not know and may pass over.
    Ignorable(u16),
}

/// A frame, whose payload shares the memory of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// What [`FrameKind`] says; 0 where it says nothing.
    pub detail: u16,
    /// Which request is meant, or what [`FrameKind`] says.
    pub key: u64,
    /// The envelope of a request or a reply, a [`Hello`], or a clock; empty in other frames.
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
            Self::Hello => 8,
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
            8 => Self::Hello,
            IGNORABLE.. => Self::Ignorable(code),
            _ => return Err(Error::new(ErrorKind::Unsupported, "frame")),
        })
    }

    /// Whether a payload of this length may stand in such a frame.
    fn takes(self, payload_bytes: usize) -> bool {
        match self {
            Self::Request | Self::Reply | Self::Hello | Self::Ignorable(_) => true,
            Self::Pong => payload_bytes == CLOCK_BYTES,
            Self::Cancel | Self::Drain | Self::Goodbye | Self::Ping => payload_bytes == 0,
        }
    }
}

impl Frame {
    /// Returns the clock that a [`FrameKind::Pong`] carries, in milliseconds.
    pub fn clock_ms(&self) -> Option<u64> {
        let bytes = <[u8; CLOCK_BYTES]>::try_from(&self.payload[..]).ok()?;
        (self.kind == FrameKind::Pong).then(|| u64::from_le_bytes(bytes))
    }
}

/// Writes what stands before a payload of `payload_bytes`.
fn put_head(out: &mut BytesMut, kind: FrameKind, detail: u16, key: u64, payload_bytes: usize) {
    out.put_u32_le(u32::try_from(payload_bytes).expect("a message is below 4 GiB"));
    out.put_u16_le(kind.code());
    out.put_u16_le(detail);
    out.put_u64_le(key);
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
        let (detail, key) = (head.get_u16_le(), head.get_u64_le());
        if payload_bytes > self.payload_bytes {
            return Err(Error::too_large("frame"));
        }
        if !kind.takes(payload_bytes) {
            return Err(Error::malformed("frame: a payload where none belongs"));
        }
        let missing_bytes = (HEAD_BYTES + payload_bytes).saturating_sub(self.buffer.len());
        if missing_bytes > 0 {
            self.buffer.reserve(missing_bytes);
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        let payload = self.buffer.split_to(payload_bytes).freeze();
        Ok(Some(Frame { kind, detail, key, payload }))
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
            Just(FrameKind::Hello),
            (IGNORABLE..).prop_map(FrameKind::Ignorable),
        ]
    }

    fn frames() -> impl Strategy<Value = Frame> {
        // Some are long enough not to be copied.
        let bytes = prop_oneof![9 => 0_usize..2_000, 1 => COPIED_BYTES - 2..COPIED_BYTES + 2];
        (kinds(), any::<u16>(), any::<u64>(), bytes, any::<u8>()).prop_map(
            |(kind, detail, key, bytes, fill)| {
                let bytes = match kind {
                    FrameKind::Pong => CLOCK_BYTES,
                    kind if kind.takes(1) => bytes,
                    _ => 0,
                };
                Frame { kind, detail, key, payload: vec![fill; bytes].into() }
            },
        )
    }

    fn written(frames: &[Frame]) -> Vec<u8> {
        let mut queue = FrameQueue::default();
        for Frame { kind, detail, key, payload } in frames {
            queue.put(*kind, *detail, *key, payload);
        }
        let mut bytes = vec![0; queue.remaining()];
        queue.copy_to_slice(&mut bytes);
        bytes
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
        for (code, is_known) in [(0, false), (9, false), (0x7fff, false), (IGNORABLE, true)] {
            assert_eq!(FrameKind::from_code(code).is_ok(), is_known, "{code}");
        }
    }

    #[test]
    fn what_has_no_payload_is_refused_with_one() {
        let frame = |kind, payload: &'static [u8]| {
            [Frame { kind, detail: 0, key: 1, payload: payload.into() }]
        };
        for kind in [FrameKind::Cancel, FrameKind::Drain, FrameKind::Goodbye, FrameKind::Ping] {
            let refused = read(&written(&frame(kind, b"x")), &[100]);
            assert_eq!(refused.expect_err("a payload").kind(), ErrorKind::Malformed);
        }
        for clock in [&b""[..], b"1234567", b"123456789"] {
            let refused = read(&written(&frame(FrameKind::Pong, clock)), &[100]);
            assert_eq!(refused.expect_err("no clock").kind(), ErrorKind::Malformed);
        }
    }

    proptest! {
        #[test]
        fn frames_are_read_as_written_however_they_arrive(
            frames in proptest::collection::vec(frames(), 0..20),
            pieces in proptest::collection::vec(1_usize..3_000, 1..10),
        ) {
            prop_assert_eq!(read(&written(&frames), &pieces).expect("what was written"), frames);
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
