//! A response's body on its way down a stream, as a client may have it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, Version};
use http_body::{Body, Frame};
use natsway_caller::stream::BrokenOff;
use natsway_caller::stream::download::WatchedDownload;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::OpenStream;
use crate::headers::passable_trailers;

/// The part of a body that comes on a stream.
pub struct Download {
    rest: Rest,
    /// Ends it cleanly when the gateway leaves, for those that read events.
    ends: Option<Pin<Box<EndsWithGateway>>>,
    /// The client's fields and version of HTTP, if it may have trailers.
    trailers_for: Option<(HeaderMap, Version)>,
    is_over: bool,
    _open: OpenStream,
}

/// Where the rest of a body comes from.
enum Rest {
    Worker(Box<WatchedDownload>),
    /// The gateway's own events.
    Events(Pin<Box<dyn Stream<Item = Bytes>>>),
}

/// A while after the gateway began to close.
type EndsWithGateway = dyn Future<Output = ()>;

impl Download {
    /// Returns a body with its place among the shard's streams. `trailers_for` has the client's
    /// fields and version of HTTP, if it may have trailers.
    pub fn new(
        rest: WatchedDownload,
        trailers_for: Option<(HeaderMap, Version)>,
        open: OpenStream,
    ) -> Self {
        let rest = Rest::Worker(Box::new(rest));
        Self { rest, ends: None, trailers_for, is_over: false, _open: open }
    }

    /// Returns a body of the gateway's own, with its place among the shard's streams.
    pub(crate) fn of_events(events: Pin<Box<dyn Stream<Item = Bytes>>>, open: OpenStream) -> Self {
        let rest = Rest::Events(events);
        Self { rest, ends: None, trailers_for: None, is_over: false, _open: open }
    }

    /// Has it end cleanly some time after the gateway began to leave: its client connects again,
    /// and not all of them at once.
    #[must_use]
    pub fn ending_after(
        mut self,
        closing: WaitForCancellationFutureOwned,
        spread: Duration,
    ) -> Self {
        let pause = spread.mul_f64(fastrand::f64());
        self.ends = Some(Box::pin(async move {
            closing.await;
            tokio::time::sleep(pause).await;
        }));
        self
    }

    /// The bytes that are left, if that is known.
    pub fn left(&self) -> Option<u64> {
        match &self.rest {
            Rest::Worker(rest) => rest.left(),
            Rest::Events(_) => None,
        }
    }

    /// Whether all of it was read.
    pub fn is_over(&self) -> bool {
        self.is_over || (self.left() == Some(0) && self.trailers_for.is_none())
    }

    /// Reads on.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        // Before the body: a client that is slower than its worker finds an event whenever it asks.
        // One that is cut in two is discarded by whoever reads events (HTML, 9.2.6).
        if self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) {
            self.is_over = true;
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(match &mut self.rest {
            Rest::Worker(rest) => Pin::new(rest.as_mut()).poll_frame(cx),
            Rest::Events(events) => {
                events.as_mut().poll_next(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
            }
        });
        let frame = match frame {
            Some(Ok(frame)) => frame,
            end => {
                self.is_over = true;
                return Poll::Ready(end);
            }
        };
        let frame = match frame.into_data() {
            Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Err(frame) => frame,
        };
        self.is_over = true;
        let trailers = frame.into_trailers().unwrap_or_default();
        let passed = self
            .trailers_for
            .as_ref()
            .map(|(request, version)| passable_trailers(trailers, request, *version, true));
        let passed = passed.filter(|trailers| !trailers.is_empty());
        Poll::Ready(passed.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download").field("left", &self.left()).finish_non_exhaustive()
    }
}
