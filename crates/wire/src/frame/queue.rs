//! Frames that wait to be written.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::{FrameKind, HEAD_BYTES, put_head};

/// Payloads up to this are copied behind their head, into one buffer with their neighbours: a copy
/// of these costs less than a piece of its own does in a write.
pub const COPIED_BYTES: usize = 16 * 1024;

/// Frames in the order in which they are to be written, as a [`Buf`]: the small ones lie side by
/// side in one buffer, so that a write takes all of them at once.
#[derive(Debug, Default)]
pub struct FrameQueue {
    /// Before `tail`.
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    remaining: usize,
    /// Bytes of all frames that were ever put here.
    put: u64,
}

impl FrameQueue {
    /// Adds a frame.
    ///
    /// # Panics
    /// Above 4 GiB of payload; senders refuse what is above the bound of a message long before.
    pub fn put(&mut self, kind: FrameKind, detail: u16, key: u64, payload: &Bytes) {
        let bytes = HEAD_BYTES + payload.len();
        self.remaining += bytes;
        self.put += bytes as u64;
        if payload.len() <= COPIED_BYTES {
            self.tail.reserve(bytes);
            put_head(&mut self.tail, kind, detail, key, payload.len());
            self.tail.extend_from_slice(payload);
            return;
        }
        put_head(&mut self.tail, kind, detail, key, payload.len());
        self.pieces.push_back(self.tail.split().freeze());
        self.pieces.push_back(payload.clone());
    }

    /// Adds a frame without a payload.
    pub fn put_empty(&mut self, kind: FrameKind, detail: u16, key: u64) {
        self.put(kind, detail, key, &Bytes::new());
    }

    /// Adds the answer to a ping: its key, and the own clock in milliseconds.
    pub fn put_pong(&mut self, detail: u16, key: u64, clock_ms: u64) {
        let clock = Bytes::copy_from_slice(&clock_ms.to_le_bytes());
        self.put(FrameKind::Pong, detail, key, &clock);
    }

    /// Returns where the last frame ends, in bytes since the first.
    pub fn end(&self) -> u64 {
        self.put
    }

    /// Returns how many bytes were taken out, since the first.
    pub fn written(&self) -> u64 {
        self.put - self.remaining as u64
    }
}

impl Buf for FrameQueue {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&self.tail, |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let pieces = self.pieces.iter().map(|piece| &piece[..]).chain(tail);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "no more can be taken out than is there");
        self.remaining -= count;
        let mut left = count;
        while let Some(piece) = self.pieces.front_mut() {
            let taken = left.min(piece.len());
            piece.advance(taken);
            left -= taken;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail.advance(left);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_long_is_not_copied_and_what_is_small_goes_together() {
        let mut queue = FrameQueue::default();
        let long = Bytes::from(vec![7; COPIED_BYTES + 1]);
        for payload in [&Bytes::from_static(b"a"), &Bytes::from_static(b"b"), &long] {
            queue.put(FrameKind::Request, 0, 1, payload);
        }
        queue.put_empty(FrameKind::Cancel, 0, 1);
        let mut slices = [IoSlice::new(b""); 8];
        assert_eq!(queue.chunks_vectored(&mut slices), 3);
        assert_eq!(slices[0].len(), 3 * HEAD_BYTES + 2);
        assert_eq!(slices[1].as_ptr(), long.as_ptr());
        assert_eq!(slices[2].len(), HEAD_BYTES);
        assert_eq!(queue.chunks_vectored(&mut [IoSlice::new(b"")]), 1);
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order_and_are_counted(
            payloads in prop::collection::vec(
                prop_oneof![4 => 0_usize..100, 1 => COPIED_BYTES..COPIED_BYTES + 100],
                1..12,
            ),
            steps in prop::collection::vec(1_usize..9_000, 1..12),
        ) {
            let (mut queue, mut whole) = (FrameQueue::default(), BytesMut::new());
            for (key, bytes) in payloads.into_iter().enumerate() {
                let payload = Bytes::from(vec![key as u8; bytes]);
                queue.put(FrameKind::Reply, 3, key as u64, &payload);
                put_head(&mut whole, FrameKind::Reply, 3, key as u64, bytes);
                whole.extend_from_slice(&payload);
            }
            prop_assert_eq!(queue.end(), whole.len() as u64);
            let mut left = Vec::new();
            for step in steps.into_iter().cycle() {
                let taken = step.min(queue.chunk().len());
                left.extend_from_slice(&queue.chunk()[..taken]);
                queue.advance(taken);
                prop_assert_eq!(queue.written(), left.len() as u64);
                if !queue.has_remaining() {
                    break;
                }
            }
            prop_assert_eq!(&left[..], &whole[..]);
        }
    }
}
