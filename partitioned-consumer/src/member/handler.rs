//! Runs handlers: as many at once as the member allows, each dropped when its message may no longer
//! be handled.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;

use super::event::{MemberEvent, MemberEvents};
use super::message::{Job, Message};
use super::panics::caught;
use super::work::Work;

/// What a handler may return.
pub trait HandlerOutcome: Send + 'static {
    /// Whether a message that the handler left unsettled is to be acknowledged, and what went
    /// wrong.
    #[doc(hidden)]
    fn disposition(self) -> Disposition;
}

/// What becomes of a message that its handler did not settle.
#[doc(hidden)]
#[derive(Debug)]
pub enum Disposition {
    /// Left to be delivered again after `ack_wait`.
    Leave,
    /// Acknowledged.
    Ack,
    /// Delivered again after the retry delay.
    Retry(String),
}

impl HandlerOutcome for () {
    fn disposition(self) -> Disposition {
        Disposition::Leave
    }
}

impl<E: std::fmt::Display + Send + 'static> HandlerOutcome for Result<(), E> {
    fn disposition(self) -> Disposition {
        match self {
            Ok(()) => Disposition::Ack,
            // As much as it says: some errors keep their causes for this form.
            Err(error) => Disposition::Retry(format!("{error:#}")),
        }
    }
}

/// Handles one message after the other until the member ends; a member runs as many of these as it
/// has handlers.
pub(crate) async fn run_handler<H, F, O>(
    work: Arc<Work>,
    handler: Arc<H>,
    retry_delay: Duration,
    events: MemberEvents,
) where
    H: Fn(Message) -> F,
    F: Future<Output = O>,
    O: HandlerOutcome,
{
    let mut finished = None;
    while let Some(job) = Job::next(&work, finished.take()).await {
        let stream_sequence = job.message.stream_sequence();
        // A handler that is dropped may panic in a destructor of its own, and an error while it is
        // written down.
        let run =
            AssertUnwindSafe(run_one(job, &*handler, retry_delay, &events)).catch_unwind().await;
        finished = run.unwrap_or_else(|panic| {
            let error = format!("the handler panicked on its way out: {}", caught(panic));
            events.publish(MemberEvent::HandlerFailed { stream_sequence, error });
            None
        });
        // A handler that never waits would keep everything else of this thread waiting.
        tokio::task::coop::consume_budget().await;
    }
}

/// Handles one message; gives the run back when it has ended and nobody was told.
async fn run_one<H, F, O>(
    job: Job,
    handler: &H,
    retry_delay: Duration,
    events: &MemberEvents,
) -> Option<u64>
where
    H: Fn(Message) -> F,
    F: Future<Output = O>,
    O: HandlerOutcome,
{
    let Job { message, ticket } = job;
    let stream_sequence = message.stream_sequence();
    // The handler itself may panic before it gives a future, and its error while it is written
    // down.
    let work = AssertUnwindSafe(async { handler(message).await.disposition() }).catch_unwind();
    let outcome = tokio::select! {
        biased;
        outcome = work => outcome,
        () = ticket.session.cancelled() => return None,
    };
    let disposition = match outcome {
        Ok(disposition) => disposition,
        Err(panic) => Disposition::Retry(format!("the handler panicked: {}", caught(panic))),
    };
    let settled = match disposition {
        Disposition::Leave => Ok(()),
        Disposition::Ack if ticket.is_settled() => Ok(()),
        Disposition::Ack => ticket.ack().await,
        Disposition::Retry(error) => {
            events.publish(MemberEvent::HandlerFailed { stream_sequence, error });
            if ticket.is_settled() { Ok(()) } else { ticket.nak(Some(retry_delay)).await }
        }
    };
    if let Err(error) = settled {
        events.publish(MemberEvent::HandlerFailed { stream_sequence, error: error.to_string() });
    }
    // The handler may have given the message to somebody who still holds it.
    let last = Arc::into_inner(ticket)?;
    last.finished.store(true, Ordering::Relaxed);
    Some(last.run)
}
