//! What a flow is told and what it asks for.

use std::sync::Arc;
use std::time::Duration;

/// Settings of a flow, fixed for the life of one consumer.
#[derive(Clone, Debug)]
pub(crate) struct FlowConfig {
    /// How long the server keeps a pin that is not renewed.
    pub(crate) pinned_ttl: Duration,
    /// How long the server waits before it delivers an unacknowledged message again.
    pub(crate) redelivery_after: Duration,
    /// The consumer's max_ack_pending; `None` for no limit.
    pub(crate) max_ack_pending: Option<usize>,
    /// Most messages in hand, running ones included.
    pub(crate) buffer: usize,
    /// Most handlers at once.
    pub(crate) concurrency: usize,
    /// Whether messages are acknowledged one by one; without, nothing is ever pending.
    pub(crate) acks: bool,
    /// Deliveries after which a message goes to the dead letters instead of the handler.
    pub(crate) dead_letter_after: Option<u64>,
}

impl FlowConfig {
    pub(super) fn lease(&self) -> Duration {
        self.pinned_ttl.min(self.redelivery_after)
    }

    pub(super) fn renewal(&self) -> Duration {
        self.lease() / 4
    }

    pub(super) fn capacity(&self) -> usize {
        self.max_ack_pending.map_or(self.buffer, |limit| limit.min(self.buffer)).max(1)
    }
}

/// A message as the consumer delivered it; `T` is its content, of no interest here.
#[derive(Clone, Debug)]
pub(crate) struct Delivery<T> {
    pub(crate) stream_seq: u64,
    pub(crate) consumer_seq: u64,
    pub(crate) deliveries: u64,
    pub(crate) queue: u64,
    pub(crate) pin: Option<Arc<str>>,
    pub(crate) content: T,
}

/// What the server says about one of our pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullStatus {
    /// It is waiting (100), has ended unused (404, 408), or met a message above its byte limit
    /// (409).
    Accepted {
        /// Whether the server has dropped it.
        ended: bool,
    },
    /// Our pin is not the consumer's (423).
    WrongPin,
    /// Refused for another reason, to be sent again a little later.
    Refused,
}

/// Where the consumer stands, as the server answered a question of this flow.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    /// Which question this answers.
    pub(crate) question: u64,
    pub(crate) delivered_stream_seq: u64,
    pub(crate) delivered_consumer_seq: u64,
    pub(crate) ack_floor_stream_seq: u64,
    pub(crate) ack_pending: usize,
    pub(crate) pinned: Option<String>,
}

/// How the handler left a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Acknowledged or terminated: it will not come back.
    Done,
    /// Refused or left alone: the server will deliver it again.
    Again,
}

#[derive(Clone, Debug)]
pub(crate) enum Event<T> {
    /// A consumer exists: begin to pull.
    Attach,
    Delivered(Delivery<T>),
    Status {
        pull: u64,
        status: PullStatus,
        unused: u32,
    },
    /// A confirmed acknowledgement is under way, so the server may already count the message as
    /// done.
    Settling {
        run: u64,
    },
    Settled {
        run: u64,
        settlement: Settlement,
    },
    /// The handler has ended or was dropped; nothing of it runs any more.
    Finished {
        run: u64,
    },
    Position(Position),
    /// The connection is lost. The broker may have restarted and given the pin to another, so
    /// nothing starts until it has confirmed the pin again; running handlers have their lease.
    Disconnected,
    /// The connection was lost and is back: pulls and deliveries may have been lost with it.
    Reconnected,
    Pause(bool),
    /// Start nothing more; say [`Action::Drained`] when the running handlers have ended.
    Drain,
    /// Cancel the running handlers, drop everything, pull no more.
    Abort,
    Tick,
}

/// A message whose turn has come, and the number of this turn.
#[derive(Debug)]
pub(crate) struct Run<T> {
    pub(crate) run: u64,
    pub(crate) content: T,
}

#[derive(Debug)]
pub(crate) enum Action<T> {
    Pull(Pull),
    /// Put the message among the dead letters.
    DeadLetter(Run<T>),
    /// Acknowledge again what was handled already: the first acknowledgement was lost.
    Confirm(T),
    /// Return a message that came too late to be used.
    Return(T),
    /// Tell the server that everything in hand is being worked on.
    Progress,
    AskPosition(u64),
    /// Cancel every handler; the pin, and with it the right to run them, is gone.
    Cancel,
    Pinned,
    PinLost(PinLoss),
    /// The consumer was set to another place in its stream; what was in hand is forgotten.
    Reset,
    Drained,
}

/// Why this instance stopped being the pinned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinLoss {
    /// No renewal was confirmed in time: the connection or the broker is gone, or the process stood
    /// still.
    Lapsed,
    /// The server says that the pin belongs to nobody or to another instance.
    Taken,
}

/// A request for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pull {
    pub(crate) number: u64,
    pub(crate) batch: u32,
    pub(crate) pin: Option<Arc<str>>,
    /// A request that only renews the pin: its byte limit is below any message.
    pub(crate) probe: bool,
    pub(crate) expires: Duration,
    pub(crate) heartbeat: Duration,
}
