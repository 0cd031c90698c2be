//! The body that goes down a stream: what a job writes, a tunnel reads.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use natsway_tunnel::http2;
use tokio::sync::mpsc;

/// Pieces that may wait for the tunnel to take them.
const PIECES: usize = 2;

/// The reading end.
#[derive(Debug)]
pub(crate) struct StreamBody {
    pieces: mpsc::Receiver<Piece>,
    /// What is left of a known length.
    length: Option<u64>,
    /// Whether all of it was read.
    is_over: bool,
    /// It breaks off because the worker leaves.
    is_leaving: Arc<AtomicBool>,
}

/// The writing end. Dropping it without [`end`](Self::end) breaks the body off, visibly.
#[derive(Debug)]
pub(crate) struct StreamWriter {
    pieces: mpsc::Sender<Piece>,
    is_leaving: Arc<AtomicBool>,
}

/// How a body ends.
#[derive(Debug)]
pub(crate) enum End {
    /// Whole.
    Whole,
    /// Whole, with trailers behind it.
    Trailers(HeaderMap),
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    End(End),
}

/// The body broke off.
#[derive(Debug, thiserror::Error)]
#[error("the body broke off")]
pub(crate) struct BrokenOff {
    /// What the gateway is told, where the worker leaves: no handler has failed then.
    source: Option<h2::Error>,
}

/// Returns both ends of a body, of a length in bytes if that is known.
pub(crate) fn stream_body(length: Option<u64>) -> (StreamWriter, StreamBody) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let (is_over, is_leaving) = (length == Some(0), Arc::<AtomicBool>::default());
    let writer = StreamWriter { pieces: sender, is_leaving: Arc::clone(&is_leaving) };
    (writer, StreamBody { pieces: receiver, length, is_over, is_leaving })
}

impl StreamBody {
    /// Returns one that is empty.
    pub(crate) fn empty() -> Self {
        stream_body(Some(0)).1
    }
}

impl StreamWriter {
    /// Writes a piece, once there is room. `false` when nobody reads any more.
    pub(crate) async fn write(&self, data: Bytes) -> bool {
        self.pieces.send(Piece::Data(data)).await.is_ok()
    }

    /// Ends the body.
    pub(crate) async fn end(self, end: End) {
        // Who left need not be told.
        self.pieces.send(Piece::End(end)).await.ok();
    }

    /// Breaks the body off because the worker leaves.
    pub(crate) fn leave(self) {
        self.is_leaving.store(true, Release);
    }

    /// Completes when nobody reads any more.
    pub(crate) async fn closed(&self) {
        self.pieces.closed().await;
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let piece = std::task::ready!(self.pieces.poll_recv(cx));
        let frame = match piece {
            Some(Piece::Data(data)) => {
                if let Some(left) = &mut self.length {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Some(Ok(Frame::data(data)))
            }
            Some(Piece::End(end)) => {
                self.is_over = true;
                match end {
                    End::Whole => None,
                    End::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
                }
            }
            None => {
                self.is_over = true;
                let source = self.is_leaving.load(Acquire).then(http2::leaving);
                Some(Err(BrokenOff { source }))
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_its_end_too() {
        let (writer, body) = stream_body(None);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().expect("a value"));
        let end = End::Trailers(trailers.clone());
        let written = async {
            assert!(writer.write(Bytes::from_static(b"one ")).await);
            assert!(writer.write(Bytes::from_static(b"two")).await);
            writer.end(end).await;
        };
        let (collected, ()) = tokio::join!(body.collect(), written);
        let collected = collected.expect("whole");
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "one two");
    }

    #[tokio::test]
    async fn a_writer_that_vanishes_breaks_the_body_off() {
        let (writer, body) = stream_body(None);
        let written = async move {
            writer.write(Bytes::from_static(b"one ")).await;
        };
        let (collected, ()) = tokio::join!(body.collect(), written);
        assert!(!http2::is_leaving(&collected.expect_err("it is not whole")));
    }

    #[tokio::test]
    async fn a_worker_that_leaves_says_so_when_it_breaks_a_body_off() {
        let (writer, body) = stream_body(None);
        let written = async move {
            writer.write(Bytes::from_static(b"one ")).await;
            writer.leave();
        };
        let (collected, ()) = tokio::join!(body.collect(), written);
        assert!(http2::is_leaving(&collected.expect_err("it is not whole")));
    }

    #[tokio::test]
    async fn a_reader_that_leaves_is_noticed() {
        let (writer, body) = stream_body(None);
        drop(body);
        writer.closed().await;
        assert!(!writer.write(Bytes::new()).await);
    }
}
