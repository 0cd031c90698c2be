//! The body of a request on its way to an app.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::oneshot;

use crate::Body;
use crate::handler::body::BodyError;

/// A request's body on its way to the app. What was not touched comes back when it is dropped, so
/// that the request can be sent once more.
pub(super) struct Upload {
    body: Option<Body>,
    back: Option<oneshot::Sender<Body>>,
}

/// Where an [`Upload`] comes back.
pub(super) struct Returned(oneshot::Receiver<Body>);

impl Upload {
    pub(super) fn new(body: Body) -> (Self, Returned) {
        let (back, returned) = oneshot::channel();
        (Self { body: Some(body), back: Some(back) }, Returned(returned))
    }
}

impl Returned {
    /// The body, if nothing of it was taken. The connection that had it is over.
    pub(super) async fn body(self) -> Option<Body> {
        self.0.await.ok()
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        self.back = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            // Who does not wait for it does not want it.
            back.send(body).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_that_nobody_touched_comes_back_and_another_does_not() {
        let (upload, returned) = Upload::new(Body::from("abc"));
        drop(upload);
        assert_eq!(returned.body().await.unwrap().into_bytes().await.unwrap(), "abc");
        let (mut upload, returned) = Upload::new(Body::from("abc"));
        assert!(upload.frame().await.is_some());
        drop(upload);
        assert!(returned.body().await.is_none());
    }
}
