//! One attempt at a request, whatever it goes over: what is sent, and how it ended.
//!
//! A transport takes an [`Outgoing`] and gives an [`Answer`]. Whether the request may have run is
//! in the [`AttemptError`], so nobody who decides about another attempt needs to know the
//! transport.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use natsway_routes::metrics::{Attempt, Recorder};
use natsway_wire::native::NativeReply;

use crate::encode::TraceFields;
use crate::pending::ReplyPolicy;

/// How long a worker may take to answer a request or to say that it runs it, which workers do after
/// 50 ms; who says neither is frozen or gone, or the message is lost with a broker.
pub const ACCEPTED_WITHIN: Duration = Duration::from_secs(1);

/// A message that is ready to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Where to.
    pub subject: Subject,
    /// The payload.
    pub payload: Bytes,
    /// NATS headers, for native backends.
    pub headers: Option<HeaderMap>,
    /// What counts against the broker's `max_payload`: the payload and the headers.
    pub bytes: usize,
    /// What may come back.
    pub policy: ReplyPolicy,
    /// When the request is given up.
    pub deadline: Instant,
    /// When it counts as lost if it was neither answered nor accepted; `None` for never.
    pub accept_by: Option<Instant>,
    /// The version that it goes to, which is told of a second reply; `None` for what is no request.
    pub version: Option<Arc<Recorder>>,
}

/// How one attempt ended.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "replies are the rule, and a box would cost each an allocation"
)]
pub enum Answer {
    /// A reply that could be read.
    Replied(NativeReply),
    /// No response.
    Failed(AttemptError),
    /// A reply that cannot be read, or a refusal that no retry mends.
    Unreadable(String),
}

impl Answer {
    /// Counts how an attempt ended, for or against its version.
    pub fn count(&self, attempt: Attempt<'_>) {
        let status = match self {
            // Neither is the version's doing.
            Answer::Failed(AttemptError::NotConnected | AttemptError::ConnectionLost) => {
                return attempt.withdraw();
            }
            Answer::Failed(_) | Answer::Unreadable(_) => return attempt.failed(),
            Answer::Replied(NativeReply::Response(response)) => response.status,
            Answer::Replied(NativeReply::ServiceError { status, .. }) => *status,
        };
        match status.is_server_error() {
            true => attempt.failed(),
            false => drop(attempt),
        }
    }
}

/// Why an attempt gave no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptError {
    /// There is no connection to the broker, so nothing was published.
    NotConnected,
    /// Nobody listens on the subject; the broker delivered it to no one.
    NoResponders,
    /// A worker was full and did not run it.
    Overloaded,
    /// The version has no worker any more; it did not run.
    Moved,
    /// It reached the worker too late and did not run.
    Expired,
    /// The worker that accepted it is gone.
    InstanceLost,
    /// The connection broke while it was out.
    ConnectionLost,
    /// Neither answered nor accepted within [`ACCEPTED_WITHIN`], and given up to be tried
    /// elsewhere.
    NotAccepted,
    /// No answer in time.
    TimedOut,
}

impl AttemptError {
    /// Every kind, for metrics.
    pub const ALL: [AttemptError; 9] = [
        AttemptError::NotConnected,
        AttemptError::NoResponders,
        AttemptError::Overloaded,
        AttemptError::Moved,
        AttemptError::Expired,
        AttemptError::InstanceLost,
        AttemptError::ConnectionLost,
        AttemptError::NotAccepted,
        AttemptError::TimedOut,
    ];

    /// Whether the outcome is unknown: the request may have run, so only an idempotent one may run
    /// again. Otherwise it never ran.
    pub fn may_have_run(self) -> bool {
        use AttemptError::{ConnectionLost, InstanceLost, NotAccepted, TimedOut};
        matches!(self, InstanceLost | ConnectionLost | NotAccepted | TimedOut)
    }

    /// The name that metrics and logs use.
    pub fn as_str(self) -> &'static str {
        match self {
            AttemptError::NotConnected => "not_connected",
            AttemptError::NoResponders => "no_responders",
            AttemptError::Overloaded => "overloaded",
            AttemptError::Moved => "moved",
            AttemptError::Expired => "expired",
            AttemptError::InstanceLost => "instance_lost",
            AttemptError::ConnectionLost => "connection_lost",
            AttemptError::NotAccepted => "not_accepted",
            AttemptError::TimedOut => "timed_out",
        }
    }
}

/// Where an attempt goes, for its span.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'h> {
    /// The subject.
    pub subject: &'h str,
    /// The version behind it.
    pub version: &'h str,
    /// The broker that it goes over, `host:port`.
    pub broker: &'h str,
    /// Attempts that were made before it.
    pub resends: u32,
}

/// What the message of an attempt carries of a trace.
#[derive(Debug, Default)]
pub struct TraceContext {
    /// `None` where the sender's word stands.
    pub fields: Option<TraceFields>,
    /// Whether they differ from those of the attempt before.
    pub are_new: bool,
}
