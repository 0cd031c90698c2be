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
use natsway_wire::envelope::{Reference, Response};
use natsway_wire::native::NativeReply;
use natsway_wire::offer::{StreamToken, TunnelSecret};

use crate::encode::TraceFields;
use crate::pending::ReplyPolicy;
use crate::stream::Streamed;

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
    /// How many bytes of the payload are the offer at its end.
    pub offer_bytes: usize,
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
    /// What is said on a stream: the worker is ready for it, or its response goes on there.
    Continues(Box<Continuation>),
    /// A response that goes on by its stream.
    Streamed(Box<Streamed>),
    /// No response.
    Failed(AttemptError),
    /// A reply that cannot be read, or a refusal that no retry mends.
    Unreadable(String),
}

/// Where a request goes on.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is in a box, and taken out at once")]
pub enum Continuation {
    /// A response, up to the first bytes of its body.
    Response {
        /// Its head, and those bytes.
        response: Response,
        /// Where the rest is.
        reference: Reference,
        /// What the worker keeps for it meanwhile.
        place: KeptPlace,
    },
    /// The worker has room for the request, which comes on a stream.
    Ready {
        /// What to name on it.
        token: StreamToken,
        /// The tunnel on which to open it.
        secret: TunnelSecret,
        /// What the worker keeps for it meanwhile.
        place: KeptPlace,
    },
}

/// The place that a worker keeps for a request whose stream is not there yet. Dropping this gives
/// it back at once.
pub struct KeptPlace(Option<Box<dyn FnOnce()>>);

impl KeptPlace {
    /// Returns a place that is given back so.
    pub(crate) fn new(give_back: impl FnOnce() + 'static) -> Self {
        Self(Some(Box::new(give_back)))
    }

    /// The stream is there: it is what ends the work now.
    pub(crate) fn taken(mut self) {
        self.0 = None;
    }
}

impl Drop for KeptPlace {
    fn drop(&mut self) {
        if let Some(give_back) = self.0.take() {
            give_back();
        }
    }
}

impl std::fmt::Debug for KeptPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptPlace").finish_non_exhaustive()
    }
}

impl Answer {
    /// Counts how an attempt ended, for or against its version.
    pub fn count(&self, attempt: Attempt<'_>) {
        let status = match self {
            // Neither is the version's doing.
            Self::Failed(AttemptError::NotConnected | AttemptError::ConnectionLost) => {
                return attempt.withdraw();
            }
            Self::Failed(_) | Self::Unreadable(_) => return attempt.failed(),
            Self::Replied(NativeReply::Response(response)) => response.status,
            Self::Replied(NativeReply::ServiceError { status, .. }) => *status,
            Self::Streamed(streamed) => streamed.response.status,
            // Followed before anybody counts.
            Self::Continues(_) => return attempt.withdraw(),
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
    /// There was no tunnel to the worker, or it did not take the stream: it did not run.
    StreamNotOpened,
    /// The stream broke before the response began, or what the response goes on by was not had.
    StreamLost,
    /// The app behind the worker takes no connection: it did not run.
    UpstreamDown,
    /// The app behind the worker took it and gave no response.
    UpstreamBroken,
}

impl AttemptError {
    /// Every kind, for metrics.
    pub const ALL: [Self; 13] = [
        Self::NotConnected,
        Self::NoResponders,
        Self::Overloaded,
        Self::Moved,
        Self::Expired,
        Self::InstanceLost,
        Self::ConnectionLost,
        Self::NotAccepted,
        Self::TimedOut,
        Self::StreamNotOpened,
        Self::StreamLost,
        Self::UpstreamDown,
        Self::UpstreamBroken,
    ];

    /// Whether the outcome is unknown: the request may have run, so only an idempotent one may run
    /// again. Otherwise it never ran.
    pub fn may_have_run(self) -> bool {
        match self {
            Self::NotConnected
            | Self::NoResponders
            | Self::Overloaded
            | Self::Moved
            | Self::Expired
            | Self::StreamNotOpened
            | Self::UpstreamDown => false,
            Self::InstanceLost
            | Self::ConnectionLost
            | Self::NotAccepted
            | Self::TimedOut
            | Self::StreamLost
            | Self::UpstreamBroken => true,
        }
    }

    /// The name that metrics and logs use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::NoResponders => "no_responders",
            Self::Overloaded => "overloaded",
            Self::Moved => "moved",
            Self::Expired => "expired",
            Self::InstanceLost => "instance_lost",
            Self::ConnectionLost => "connection_lost",
            Self::NotAccepted => "not_accepted",
            Self::TimedOut => "timed_out",
            Self::StreamNotOpened => "stream_not_opened",
            Self::StreamLost => "stream_lost",
            Self::UpstreamDown => "upstream_down",
            Self::UpstreamBroken => "upstream_broken",
        }
    }
}

/// Where an attempt goes, for its span.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'h> {
    /// The subject.
    pub subject: &'h str,
    /// The version behind it; `None` where a stream is.
    pub version: Option<&'h str>,
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
