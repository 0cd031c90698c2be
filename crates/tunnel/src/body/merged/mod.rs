//! What a sender's body goes through before it enters a tunnel.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::small_frames::{MERGED_BYTES, SMALL_BYTES, SmallFrames, TAKEN_AT_ONCE};

/// Chunks of this size and above are passed on as they are, since copying them costs more than a
/// frame of their own.
const PASSED_BYTES: usize = 4 * 1024;

/// A body whose frames are fit for a connection that others share.
///
/// - Frames that are ready are joined up to 16 KiB. Nothing waits for more to come, with one
///   exception: after 64 frames below 256 bytes in a row, small ones leave at most every 5 ms.
/// - Empty frames are dropped, since `h2` ends a connection after a hundred of them.
/// - The last byte of a known length carries the end of the stream. Otherwise the peer may drop a
///   body that is complete before its end arrives, which is a reset.
/// - A body that ends before its declared length, or goes past it, fails. So a peer never takes a
///   part for the whole.
///
/// # Cancel safety
/// Holds at most 16 KiB and one chunk of the body; dropping it drops those.
#[derive(Debug)]
pub struct MergedBody<B: Body> {
    inner: B,
    /// Bytes of the declared length that were not taken from `inner` yet.
    left: Option<u64>,
    has_trailers: bool,
    small: BytesMut,
    large: Option<Bytes>,
    behind: Behind<B::Error>,
    pace: SmallFrames,
}

/// Why a [`MergedBody`] failed.
#[derive(Debug, thiserror::Error)]
pub enum MergedBodyError<E> {
    /// The wrapped body failed.
    #[error("the body failed")]
    Body(#[source] E),
    /// The wrapped body ended this many bytes before its declared length.
    #[error("the body ended {missing_bytes} bytes before its declared length")]
    Short {
        /// Bytes that did not come.
        missing_bytes: u64,
    },
    /// The wrapped body went on past its declared length.
    #[error("the body is longer than its declared length")]
    Long,
}

/// What follows the bytes that are held.
#[derive(Debug)]
enum Behind<E> {
    More,
    Trailers(HeaderMap),
    Error(MergedBodyError<E>),
    End,
}

impl<B> MergedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Wraps a body that ends when it says so, and whose length is known only if it says so.
    pub fn new(inner: B) -> Self {
        let length = inner.size_hint().exact();
        Self::with_length(inner, length, false)
    }

    /// Wraps a body of a declared length in bytes, such as that of `Content-Length`.
    ///
    /// A body that may have trailers ends after its last byte, not with it.
    pub fn with_length(inner: B, length: Option<u64>, has_trailers: bool) -> Self {
        let behind = if inner.is_end_stream() && length.is_none_or(|length| length == 0) {
            Behind::End
        } else {
            Behind::More
        };
        Self {
            inner,
            left: length,
            has_trailers,
            small: BytesMut::new(),
            large: None,
            behind,
            pace: SmallFrames::default(),
        }
    }

    /// Takes what is ready, until a frame is full or something else than bytes follows.
    fn gather(&mut self, cx: &mut Context<'_>) {
        for _ in 0..TAKEN_AT_ONCE {
            if self.is_settled() {
                return;
            }
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.end(),
                Poll::Ready(Some(Err(error))) => {
                    self.behind = Behind::Error(MergedBodyError::Body(error));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.take(data),
                    Err(frame) => self.take_trailers(frame),
                },
            }
        }
        cx.waker().wake_by_ref();
    }

    fn take(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if let Some(left) = self.left {
            let Some(left) = left.checked_sub(data.len() as u64) else {
                self.behind = Behind::Error(MergedBodyError::Long);
                return;
            };
            self.left = Some(left);
            if left == 0 && !self.has_trailers {
                self.behind = Behind::End;
            }
        } else if self.inner.is_end_stream() {
            self.behind = Behind::End;
        }
        if data.len() >= PASSED_BYTES {
            self.large = Some(data);
        } else {
            self.small.extend_from_slice(&data);
        }
    }

    fn take_trailers(&mut self, frame: Frame<Bytes>) {
        match (frame.into_trailers(), self.left) {
            (Ok(_), Some(missing_bytes @ 1..)) => {
                self.behind = Behind::Error(MergedBodyError::Short { missing_bytes });
            }
            (Ok(trailers), _) => self.behind = Behind::Trailers(trailers),
            // HTTP knows no other frames; what is none of both is passed over.
            (Err(_), _) => {}
        }
    }

    fn end(&mut self) {
        self.behind = match self.left {
            Some(missing_bytes @ 1..) => Behind::Error(MergedBodyError::Short { missing_bytes }),
            _ => Behind::End,
        };
    }

    /// Whether waiting would add nothing to the next frame.
    fn is_settled(&self) -> bool {
        self.small.len() >= MERGED_BYTES
            || self.large.is_some()
            || !matches!(self.behind, Behind::More)
    }
}

impl<B> Body for MergedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = MergedBodyError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        this.gather(cx);
        if !this.small.is_empty() {
            if this.small.len() < SMALL_BYTES
                && !this.is_settled()
                && this.pace.poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            this.pace.stop_waiting();
            return Poll::Ready(Some(Ok(Frame::data(this.small.split().freeze()))));
        }
        if let Some(large) = this.large.take() {
            return Poll::Ready(Some(Ok(Frame::data(large))));
        }
        match &this.behind {
            Behind::More => Poll::Pending,
            Behind::End => Poll::Ready(None),
            Behind::Trailers(_) | Behind::Error(_) => {
                Poll::Ready(match std::mem::replace(&mut this.behind, Behind::End) {
                    Behind::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
                    Behind::Error(error) => Some(Err(error)),
                    Behind::More | Behind::End => None,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.small.is_empty() && self.large.is_none() && matches!(self.behind, Behind::End)
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.small.len() + self.large.as_ref().map_or(0, Bytes::len);
        match (self.left, &self.behind) {
            (Some(left), _) => SizeHint::with_exact(held as u64 + left),
            (None, Behind::End) => SizeHint::with_exact(held as u64),
            (None, _) => {
                let mut hint = SizeHint::new();
                hint.set_lower(held as u64 + self.inner.size_hint().lower());
                hint
            }
        }
    }
}

#[cfg(test)]
mod tests;
