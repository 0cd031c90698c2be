//! How the two ends of a pipe meet: the worker [hears](Ear), the gateway [calls](call), and the
//! worker [answers](answer).

use std::time::Duration;

use async_nats::{Subject, Subscriber};
use futures_util::StreamExt;
use natsway_wire::control::{is_inbox, is_mapped};
use natsway_wire::pipe::{CHUNK_BYTES, PipeMessage, ResetReason, subject_below};
use natsway_wire::{QueueGroup, Subject as ServiceSubject};

use super::broker::PipeConnection;
use super::driver::PipeDriver;
use super::error::PipeOpenError;
use super::state::PipeState;
use super::stream::{PipeSettings, PipeStream};

/// How long the other end may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// Between two hellos to somebody whom the broker does not know yet.
const HELLO_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of a message beside its payload that count against the broker's limit, and those of a
/// pipe's own.
const MESSAGE_BYTES: usize = 64;

/// Where a worker hears for one pipe.
#[derive(Debug)]
pub struct Ear {
    connection: PipeConnection,
    messages: Subscriber,
    subject: Subject,
}

impl Ear {
    /// Subscribes to an inbox of the worker's own. Where `below` is given, it hears below that
    /// subject of a service and in that queue group, for its gateway is in another account.
    ///
    /// # Errors
    /// [`PipeOpenError::ConnectionLost`], [`PipeOpenError::SmallMessages`].
    pub async fn open(
        connection: PipeConnection,
        below: Option<(&ServiceSubject, &QueueGroup)>,
    ) -> Result<Self, PipeOpenError> {
        let client = connection.client();
        takes_chunks(&connection)?;
        let (subject, subscribed) = match below {
            None => {
                let subject = Subject::from(connection.inbox());
                let subscribed = client.subscribe(subject.clone()).await;
                (subject, subscribed)
            }
            Some((service, group)) => {
                let random = natsway_boot::random_id();
                let subject = Subject::from(subject_below(service.as_str(), &random));
                let group = group.as_str().to_owned();
                let subscribed = client.queue_subscribe(subject.clone(), group).await;
                (subject, subscribed)
            }
        };
        let messages = subscribed.map_err(|_| PipeOpenError::ConnectionLost)?;
        // On its way before anybody is told of it.
        client.flush().await.map_err(|_| PipeOpenError::ConnectionLost)?;
        Ok(Self { connection, messages, subject })
    }

    /// Returns the subject at which it is to be called.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }
}

/// Waits to be called, and answers: the worker's end.
///
/// # Errors
/// [`PipeOpenError`].
pub async fn answer(
    mut ear: Ear,
    settings: PipeSettings,
) -> Result<(PipeStream, PipeDriver), PipeOpenError> {
    let (window, reply) = tokio::time::timeout(HELLO_TIMEOUT, async {
        loop {
            let message = ear.messages.next().await.ok_or(PipeOpenError::ConnectionLost)?;
            // An answer by our permissions goes to an inbox alone.
            let Some(reply) = message.reply.filter(|reply| is_inbox(reply)) else { continue };
            match PipeMessage::decode(&message.payload) {
                Ok(PipeMessage::Hello { window }) => return Ok((window, reply)),
                Ok(PipeMessage::Reset(reason)) => return Err(PipeOpenError::Refused(reason)),
                _ => return Err(PipeOpenError::NoHello),
            }
        }
    })
    .await
    .map_err(|_| PipeOpenError::NoAnswer)??;
    let hello = PipeMessage::Hello { window: settings.window_bytes }.encode();
    let answered = ear.connection.client().publish(reply.clone(), hello).await;
    answered.map_err(|_| PipeOpenError::ConnectionLost)?;
    let (stream, shared) = PipeStream::new(PipeState::new(settings.window_bytes, window));
    let Ear { connection, messages, subject } = ear;
    let follows_reply = is_mapped(&reply);
    let driver = PipeDriver {
        shared,
        connection,
        messages,
        own: subject,
        peer: reply,
        follows_reply,
        settings,
    };
    Ok((stream, driver))
}

/// Calls a worker at the subject that it named: the gateway's end.
///
/// # Errors
/// [`PipeOpenError`].
pub async fn call(
    connection: PipeConnection,
    subject: &str,
    settings: PipeSettings,
) -> Result<(PipeStream, PipeDriver), PipeOpenError> {
    takes_chunks(&connection)?;
    let client = connection.client();
    let (own, peer) = (Subject::from(connection.inbox()), Subject::from(subject));
    let subscribed = client.subscribe(own.clone()).await;
    let mut messages = subscribed.map_err(|_| PipeOpenError::ConnectionLost)?;
    let hello = PipeMessage::Hello { window: settings.window_bytes }.encode();
    let window = tokio::time::timeout(HELLO_TIMEOUT, async {
        loop {
            let called = client.publish_with_reply(peer.clone(), own.clone(), hello.clone()).await;
            called.map_err(|_| PipeOpenError::ConnectionLost)?;
            let message = messages.next().await.ok_or(PipeOpenError::ConnectionLost)?;
            if message.status.is_some() {
                // The worker's subscription is still on its way through the cluster.
                tokio::time::sleep(HELLO_PAUSE).await;
                continue;
            }
            return match PipeMessage::decode(&message.payload) {
                Ok(PipeMessage::Hello { window }) => Ok(window),
                Ok(PipeMessage::Reset(reason)) => Err(PipeOpenError::Refused(reason)),
                _ => Err(PipeOpenError::NoHello),
            };
        }
    })
    .await
    .map_err(|_| PipeOpenError::NoAnswer)??;
    let (stream, shared) = PipeStream::new(PipeState::new(settings.window_bytes, window));
    let driver =
        PipeDriver { shared, connection, messages, own, peer, follows_reply: false, settings };
    Ok((stream, driver))
}

/// Refuses a worker that waits to be called.
///
/// # Errors
/// [`PipeOpenError::ConnectionLost`].
pub async fn refuse(
    connection: &PipeConnection,
    subject: &str,
    reason: ResetReason,
) -> Result<(), PipeOpenError> {
    let (subject, reset) = (Subject::from(subject), PipeMessage::Reset(reason).encode());
    let refused = connection.client().publish_with_reply(subject, connection.inbox(), reset).await;
    refused.map_err(|_| PipeOpenError::ConnectionLost)
}

fn takes_chunks(connection: &PipeConnection) -> Result<(), PipeOpenError> {
    match connection.client().max_payload() {
        bytes if bytes < CHUNK_BYTES + MESSAGE_BYTES => Err(PipeOpenError::SmallMessages),
        _ => Ok(()),
    }
}
