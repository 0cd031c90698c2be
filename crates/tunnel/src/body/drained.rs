//! What a receiver's body goes through after it left a tunnel.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};

/// How long the end of a complete body is awaited.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A body from a tunnel that is read to its end although its reader has all of its bytes.
///
/// An HTTP/1 connection drops a body once `Content-Length` bytes were written. If the end of the
/// stream did not come along with the last byte, dropping it is a reset of a stream that was fine.
/// `h2` ends the whole connection after a thousand late frames of such streams. So the end is
/// awaited for a second, off the request's path. A body that was dropped before its last byte is
/// reset, as it should, and so is one that is dropped outside a tokio runtime.
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
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let inner = this.inner.as_mut().expect("only a drop takes it");
        let frame = std::task::ready!(Pin::new(&mut *inner).poll_frame(cx));
        match &frame {
            None | Some(Err(_)) => this.ended = true,
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.remaining() as u64);
                }
                this.ended |= frame.is_trailers() || inner.is_end_stream();
            }
        }
        Poll::Ready(frame)
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
