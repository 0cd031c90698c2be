//! Reads from the kernel in large pieces what TLS asks for in small ones.
//!
//! `rustls` reads 4 KiB at a time, so a record of 16 KiB takes five system calls, and as many
//! requests in a batch. Here one call takes up to [`PIECE_BYTES`]. What was not asked for yet waits
//! in memory that is gone when it is taken: a tunnel on which nothing comes has none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// At most so much is read at once.
pub const PIECE_BYTES: usize = 64 << 10;

thread_local! {
    /// Where the kernel writes to, before it is known how much there is.
    static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE_BYTES].into_boxed_slice());
}

/// A connection that is read ahead.
#[derive(Debug)]
pub struct ReadAhead<T> {
    io: T,
    /// What came and was not asked for yet.
    ahead: Bytes,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, ahead: Bytes::new() }
    }

    /// Returns the connection.
    pub fn get_ref(&self) -> &T {
        &self.io
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            // A caller with room for a piece gets it without a copy.
            if buf.remaining() >= PIECE_BYTES {
                return Pin::new(&mut self.io).poll_read(cx, buf);
            }
            return PIECE.with_borrow_mut(|piece| {
                let mut piece = ReadBuf::new(piece);
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut piece))?;
                let (now, later) =
                    piece.filled().split_at(buf.remaining().min(piece.filled().len()));
                buf.put_slice(now);
                if !later.is_empty() {
                    self.ahead = Bytes::copy_from_slice(later);
                }
                Poll::Ready(Ok(()))
            });
        }
        let count = buf.remaining().min(self.ahead.len());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Counts what the kernel would be asked.
    struct Counted<T> {
        io: T,
        reads: usize,
    }

    impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            self.reads += 1;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_came_is_read_once_and_given_in_order() {
        let sent: Vec<u8> = (0..PIECE_BYTES + 5_000).map(|at| (at % 251) as u8).collect();
        let (mut near, far) = duplex(2 * PIECE_BYTES);
        near.write_all(&sent).await.expect("there is room");
        drop(near);
        let mut ahead = ReadAhead::new(Counted { io: far, reads: 0 });
        let (mut taken, mut piece) = (Vec::new(), [0; 4_096]);
        loop {
            let count = ahead.read(&mut piece).await.expect("it is there");
            if count == 0 {
                break;
            }
            taken.extend_from_slice(&piece[..count]);
        }
        assert!(taken == sent, "{} bytes of {}", taken.len(), sent.len());
        // Two pieces, and the end.
        assert_eq!(ahead.io.reads, 3);
        assert_eq!(ahead.ahead.len(), 0);
    }

    #[tokio::test]
    async fn a_wide_read_goes_past_the_piece() {
        let (mut near, far) = duplex(2 * PIECE_BYTES);
        near.write_all(&[7; PIECE_BYTES + 1]).await.expect("there is room");
        let mut ahead = ReadAhead::new(far);
        let mut wide = vec![0; 2 * PIECE_BYTES];
        assert_eq!(ahead.read(&mut wide).await.expect("it is there"), PIECE_BYTES + 1);
    }
}
