//! Instances as subscription sets of workers that are there: `scale-out` and `scale-in`, as
//! QueueWatch has it.

use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use natsway_wire::Subject;
use natsway_wire::control::{Directive, directive_subject, presence_subject};

use super::{Backend, BackendError, Instance, InstanceState};

/// How long the sets may take to say that they are there.
const GATHER: Duration = Duration::from_millis(300);

/// How long whoever obeys may take to say so.
const OBEYED_WITHIN: Duration = Duration::from_secs(2);

/// A set that was ordered and does not show after this will not.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

/// Sends directives to the workers of one subject (`natsway_worker::serve_scaled`). Each is obeyed
/// by exactly one of them; which one, the broker decides.
pub struct Directives {
    client: Client,
    subject: Subject,
    /// Sets that were there at the last poll.
    known: usize,
    /// When sets were ordered that do not show yet.
    ordered: Vec<Instant>,
}

impl Directives {
    /// A backend for the workers of `subject`.
    pub fn new(client: Client, subject: Subject) -> Self {
        Self { client, subject, known: 0, ordered: Vec::new() }
    }

    /// The ids of all sets that serve the subject and do not leave.
    async fn present(&self) -> Result<Vec<String>, async_nats::Error> {
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        self.client
            .publish_with_reply(presence_subject(&self.subject), inbox, Bytes::new())
            .await?;
        let mut ids = Vec::new();
        let until = tokio::time::Instant::now() + GATHER;
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
            if answer.status == Some(StatusCode::NO_RESPONDERS) {
                break;
            }
            ids.push(String::from_utf8_lossy(&answer.payload).into_owned());
        }
        // A worker with several connections answers on each.
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    async fn survey(&mut self) -> Result<Vec<Instance>, BackendError> {
        let ids = self.present().await;
        let ids =
            ids.map_err(|error| BackendError::new(format!("workers of {}", self.subject), error))?;
        let appeared = ids.len().saturating_sub(self.known).min(self.ordered.len());
        self.ordered.drain(..appeared);
        self.ordered.retain(|since| since.elapsed() < APPEARS_WITHIN);
        self.known = ids.len();
        let ready = ids.into_iter().map(|id| Instance::new(id, InstanceState::Ready, 0));
        let ordered = |place| Instance::new(format!("ordered {place}"), InstanceState::Starting, 1);
        let starting = (0..self.ordered.len()).map(ordered);
        Ok(ready.chain(starting).collect())
    }

    /// Sends a directive and waits until somebody says that it is obeyed.
    ///
    /// Without an answer it may be obeyed or not; the next poll counts again.
    async fn direct(&self, directive: Directive) -> Result<(), BackendError> {
        let message = format!("{{\"directive\":\"{directive}\"}}");
        let subject = directive_subject(directive, &self.subject);
        let what = || format!("{directive} for {}", self.subject);
        // A client that is away would send it later, when it may be wrong.
        if self.client.connection_state() != State::Connected {
            return Err(BackendError::new(what(), "the broker is away"));
        }
        match tokio::time::timeout(OBEYED_WITHIN, self.client.request(subject, message.into()))
            .await
        {
            Ok(Ok(answer)) => match refusal(&answer.payload) {
                None => Ok(()),
                Some(refusal) => Err(BackendError::new(what(), refusal)),
            },
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                Err(match directive {
                    Directive::ScaleOut => BackendError::new(
                        what(),
                        "no worker may open another set: start workers, or raise their --max-sets",
                    ),
                    // Fewer sets than workers are more than a directive can do, and no trouble.
                    Directive::ScaleIn => BackendError::floor(
                        what(),
                        "every worker is down to one set: stop workers by other means",
                    ),
                })
            }
            Ok(Err(error)) => Err(BackendError::new(what(), error)),
            Err(_) => Err(BackendError::new(what(), "nobody said that it is obeyed")),
        }
    }

    async fn scale_out(&mut self) -> Result<(), BackendError> {
        self.direct(Directive::ScaleOut).await?;
        self.ordered.push(Instant::now());
        Ok(())
    }

    async fn scale_in(&mut self) -> Result<(), BackendError> {
        self.direct(Directive::ScaleIn).await?;
        self.known = self.known.saturating_sub(1);
        Ok(())
    }
}

/// Why a worker did not obey, if it says so.
fn refusal(answer: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    answer.error.map(|error| format!("a worker refused it: {error}"))
}

impl Backend for Directives {
    fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
        self.survey().boxed()
    }

    fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.scale_out().boxed()
    }

    /// Whichever worker the broker chooses drains its newest set; the id is not heeded.
    fn stop<'a>(&'a mut self, _: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        self.scale_in().boxed()
    }

    fn stops_whom_it_is_told(&self) -> bool {
        false
    }
}
