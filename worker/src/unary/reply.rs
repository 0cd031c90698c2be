//! Where the answer to a request goes.

use std::sync::Arc;
use std::time::Instant;

use async_nats::Subject;
use bytes::Bytes;
use natsway_tunnel::unary::Taken;
use tokio::sync::oneshot;

use super::outlet::Outlet;
use crate::handler::outbox::{Outbox, SendError};

/// What the fields of a result's message need.
const RESULT_FIELD_BYTES: usize = 1_024;

/// Where the answer to a request goes.
#[derive(Debug)]
pub(crate) enum ReplyTo {
    /// To a subject of the broker.
    Broker(Subject),
    /// By the tunnel that it came by.
    Tunnel(TunnelReply),
    /// To whoever keeps the results of stored requests.
    Results(ResultReply),
}

/// The answer to a stored request. Dropped, it is not given.
#[derive(Debug)]
pub(crate) struct ResultReply {
    pub(crate) answer: oneshot::Sender<Bytes>,
    /// How long it may be.
    pub(crate) most_bytes: usize,
}

/// The answer to a request of a tunnel. Dropped, it is not given.
#[derive(Debug)]
pub(crate) struct TunnelReply {
    outlet: Arc<Outlet>,
    key: u64,
    /// Until it is answered.
    taken: Option<Taken>,
}

impl ReplyTo {
    /// Returns where its sender hears by the broker, if that is where.
    pub(crate) fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Broker(subject) => Some(subject),
            Self::Tunnel(_) | Self::Results(_) => None,
        }
    }

    /// Returns how long an answer may be.
    pub(crate) fn most_bytes(&self, outbox: &Outbox) -> usize {
        match self {
            Self::Broker(_) => outbox.max_payload(),
            Self::Tunnel(reply) => reply.outlet.most_bytes(),
            // It becomes a message with a few fields.
            Self::Results(reply) => {
                reply.most_bytes.min(outbox.max_payload().saturating_sub(RESULT_FIELD_BYTES))
            }
        }
    }

    /// Hands an answer over, and waits for a way until `deadline`.
    ///
    /// # Errors
    /// [`SendError`]. An answer that was handed over may still be lost with its connection: its
    /// sender cannot know.
    pub(crate) async fn send(
        self,
        outbox: &Outbox,
        message: Bytes,
        deadline: Instant,
    ) -> Result<(), SendError> {
        match self {
            Self::Broker(subject) => outbox.send(subject, message, deadline).await,
            Self::Tunnel(reply) => reply.send(message, deadline).await,
            Self::Results(reply) => reply.answer.send(message).map_err(|_| SendError::Late),
        }
    }
}

impl TunnelReply {
    pub(super) fn new(outlet: Arc<Outlet>, taken: Taken) -> Self {
        Self { outlet, key: taken.key(), taken: Some(taken) }
    }

    /// Names the request: its tunnel, and its key there.
    pub(crate) fn name(&self) -> (u64, u64) {
        (self.outlet.id(), self.key)
    }

    /// Returns how old the request is at most; `None` if it must not run.
    pub(crate) fn age_ms(&self, sent_ms: u64, deadline_ms: u32) -> Option<u32> {
        self.outlet.age_ms(sent_ms, deadline_ms)
    }

    /// Answers without waiting for anything: with what is short.
    pub(crate) fn say(mut self, message: &Bytes) {
        if let Some(taken) = self.taken.take() {
            self.outlet.answer(taken, message);
        }
    }

    async fn send(mut self, message: Bytes, deadline: Instant) -> Result<(), SendError> {
        let has_room = self.outlet.has_room(message.len());
        match tokio::time::timeout_at(deadline.into(), has_room).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(SendError::Late),
        }
        let Some(taken) = self.taken.take() else { return Ok(()) };
        match self.outlet.answer(taken, &message) {
            true => Ok(()),
            false => Err(SendError::Late),
        }
    }
}

impl Drop for TunnelReply {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.outlet.drop_request(taken);
        }
    }
}
