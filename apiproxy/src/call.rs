//! A client's request as the dispatcher sends it: its route, its room, its message.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, Method, Response, StatusCode, header};
use natsway_caller::attempt::{Answer, Hop, TraceContext};
use natsway_caller::encode::{Encoded, Sending, TraceFields};
use natsway_caller::outbound::{Dispatched, Outbound};
use natsway_caller::retry::Attempts;
use natsway_caller::route_view::Resolved;
use natsway_caller::trace::AttemptSpans;
use natsway_routes::table::{Lookup, Route, RouteTable};

use crate::body::ReplyBody;
use crate::client_address::Client;
use crate::headers::{Caller, Forwarded, Origin};
use crate::memory::sizes::Kind;
use crate::memory::{Account, Reservation};
use crate::problem::{Problem, memory_full, unavailable};
use crate::shard::{RouteStats, Shard};
use crate::target::{forwardable, preflight_method};
use crate::trace::{RequestSpan, Traced};

/// Who sent a request, and its name.
#[derive(Clone, Copy)]
pub(crate) struct From<'c> {
    pub(crate) caller: &'c Caller,
    pub(crate) client: &'c Client,
    pub(crate) request_id: &'c str,
}

/// A request: what stays the same over its attempts, and their spans.
pub(crate) struct Call<'c> {
    pub(crate) shard: &'c Shard,
    pub(crate) account: &'c Rc<Account>,
    pub(crate) started: Instant,
    pub(crate) head: http::request::Parts,
    pub(crate) body: Bytes,
    pub(crate) from: From<'c>,
    pub(crate) authority: Authority,
    pub(crate) span: Option<&'c RequestSpan>,
    pub(crate) spans: AttemptSpans,
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
            span.routed(&self.head.method, route, &self.authority);
            self.spans = span.attempts();
        }
        let (idempotent, deadline) =
            (self.head.method.is_idempotent(), self.started + route.timeout);
        let attempts = Attempts::new(route.retry, idempotent, self.started, deadline);
        let shard = self.shard;
        match shard.dispatcher.dispatch(self, first, attempts).await {
            Ok(Dispatched { reply, chosen, room }) => self.respond(reply, &chosen, room),
            Err(error) => Err(self.failed(error)),
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
    ) -> Result<Encoded, natsway_wire::Error> {
        let said_length = self.head.headers.contains_key(header::CONTENT_LENGTH);
        let origin = Origin {
            caller: self.from.caller,
            client: self.from.client,
            authority: self.authority.as_str(),
            request_id: self.from.request_id,
            body_bytes: (said_length || !self.body.is_empty()).then_some(self.body.len()),
        };
        let path = self.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = forwardable(path);
        let path = route.forwarded_path(&path);
        let fields = Traced { forwarded: Forwarded { headers: &self.head.headers, origin }, trace };
        Encoded::new(route.codec, sending, &self.head.method, &path, &fields, &self.body)
    }
}
