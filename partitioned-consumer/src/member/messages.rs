//! The messages of a member as a stream, in place of a handler.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::message::{Job, Message};
use super::work::Work;

/// The messages of a member, as a stream. Dropping it stops the member.
#[must_use = "dropping it stops the member"]
pub struct Messages {
    work: Arc<Work>,
    stop: CancellationToken,
    /// The wait for the next message, while there is one.
    waiting: Option<BoxFuture<'static, Option<Job>>>,
}

impl Messages {
    pub(super) fn new(work: Arc<Work>, stop: CancellationToken) -> Self {
        Self { work, stop, waiting: None }
    }

    /// The next message, or `None` when the member has ended.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Message> {
        StreamExt::next(self).await
    }
}

impl Stream for Messages {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let this = &mut *self;
        let waiting = this.waiting.get_or_insert_with(|| {
            let work = Arc::clone(&this.work);
            async move { Job::next(&work, None).await }.boxed()
        });
        let job = ready!(waiting.poll_unpin(cx));
        this.waiting = None;
        Poll::Ready(job.map(|job| job.message))
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
