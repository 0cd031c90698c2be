//! What a receiver's body goes through after it left a tunnel.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};

/// How long the end of a complete body is awaited.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a [`DrainedBody`] failed.
#[derive(Debug, thiserror::Error)]
pub enum DrainedBodyError<E> {
    /// The wrapped body failed.
    #[error("the body failed")]
    Body(#[source] E),
    /// It ended as if it were whole, and its stream had not ended: the connection was lost.
    #[error("the body broke off")]
    BrokenOff,
}

/// A body from a tunnel that is read to its end although its reader has all of its bytes.
///
/// An HTTP/1 connection drops a body once `Content-Length` bytes were written. If the end of the
/// stream did not come along with the last byte, dropping it is a reset of a stream that was fine.
/// `h2` ends the whole connection after a thousand late frames of such streams. So the end is
/// awaited for a second, off the request's path. A body that was dropped before its last byte is
/// reset, as it should, and so is one that is dropped outside a tokio runtime.
///
/// A body fails that ends before its stream does, or before its known length: when a connection
/// breaks in some ways, hyper reports the end of a body as if it were whole.
#[derive(Debug)]
pub struct DrainedBody<B: Body<Error: Send, Data: Send> + Send + Unpin + 'static> {
    /// None once it is on its way to the end.
    inner: Option<B>,
    left: Option<u64>,
    ended: bool,
}

impl<B: Body<Error: Send, Data: Send> + Send + Unpin + 'static> DrainedBody<B> {
    /// Wraps a body whose length is known only if it says so.
    pub fn new(inner: B) -> Self {
        let left = inner.size_hint().exact();
        Self { ended: inner.is_end_stream(), left, inner: Some(inner) }
    }

    fn inner(&self) -> &B {
        self.inner.as_ref().expect("only a drop takes it")
    }
}

impl<B: Body<Error: Send, Data: Send> + Send + Unpin + 'static> Body for DrainedBody<B> {
    type Data = B::Data;
    type Error = DrainedBodyError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let inner = this.inner.as_mut().expect("only a drop takes it");
        let frame = std::task::ready!(Pin::new(&mut *inner).poll_frame(cx));
        match &frame {
            None => {
                let is_whole =
                    this.ended || inner.is_end_stream() && this.left.is_none_or(|left| left == 0);
                this.ended = true;
                if !is_whole {
                    return Poll::Ready(Some(Err(DrainedBodyError::BrokenOff)));
                }
            }
            Some(Err(_)) => this.ended = true,
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.remaining() as u64);
                }
                this.ended |= frame.is_trailers() || inner.is_end_stream();
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(DrainedBodyError::Body)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner().size_hint()
    }
}

impl<B: Body<Error: Send, Data: Send> + Send + Unpin + 'static> Drop for DrainedBody<B> {
    fn drop(&mut self) {
        if self.ended || self.left != Some(0) {
            return;
        }
        let Some(inner) = self.inner.take().filter(|inner| !inner.is_end_stream()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async { tokio::time::timeout(END_TIMEOUT, read_to_end(inner)).await });
        }
    }
}

/// Reads what is left, which is nothing but the end unless the peer breaks its word.
async fn read_to_end<B: Body + Unpin>(mut body: B) {
    while let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        if frame.data_ref().is_some_and(|data| data.has_remaining()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;

    use super::*;

    /// A body that hyper ends in order: whether its stream had ended, too, is for it to say.
    struct Ended {
        first: Option<Bytes>,
        length: Option<u64>,
        is_end_stream: bool,
    }

    impl Body for Ended {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.first.take().map(|first| Ok(Frame::data(first))))
        }

        fn is_end_stream(&self) -> bool {
            self.first.is_none() && self.is_end_stream
        }

        fn size_hint(&self) -> SizeHint {
            self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
        }
    }

    fn read(length: Option<u64>, is_end_stream: bool) -> bool {
        let first = Some(Bytes::from_static(b"abc"));
        let mut body = DrainedBody::new(Ended { first, length, is_end_stream });
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Ready(None) => return true,
                Poll::Ready(Some(Err(_))) => return false,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Pending => unreachable!("it is ready"),
            }
        }
    }

    #[test]
    fn a_body_whose_connection_was_lost_does_not_look_whole() {
        assert!(read(None, true) && read(Some(3), true));
        assert!(!read(None, false), "its stream had not ended");
        assert!(!read(Some(3), false), "nor here");
    }
}
