//! A client's request as the dispatcher sends it: its route, its room, its message.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use natsway_caller::attempt::{Answer, AttemptError, Hop, TraceContext};
use natsway_caller::encode::{Encoded, MessageBody, Sending, TraceFields};
use natsway_caller::outbound::{DispatchError, Dispatched, EncodeError, Outbound, Reply};
use natsway_caller::retry::Attempts;
use natsway_caller::route_view::Resolved;
use natsway_caller::stream::Opening;
use natsway_caller::stream::activity::Activity;
use natsway_caller::stream::upload::Progress;
use natsway_caller::trace::AttemptSpans;
use natsway_routes::table::{Codec, Lookup, Route, RouteTable};

use crate::body::ReplyBody;
use crate::client_address::Client;
use crate::fields::Survey;
use crate::grpc::grpc_timeout;
use crate::headers::{Caller, Forwarded, Origin};
use crate::inspect::RequestAuthority;
use crate::memory::sizes::Kind;
use crate::memory::{Account, Reservation};
use crate::problem::{Problem, memory_full, request_timeout, too_large, unavailable};
use crate::shard::{RouteStats, Shard};
use crate::stream::OpenStream;
use crate::target::{forwardable, preflight_method};
use crate::trace::{RequestSpan, Traced};

/// Who sent a request, its name, and which fields it has.
#[derive(Clone, Copy)]
pub(crate) struct From<'c> {
    pub(crate) caller: &'c Caller,
    pub(crate) client: &'c Client,
    pub(crate) request_id: &'c str,
    pub(crate) survey: &'c Survey,
}

/// A request: what stays the same over its attempts, and their spans.
pub(crate) struct Call<'c> {
    pub(crate) shard: &'c Shard,
    pub(crate) account: &'c Rc<Account>,
    pub(crate) started: Instant,
    pub(crate) head: http::request::Parts,
    pub(crate) body: Bytes,
    pub(crate) from: From<'c>,
    pub(crate) authority: RequestAuthority,
    pub(crate) span: Option<&'c RequestSpan>,
    pub(crate) spans: AttemptSpans,
    /// How long its client waits, or for how long behind a body that goes up.
    pub(crate) timeout: Duration,
    /// How long its client said that it waits, where that is not among its fields.
    pub(crate) patience: Option<Duration>,
    /// What goes up by a stream, where that is no message.
    pub(crate) up: Option<Box<GoingUp>>,
    /// No worker opened a stream for it, and it is still there.
    pub(crate) was_not_opened: bool,
}

/// The part of a request that goes up by a stream.
pub(crate) struct GoingUp {
    /// What is sent; nothing once it was.
    pub(crate) opening: Option<Opening>,
    /// How long the body is, if the client said so.
    pub(crate) length: Option<u64>,
    /// What the connection is to become.
    pub(crate) protocol: Option<String>,
    /// The connection that an HTTP/2 stream becomes.
    pub(crate) on_upgrade: Option<OnUpgrade>,
    /// What became of the body.
    pub(crate) progress: Arc<Progress>,
    /// When something last came, in either direction.
    pub(crate) activity: Arc<Activity>,
    /// Its place among the shard's, until its response takes it over.
    pub(crate) open: Option<OpenStream>,
}

/// Room for an answer, and the kind of its request.
pub(crate) struct ReplyRoom {
    pub(crate) kind: Kind,
    pub(crate) reservation: Reservation,
}

impl Call<'_> {
    /// Sends the request until there is an answer, or no attempt is left; gives what its client
    /// gets.
    pub(crate) async fn send(
        &mut self,
        first: Resolved<RouteStats>,
    ) -> Result<Response<ReplyBody>, Problem> {
        let route = first.route();
        if let Some(span) = self.span {
            span.routed(&self.head.method, route, self.authority.authority());
            self.spans = span.attempts();
        }
        let asked = match &self.up {
            Some(_) => grpc_timeout(&self.head.headers),
            None => self.patience,
        };
        let timeout = asked.map_or(route.timeout, |asked| asked.min(route.timeout));
        self.timeout = timeout;
        let (idempotent, deadline) = (self.head.method.is_idempotent(), self.started + timeout);
        let attempts = Attempts::new(route.retry, idempotent, self.started, deadline);
        let shard = self.shard;
        match shard.dispatcher.dispatch(self, first, attempts).await {
            Ok(Dispatched { reply: Reply::Whole(reply), chosen, room }) => {
                self.respond(reply, &chosen, room)
            }
            Ok(Dispatched { reply: Reply::Streamed(streamed), chosen, room }) => {
                self.respond_streamed(*streamed, &chosen, room)
            }
            Err(error) => {
                let unopened = AttemptError::StreamNotOpened;
                let is_unopened =
                    matches!(&error, DispatchError::GivenUp { error, .. } if *error == unopened);
                self.was_not_opened = is_unopened && self.has_opening();
                Err(self.own_fault().unwrap_or_else(|| self.failed(error)))
            }
        }
    }

    /// What the client's own body did, where its request failed for that.
    fn own_fault(&self) -> Option<Problem> {
        let progress = &self.up.as_ref()?.progress;
        let route = self.shard.dispatcher.resolve(self).ok();
        let most = route.and_then(|route| route.route().limits.max_body_bytes);
        match (progress.was_too_large(), progress.timed_out()) {
            (true, _) => Some(too_large(most.unwrap_or_default())),
            (false, true) => Some(request_timeout()),
            (false, false) => None,
        }
    }

    fn kind(&self, route: &RouteStats) -> Kind {
        Kind::of(route.number, &self.head.method, self.head.uri.path())
    }
}

