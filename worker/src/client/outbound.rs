//! A call as the dispatcher sends it: its route by name, its message, and how it failed.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use natsway_caller::attempt::{Answer, Hop, TraceContext};
use natsway_caller::connection::AdmissionError;
use natsway_caller::encode::{Encoded, Fields, MessageBody, Sending, TraceFields};
use natsway_caller::outbound::{DispatchError, EncodeError, Outbound};
use natsway_caller::stream::Opening;
use natsway_routes::table::{Codec, Route, RouteTable};

use super::context::{TRACEPARENT, TRACESTATE};
use super::error::{CallError, CallErrorKind};
use super::going_up::GoingUp;
use super::spans::{AttemptSpans, Spans};

/// A request to a route by its name: what stays the same over its attempts, and their spans.
pub(super) struct NamedRequest<'d> {
    /// Before what they are part of, so that they end before it.
    pub(super) spans: AttemptSpans,
    pub(super) maker: &'d Spans,
    pub(super) route: String,
    pub(super) head: Parts,
    /// What travels in its message.
    pub(super) body: Bytes,
    /// What goes up by a stream instead; in a box, and rare.
    pub(super) up: Option<Box<GoingUp>>,
    pub(super) timing: Timing,
}

/// How long a call waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    /// The route's time-out.
    pub(super) timeout: Duration,
    /// Until when whoever makes the call has.
    pub(super) inherited: Option<Instant>,
}

impl Timing {
    /// Returns when a call is given up of which something last went up then.
    pub(super) fn behind(&self, last: Instant) -> Instant {
        let own = last + self.timeout;
        self.inherited.map_or(own, |inherited| inherited.min(own))
    }
}

impl NamedRequest<'_> {
    pub(super) fn error(
        &self,
        kind: CallErrorKind,
        reason: impl Into<Cow<'static, str>>,
    ) -> CallError {
        CallError::new(kind, &self.route, reason)
    }

    /// The error that says why there is no answer.
    pub(super) fn failed(&self, error: DispatchError<NamedRequest<'_>>) -> CallError {
        use CallErrorKind::{BadReply, NoVersion, Refused, Unavailable};
        match error {
            DispatchError::Sender(error) => error,
            DispatchError::NoVersion => {
                self.error(NoVersion, "no version of this service takes traffic now")
            }
            DispatchError::Unencodable(error) => {
                self.error(Refused, format!("it cannot be sent: {error}"))
            }
            DispatchError::NotAdmitted(AdmissionError::TooLarge { most_bytes }) => {
                let reason = format!(
                    "with its headers it is above the broker's max_payload, {most_bytes} bytes"
                );
                self.error(Refused, reason)
            }
            DispatchError::NotAdmitted(AdmissionError::Full) => {
                self.error(Unavailable, "this client has as much out as it may")
            }
            DispatchError::GivenUp { error, may_have_run, .. } => {
                CallError::given_up(&self.route, error, may_have_run)
            }
            DispatchError::BadReply { reason, .. } => self.error(BadReply, reason),
        }
    }
}

impl Outbound for NamedRequest<'_> {
    type Route = ();
    type Error = CallError;
    type Room = ();

    fn find(&self, table: &RouteTable, are_known: bool) -> Result<usize, CallError> {
        match table.named(&self.route) {
            Some(index) if table.routes()[index].codec == Codec::Args => {
                let reason = "its codec is args, which a gateway alone writes: call it over HTTP";
                Err(self.error(CallErrorKind::Refused, reason))
            }
            Some(index) => Ok(index),
            None if !are_known => {
                Err(self.error(CallErrorKind::Unavailable, "the routes are not read yet"))
            }
            None => Err(self.error(CallErrorKind::NoRoute, "there is no route of that name")),
        }
    }

    fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    fn client_address(&self) -> Option<IpAddr> {
        None
    }

    /// Answers are bounded by the number of calls that may be out.
    fn reserve(&self, (): &(), _most_bytes: usize) -> Option<()> {
        Some(())
    }

    async fn wait_for_room(
        &self,
        (): &(),
        _most_bytes: usize,
        _: Instant,
    ) -> Result<(), CallError> {
        Ok(())
    }

    fn begin_attempt(&mut self, hop: Hop<'_>) -> TraceContext {
        self.maker.begin_attempt(&mut self.spans, hop)
    }

    fn end_attempt(&mut self, answer: &Answer) {
        self.spans.end(answer);
    }

    fn encode(
        &self,
        route: &Route,
        sending: Sending,
        trace: Option<&TraceFields>,
        offer: &[u8],
    ) -> Result<Encoded, EncodeError<CallError>> {
        let path = self.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let fields = Told { request: self, trace };
        let body = match self.up {
            Some(_) => MessageBody::Stream,
            None => MessageBody::Whole(&self.body),
        };
        Ok(Encoded::new(route.codec, sending, &self.head.method, path, &fields, body, offer)?)
    }

    fn is_stream(&self) -> bool {
        self.up.is_some()
    }

    fn has_opening(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.opening.is_some())
    }

    fn take_opening(&mut self) -> Option<Opening> {
        self.up.as_mut()?.opening.take()
    }

    fn is_own_fault(&self) -> bool {
        self.own_fault().is_some()
    }

    fn deadline(&self, otherwise: Instant) -> Instant {
        // A body that goes up is no reason to give up: what is bounded is the time behind it.
        let moved = self.up.as_ref().map(|up| self.timing.behind(up.activity.last().into_std()));
        moved.map_or(otherwise, |moved| moved.max(otherwise))
    }

    fn put_back(&mut self, opening: Opening) {
        if let Some(up) = &mut self.up {
            up.opening = Some(opening);
        }
    }
}

/// Fields that concern a connection that is not there, or that we say ourselves.
const NOT_SENT: [HeaderName; 6] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
];

/// What a worker is to see of a call: its word of a trace stands unless there is ours.
struct Told<'c> {
    request: &'c NamedRequest<'c>,
    trace: Option<&'c TraceFields>,
}

impl Fields for Told<'_> {
    fn bytes(&self) -> usize {
        let NamedRequest { route, head, .. } = self.request;
        let own: usize =
            head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 6).sum();
        own + route.len() + 40 + self.trace.map_or(0, |_| 80)
    }

    fn each<E>(&self, mut put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let NamedRequest { route, head, body, up, .. } = self.request;
        let is_ours =
            |name: &HeaderName| self.trace.is_some() && (name == TRACEPARENT || name == TRACESTATE);
        let sent =
            |(name, _): &(&HeaderName, &HeaderValue)| !NOT_SENT.contains(name) && !is_ours(name);
        for (name, value) in head.headers.iter().filter(sent) {
            put(name.as_str(), value.as_bytes())?;
        }
        if let Some(TraceFields { parent, state }) = self.trace {
            put(TRACEPARENT.as_str(), parent)?;
            if let Some(state) = state {
                put(TRACESTATE.as_str(), state.as_bytes())?;
            }
        }
        put("host", route.as_bytes())?;
        let length = match up {
            Some(up) => up.length,
            None => Some(body.len() as u64).filter(|length| *length > 0),
        };
        if let Some(length) = length {
            put("content-length", length.to_string().as_bytes())?;
        }
        if takes_trailers(&head.headers) {
            put("te", b"trailers")?;
        }
        Ok(())
    }
}

/// Whether a call says `TE: trailers`, without which some services send none.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}
