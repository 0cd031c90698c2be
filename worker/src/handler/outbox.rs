//! Where replies go: the newest session, whichever the request came by.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use async_nats::{Client, HeaderMap, PublishErrorKind, Subject};
use bytes::Bytes;
use natsway_wire::native;
use tokio::sync::watch;

/// The newest session's client, or none while there is none. Handlers on any thread publish through
/// it.
#[derive(Debug)]
pub(crate) struct Outbox {
    newest: watch::Sender<Option<Arc<Client>>>,
    max_payload: AtomicUsize,
}

/// Why a reply was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendError {
    /// No session came before the deadline.
    Late,
    /// The reply subject is no subject.
    Subject,
    /// It is longer than the broker now in use takes.
    TooLarge,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { newest: watch::Sender::new(None), max_payload: AtomicUsize::new(usize::MAX) }
    }

    /// From now on replies go by `client`.
    pub(crate) fn set(&self, client: Option<Arc<Client>>) {
        if let Some(client) = &client {
            self.max_payload.store(client.max_payload(), Relaxed);
        }
        self.newest.send_replace(client);
    }

    pub(crate) fn newest(&self) -> Option<Arc<Client>> {
        self.newest.borrow().clone()
    }

    /// The newest session's client; waits for one.
    pub(crate) async fn connected(&self) -> Arc<Client> {
        let mut newest = self.newest.subscribe();
        loop {
            if let Some(client) = &*newest.borrow_and_update() {
                return Arc::clone(client);
            }
            // It is not closed, since its sender is ours.
            newest.changed().await.ok();
        }
    }

    /// The longest message that the broker takes; it closes the connection of a client that sends a
    /// longer one.
    pub(crate) fn max_payload(&self) -> usize {
        self.max_payload.load(Relaxed)
    }

    /// Hands a reply to the newest session; while there is none, waits for one until `deadline`.
    ///
    /// # Errors
    /// [`SendError`]. A reply that was handed over may still be lost with its session: its sender
    /// cannot know.
    pub(crate) async fn send(
        &self,
        reply: Subject,
        message: Bytes,
        deadline: Instant,
    ) -> Result<(), SendError> {
        let mut tried = self.newest();
        if let Some(client) = &tried
            && let Some(result) = publish(client, &reply, &message).await
        {
            return result;
        }
        let mut newest = self.newest.subscribe();
        loop {
            let another = newest.wait_for(|newest| match (newest, &tried) {
                (Some(newest), Some(tried)) => !Arc::ptr_eq(newest, tried),
                (newest, _) => newest.is_some(),
            });
            let client = match tokio::time::timeout_at(deadline.into(), another).await {
                Ok(Ok(client)) => client.clone(),
                Ok(Err(_)) | Err(_) => return Err(SendError::Late),
            };
            if let Some(client) = &client
                && let Some(result) = publish(client, &reply, &message).await
            {
                return result;
            }
            tried = client;
        }
    }
}

/// Publishes on one session; `None` when that is lost.
async fn publish(
    client: &Client,
    reply: &Subject,
    message: &Bytes,
) -> Option<Result<(), SendError>> {
    match client.publish(reply.clone(), message.clone()).await {
        Ok(()) => Some(Ok(())),
        Err(error) => match error.kind() {
            PublishErrorKind::Send => None,
            PublishErrorKind::MaxPayloadExceeded => Some(Err(SendError::TooLarge)),
            PublishErrorKind::InvalidSubject => Some(Err(SendError::Subject)),
        },
    }
}

/// The headers of an ADR-32 service error, for callers that do not speak the envelope.
pub(crate) fn service_error(code: u16, text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(native::ERROR_CODE, code.to_string().as_str());
    // A header value holds no line breaks, and the text may quote what the caller sent.
    let line: String =
        text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    headers.insert(native::ERROR, line.as_str());
    headers
}
