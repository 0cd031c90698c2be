//! What one end of a connection sends, in pieces that are fit for a tunnel: a stream that became a
//! connection carries whatever its ends write, and each write is a frame there.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::small_frames::{MERGED_BYTES, SMALL_BYTES, SmallFrames, TAKEN_AT_ONCE};

thread_local! {
    /// Where all connections of a thread are read. Most are silent most of the time, and a buffer
    /// for each in either direction would be most of what they cost.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MERGED_BYTES].into());
}

/// Joins what is there, up to 16 KiB, as [`MergedBody`](crate::body::MergedBody) does for bodies.
///
/// Nothing waits for more to come, with one exception: on the way into a tunnel pieces below 256
/// bytes leave at most every 5 ms, after 64 of them in a row. A frame that nobody reads costs its
/// receiver about 256 bytes, however short it is, so that a window of single bytes would be
/// hundreds of times what it says.
#[derive(Debug, Default)]
pub struct Pieces {
    /// What was read and has not left; without memory while it is empty.
    held: Vec<u8>,
    /// What comes behind it.
    end: Option<io::Result<()>>,
    pace: Option<SmallFrames>,
}

impl Pieces {
    /// Returns those that leave as soon as they are there: out of a tunnel.
    pub fn joined() -> Self {
        Self::default()
    }

    /// Returns those that go into a tunnel.
    pub fn for_tunnel() -> Self {
        Self { pace: Some(SmallFrames::default()), ..Self::default() }
    }

    /// Reads the next piece; an empty one at the end.
    ///
    /// # Errors
    /// The connection's, once what came before is read.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was read is part of the next piece.
    pub async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
        poll_fn(|cx| self.poll(cx, from)).await
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<Vec<u8>>> {
        self.gather(cx, from);
        if self.held.is_empty() {
            return match self.end.take() {
                None => Poll::Pending,
                Some(end) => Poll::Ready(end.map(|()| Vec::new())),
            };
        }
        if let Some(pace) = &mut self.pace {
            if self.held.len() < SMALL_BYTES && self.end.is_none() {
                ready!(pace.poll(cx));
            }
            pace.stop_waiting();
        }
        Poll::Ready(Ok(std::mem::take(&mut self.held)))
    }

    /// Takes what is there, until a piece is full or the connection has ended.
    fn gather(&mut self, cx: &mut Context<'_>, from: &mut (impl AsyncRead + Unpin)) {
        for _ in 0..TAKEN_AT_ONCE {
            if self.end.is_some() || self.held.len() >= MERGED_BYTES {
                return;
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let mut piece = ReadBuf::new(&mut scratch[..MERGED_BYTES - self.held.len()]);
                let read = Pin::new(&mut *from).poll_read(cx, &mut piece);
                read.map_ok(|()| {
                    self.held.extend_from_slice(piece.filled());
                    piece.filled().len()
                })
            });
            match read {
                Poll::Pending => return,
                Poll::Ready(Ok(0)) => self.end = Some(Ok(())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => self.end = Some(Err(error)),
            }
        }
        cx.waker().wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    /// Sends single bytes, each of which is there before the next, and returns the pieces that come
    /// of them and how long they took.
    async fn pieces_of_bytes(mut pieces: Pieces, bytes: usize) -> (Vec<usize>, Duration) {
        let (mut sender, mut receiver) = duplex(64);
        let sending = async move {
            for _ in 0..bytes {
                sender.write_all(b"x").await.expect("it is read");
                tokio::task::yield_now().await;
            }
        };
        let begun = Instant::now();
        let reading = async {
            let mut lengths = Vec::new();
            loop {
                let piece = pieces.next(&mut receiver).await.expect("it is whole");
                if piece.is_empty() {
                    return lengths;
                }
                lengths.push(piece.len());
            }
        };
        let ((), lengths) = tokio::join!(sending, reading);
        assert_eq!(lengths.iter().sum::<usize>(), bytes, "nothing is lost");
        (lengths, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn single_bytes_enter_a_tunnel_at_their_pace_and_leave_it_at_once() {
        let (lengths, took) = pieces_of_bytes(Pieces::for_tunnel(), 100_000).await;
        let paid = took.as_millis() as usize / 5;
        let most = 64 + paid + 100_000 / SMALL_BYTES + 2;
        assert!(lengths.len() <= most, "{} pieces in {took:?}", lengths.len());
        let (_, took) = pieces_of_bytes(Pieces::joined(), 1_000).await;
        assert_eq!(took, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_little_does_not_wait() {
        let (mut sender, mut receiver) = duplex(64);
        let mut pieces = Pieces::for_tunnel();
        for _ in 0..500 {
            let begun = Instant::now();
            sender.write_all(b"hello").await.expect("it is read");
            assert_eq!(pieces.next(&mut receiver).await.expect("it is there"), b"hello");
            assert_eq!(begun.elapsed(), Duration::ZERO);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_is_there_comes_in_full_pieces_and_before_the_end() {
        let (mut sender, mut receiver) = duplex(1 << 20);
        sender.write_all(&[b'x'; 40_000]).await.expect("there is room");
        drop(sender);
        let mut pieces = Pieces::for_tunnel();
        let mut lengths = Vec::new();
        for _ in 0..4 {
            lengths.push(pieces.next(&mut receiver).await.expect("it is whole").len());
        }
        assert_eq!(lengths, [16_384, 16_384, 7_232, 0]);
    }
}