impl Outbound for Call<'_> {
    type Route = RouteStats;
    type Error = Problem;
    type Room = ReplyRoom;

    fn find(&self, table: &RouteTable, are_known: bool) -> Result<usize, Problem> {
        let host = self.authority.host().trim_matches(['[', ']']);
        let host = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        };
        let look_up = |method: &Method| table.look_up(&host, self.head.uri.path(), method);
        let mut found = look_up(&self.head.method);
        if let (Lookup::MethodNotAllowed(_), Some(asked)) =
            (&found, preflight_method(&self.head.method, &self.head.headers))
        {
            found = look_up(&asked);
        }
        match found {
            Lookup::Found(index, _) => Ok(index),
            Lookup::NotFound if !are_known => {
                Err(unavailable("no_routes_yet", "the gateway has not read its routes yet"))
            }
            Lookup::NotFound => {
                let detail = "no route matches this host and path";
                Err(Problem::new(StatusCode::NOT_FOUND, "no_route", detail))
            }
            Lookup::MethodNotAllowed(methods) => {
                let detail = format!("this path is served with {methods} only");
                let problem =
                    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
                Err(Problem { allow: Some(methods.to_string()), ..problem })
            }
        }
    }

    fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    fn client_address(&self) -> Option<IpAddr> {
        Some(self.from.client.address)
    }

    fn reserve(&self, route: &RouteStats, most_bytes: usize) -> Option<ReplyRoom> {
        let kind = self.kind(route);
        let reservation =
            self.shard.admission.reserve(self.account, kind, most_bytes, Instant::now())?;
        Some(ReplyRoom { kind, reservation })
    }

    async fn wait_for_room(
        &self,
        route: &RouteStats,
        most_bytes: usize,
        deadline: Instant,
    ) -> Result<ReplyRoom, Problem> {
        let kind = self.kind(route);
        let reservation = self.shard.admission.wait(self.account, kind, most_bytes, deadline).await;
        Ok(ReplyRoom { kind, reservation: reservation.ok_or_else(memory_full)? })
    }

    fn begin_attempt(&mut self, hop: Hop<'_>) -> TraceContext {
        match &self.shard.spans {
            Some(spans) => self.spans.begin(spans.tracer(), hop),
            None => TraceContext::default(),
        }
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
    ) -> Result<Encoded, EncodeError<Problem>> {
        let survey = self.from.survey;
        let body_bytes = match &self.up {
            Some(up) => up.length,
            None => (survey.has_content_length || !self.body.is_empty())
                .then_some(self.body.len() as u64),
        };
        let path = self.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = forwardable(path);
        let origin = Origin {
            caller: self.from.caller,
            client: self.from.client,
            authority: self.authority.authority().as_str(),
            request_id: self.from.request_id,
            survey,
            body_bytes,
            protocol: self.up.as_ref().and_then(|up| up.protocol.as_deref()),
            prefix: route.stripped_prefix(&path),
            takes_trailers: self.up.is_some(),
        };
        let path = route.forwarded_path(&path);
        let fields = Traced { forwarded: Forwarded { headers: &self.head.headers, origin }, trace };
        if route.codec == Codec::Args {
            return self.encode_arguments(route, sending, &fields, &path);
        }
        let body = match self.up {
            Some(_) => MessageBody::Stream,
            None => MessageBody::Whole(&self.body),
        };
        Ok(Encoded::new(route.codec, sending, &self.head.method, &path, &fields, body, offer)?)
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
        let progress = self.up.as_ref().map(|up| &up.progress);
        progress.is_some_and(|progress| progress.was_too_large() || progress.timed_out())
    }

    fn deadline(&self, otherwise: Instant) -> Instant {
        // A body that comes is no reason to give up: what is bounded is the time behind it.
        let moved = self.up.as_ref().map(|up| up.activity.last().into_std() + self.timeout);
        moved.map_or(otherwise, |moved| moved.max(otherwise))
    }

    fn put_back(&mut self, opening: Opening) {
        if let Some(up) = &mut self.up {
            up.opening = Some(opening);
        }
    }
}
