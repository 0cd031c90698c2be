//! Runs handlers: as many at once as the member allows, each dropped when its message may no longer be handled.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::consume::{Notice, Notices};
use crate::engine::Job;
use crate::message::Message;

/// What a handler may return.
pub trait HandlerOutcome: Send + 'static {
    /// Whether a message that the handler left unsettled is to be acknowledged, and what went wrong.
    #[doc(hidden)]
    fn verdict(self) -> Verdict;
}

/// What becomes of a message that its handler did not settle.
#[doc(hidden)]
#[derive(Debug)]
pub enum Verdict {
    /// Left to be delivered again after `ack_wait`.
    Leave,
    /// Acknowledged.
    Ack,
    /// Delivered again after the retry delay.
    Retry(String),
}

impl HandlerOutcome for () {
    fn verdict(self) -> Verdict {
        Verdict::Leave
    }
}

impl<E: std::fmt::Display + Send + 'static> HandlerOutcome for Result<(), E> {
    fn verdict(self) -> Verdict {
        match self {
            Ok(()) => Verdict::Ack,
            Err(error) => Verdict::Retry(error.to_string()),
        }
    }
}

pub(crate) async fn run_handlers<H, F, O>(
    mut queue: UnboundedReceiver<Job>,
    handler: H,
    retry_delay: Duration,
    notices: Notices,
) where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output = O> + Send + 'static,
    O: HandlerOutcome,
{
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = running.next(), if !running.is_empty() => {}
            job = queue.recv() => match job {
                Some(job) => running.push(run_one(job, &handler, retry_delay, &notices)),
                None if running.is_empty() => return,
                None => while running.next().await.is_some() {},
            },
        }
    }
}

async fn run_one<H, F, O>(job: Job, handler: &H, retry_delay: Duration, notices: &Notices)
where
    H: Fn(Message) -> F,
    F: Future<Output = O>,
    O: HandlerOutcome,
{
    let Job { message, ticket } = job;
    if ticket.cancelled.is_cancelled() {
        return;
    }
    let stream_sequence = message.stream_sequence();
    // The handler itself may panic before it gives a future.
    let work = AssertUnwindSafe(async { handler(message).await }).catch_unwind();
    let outcome = tokio::select! {
        biased;
        outcome = work => outcome,
        () = ticket.cancelled.cancelled() => return,
    };
    let verdict = match outcome {
        Ok(outcome) => outcome.verdict(),
        Err(panic) => Verdict::Retry(format!("the handler panicked: {}", panic_text(&*panic))),
    };
    let settled = match verdict {
        Verdict::Leave => Ok(()),
        Verdict::Ack if ticket.is_settled() => Ok(()),
        Verdict::Ack => ticket.ack().await,
        Verdict::Retry(error) => {
            notices.tell(Notice::HandlerFailed { stream_sequence, error });
            if ticket.is_settled() { Ok(()) } else { ticket.nak(Some(retry_delay)).await }
        }
    };
    if let Err(error) = settled {
        notices.tell(Notice::HandlerFailed { stream_sequence, error: error.to_string() });
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
