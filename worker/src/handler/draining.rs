//! Whether the worker leaves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Completes when the worker begins to leave, as a request extension.
///
/// By then no further request comes to it, so whoever connects again is served by another worker.
/// Streams go on until shortly before [`Options::drain_timeout`](crate::Options::drain_timeout) is
/// over and are ended then, each in the way of its kind. This is for handlers that want to say
/// goodbye by themselves: the last event, a Close, a final message.
///
/// ```
/// use futures_util::{Stream, StreamExt};
/// use natsway_worker::Draining;
///
/// /// Events until the worker leaves: their reader connects again, elsewhere.
/// fn events(draining: Draining) -> impl Stream<Item = &'static str> {
///     futures_util::stream::repeat("data: tick\n\n").take_until(draining)
/// }
/// # let (draining, begin) = Draining::for_tests();
/// # begin();
/// # let events = futures_util::FutureExt::now_or_never(events(draining).collect::<Vec<_>>());
/// # assert_eq!(events, Some(vec![]));
/// ```
///
/// # Cancel safety
/// Nothing is lost when it is dropped; a clone completes as well.
#[derive(Debug)]
#[must_use = "it completes when it is awaited"]
pub struct Draining {
    /// Shared by an `Arc` of its own: every request has a clone, and a token's own takes a lock.
    begun: Arc<CancellationToken>,
    waiting: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Draining {
    pub(crate) fn new(begun: Arc<CancellationToken>) -> Self {
        Self { begun, waiting: None }
    }

    /// Returns one that begins when the function is called, for tests of handlers.
    pub fn for_tests() -> (Self, impl Fn() + Send + Sync + 'static) {
        let begun = Arc::new(CancellationToken::new());
        (Self::new(Arc::clone(&begun)), move || begun.cancel())
    }

    /// Whether the worker leaves.
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }
}

impl Clone for Draining {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.begun))
    }
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { begun, waiting } = &mut *self;
        let waiting = waiting
            .get_or_insert_with(|| Box::pin(CancellationToken::clone(begun).cancelled_owned()));
        waiting.as_mut().poll(cx)
    }
}
