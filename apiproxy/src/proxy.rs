//! The path of a request: match, encode, publish, wait, answer.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::{Body, Incoming};
use natsway_caller::encode::{Encoded, Sending, TraceFields};
use natsway_caller::link::{Answer, Link, Outgoing, Refused};
use natsway_caller::retry::{Miss, Next, Tries};
use natsway_caller::trace::{Begun, Hop, TrySpans};
use natsway_routes::table::{Lookup, Route};
use natsway_wire::envelope;
use natsway_wire::native::NativeReply;
use tracing::{info, warn};

use crate::body::{ReadError, ReplyBody, WholeBody, compact, read_whole};
use crate::client_address::{Client, client_address};
use crate::core::{Core, RouteView, TargetView};
use crate::headers::{
    Caller, Forwarded, Origin, REQUEST_ID, announced, check_response, has_content, passable_trailers,
    sound_request_id,
};
use crate::inspect::{authority, inspect};
use crate::memory::sizes::Kind;
use crate::memory::{Account, Held, Reservation, cost};
use crate::metrics::{ClientClose, TargetStats};
use crate::problem::Problem;
use crate::target::{forwardable, is_server_wide, preflight_method};
use crate::trace::{RequestSpan, Traced};

/// What a problem costs until its client has taken it.
const PROBLEM_BYTES: usize = cost::REPLY_BYTES + 512;

/// There is no room to answer, not even that there is none.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no room for one more answer of this connection")]
pub struct NoRoom;

/// Answers one request, whatever happens to it.
///
/// # Errors
/// [`NoRoom`]: HTTP then ends the stream or the connection.
pub async fn handle(
    core: Rc<Core>,
    account: Rc<Account>,
    caller: Rc<Caller>,
    closing: bool,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, NoRoom> {
    let started = Instant::now();
    core.metrics.requests.inc();
    core.budget.borrow_mut().deposit();
    let request_id = match sound_request_id(request.headers()) {
        Some(id) => id.to_owned(),
        None => natsway_boot::random_id(),
    };
    let (version, method) = (request.version(), request.method().clone());
    let logged = core.settings.access_log.then(|| request.uri().path().to_owned());
    let client = client_address(caller.peer.ip(), request.headers(), &core.settings.trusted_proxies);
    let span = core.spans.as_ref().map(|spans| RequestSpan::begin(spans, &request, &caller, &client));

    let from = From { caller: &caller, client: &client, request_id: &request_id };
    let mut held = Held::arriving(&account);
    let served = serve(&core, from, span.as_ref(), request, started, &mut held).await;
    let mut problem_code = None;
    let mut response = match served {
        Ok(response) => response,
        Err(problem) => {
            core.metrics.problem(problem.code);
            problem_code = Some(problem.code);
            held.arrived();
            held.shrink_to(PROBLEM_BYTES);
            // In a box: it is rare, and the room would be kept in every request's future.
            if !held.reach(PROBLEM_BYTES) && !Box::pin(room_for_problem(&core, &mut held)).await {
                core.metrics.closed(ClientClose::NoRoom);
                return Err(NoRoom);
            }
            problem.into_response(&request_id).map(|body| body.holding(held))
        }
    };

    if let Some(path) = logged {
        let (status, duration) = (response.status().as_u16(), started.elapsed());
        let (peer, trace_id) = (caller.peer, span.as_ref().map(|span| span.trace_id().to_string()));
        let client = client.address;
        info!(target: "access", %client, %peer, %method, path, status, ?duration, request_id, trace_id);
    }
    if let Some(span) = span {
        span.end(response.status(), problem_code);
    }
    let id = HeaderValue::try_from(request_id).expect("a sound request id is a header value");
    response.headers_mut().insert(REQUEST_ID, id);
    // Refused before its body was read, a request ends its connection: what is left of it is thrown away.
    if version < Version::HTTP_2 && (closing || caller.unread.is_in_body()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Who sent a request, and its name.
#[derive(Clone, Copy)]
struct From<'c> {
    caller: &'c Caller,
    client: &'c Client,
    request_id: &'c str,
}

/// Waits a moment until there is room for a problem: others are written meanwhile.
async fn room_for_problem(core: &Core, held: &mut Held) -> bool {
    const TIMES: u32 = 20;
    const MOST_WAITING: usize = 1_024;
    if core.refusing.get() >= MOST_WAITING {
        return false;
    }
    core.refusing.set(core.refusing.get() + 1);
    let _refusing = Refusing(core);
    for _ in 0..TIMES {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if held.reach(PROBLEM_BYTES) {
            return true;
        }
    }
    false
}

/// A request that waits to be told that it is refused.
struct Refusing<'c>(&'c Core);

impl Drop for Refusing<'_> {
    fn drop(&mut self) {
        self.0.refusing.set(self.0.refusing.get() - 1);
    }
}

/// What stays the same over the tries of one request.
struct Call<'c> {
    core: &'c Core,
    account: &'c Rc<Account>,
    started: Instant,
    head: http::request::Parts,
    body: Bytes,
    from: From<'c>,
    authority: Authority,
    span: Option<&'c RequestSpan>,
}

async fn serve(
    core: &Core,
    from: From<'_>,
    span: Option<&RequestSpan>,
    request: Request<Incoming>,
    started: Instant,
    held: &mut Held,
) -> Result<Response<ReplyBody>, Problem> {
    let (head, body) = request.into_parts();
    let account = &Rc::clone(held.account());
    match body.is_end_stream() {
        true => from.caller.unread.request_ended(),
        false => from.caller.unread.body_began(),
    }
    inspect(&head, &core.settings.client)?;
    let authority = authority(&head)?;
    if is_server_wide(&head) {
        let held = Held::take(account, cost::REPLY_BYTES).ok_or_else(memory_full)?;
        return Ok(Response::new(ReplyBody::default().holding(held)));
    }
    let mut call = Call { core, account, started, head, body: Bytes::new(), from, authority, span };
    let mut first = call.resolve()?;
    // Given back when the request is answered, not before: a body may have to wait for another try.
    let path_bytes = call.head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let head_bytes = cost::head_bytes(path_bytes, &call.head.headers);
    let is_whole = body.is_end_stream();
    if is_whole {
        held.arrived();
    }
    if !held.reach(head_bytes) {
        return Err(memory_full());
    }
    if !is_whole {
        // In a box: most requests have no body, and the room would be kept in every request's future.
        let limit_bytes = first.route().limits.body_bytes;
        let reading = read_whole(body, limit_bytes, head_bytes, held);
        let whole = Box::pin(in_time(reading, limit_bytes, core.settings.client.body_timeout)).await?;
        core.metrics.request_trailers_dropped.add(whole.trailer_fields as u64);
        call.body = whole.bytes;
        from.caller.unread.request_ended();
        held.arrived();
        // A slow body must not go to a version that has been drained meanwhile.
        first = call.resolve()?;
    }
    call.run(first).await
}

async fn in_time(
    reading: impl Future<Output = Result<WholeBody, ReadError>>,
    limit_bytes: usize,
    patience: Duration,
) -> Result<WholeBody, Problem> {
    let read = tokio::time::timeout(patience, reading).await;
    read.map_err(|_| request_timeout())?.map_err(|error| match error {
        ReadError::TooLarge => too_large(limit_bytes),
        ReadError::NoRoom => memory_full(),
        ReadError::Broken => {
            Problem::new(StatusCode::BAD_REQUEST, "broken_body", "the body broke off or is malformed")
        }
    })
}

/// A route, in the table in which it was found.
struct Resolved {
    view: Rc<RouteView>,
    index: usize,
}

impl Resolved {
    fn route(&self) -> &Route {
        &self.view.table.routes()[self.index]
    }
}

impl Call<'_> {
    /// Finds the route in force.
    fn resolve(&self) -> Result<Resolved, Problem> {
        // Before the table: a first one that comes in between is not taken for one without this route.
        let knows_routes = self.core.knows_routes();
        let view = self.core.routes();
        let host = self.authority.host().trim_matches(['[', ']']);
        let host = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        };
        let look_up = |method: &Method| view.table.look_up(&host, self.head.uri.path(), method);
        let mut found = look_up(&self.head.method);
        if let (Lookup::MethodNotAllowed(_), Some(asked)) =
            (&found, preflight_method(&self.head.method, &self.head.headers))
        {
            found = look_up(&asked);
        }
        let index = match found {
            Lookup::Found(index, _) => index,
            Lookup::NotFound if !knows_routes => {
                return Err(unavailable("no_routes_yet", "the gateway has not read its routes yet"));
            }
            Lookup::NotFound => {
                return Err(Problem::new(
                    StatusCode::NOT_FOUND,
                    "no_route",
                    "no route matches this host and path",
                ));
            }
            Lookup::MethodNotAllowed(methods) => {
                let detail = format!("this path is served with {methods} only");
                let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
                return Err(Problem { allow: Some(methods.to_string()), ..problem });
            }
        };
        Ok(Resolved { view, index })
    }

    /// Tries until there is an answer, or no try is left.
    async fn run(&self, first: Resolved) -> Result<Response<ReplyBody>, Problem> {
        let deadline = self.started + first.route().timeout;
        let idempotent = self.head.method.is_idempotent();
        let mut tries = Tries::new(first.route().retry, idempotent, self.started, deadline);
        let mut resolved = first;
        let mut encoded = None;
        let kind = Kind::of(resolved.view.kind(resolved.index), &self.head.method, self.head.uri.path());
        let mut room = None;
        let mut spans = self.span.map(RequestSpan::tries).unwrap_or_default();
        if let Some(span) = self.span {
            span.routed(&self.head.method, resolved.route(), &self.authority);
        }
        loop {
            let codec = resolved.route().codec;
            let link = match self.core.link(codec) {
                None => {
                    // In a box: it is rare, and the room would be kept in every request's future.
                    let link = Box::pin(self.core.link_by(codec, deadline)).await;
                    resolved = self.resolve_anew(&resolved, &mut encoded)?;
                    link
                }
                link => link,
            };
            if let (Some(link), None) = (&link, &room) {
                let most_bytes = link.max_payload();
                room = self.core.room.reserve(self.account, kind, most_bytes, Instant::now());
                if room.is_none() {
                    let waiting = self.core.room.wait(self.account, kind, most_bytes, deadline);
                    room = Some(Box::pin(waiting).await.ok_or_else(memory_full)?);
                    resolved = self.resolve_anew(&resolved, &mut encoded)?;
                    // The connection may be gone by now.
                    continue;
                }
            }
            let route = resolved.route();
            let (headers, client) = (&self.head.headers, self.from.client.address);
            let Some(target) = route.selection.choose(&route.split, headers, client, fastrand::u32(..))
            else {
                return Err(unavailable("no_version", "no version of this service takes traffic now"));
            };
            let target = resolved.view.target(resolved.index, target);
            let answer = match link {
                // One that may have run is idempotent if it got here, and worth a longer wait.
                None if !tries.may_have_run() => {
                    self.core.metrics.missed(Miss::NotConnected);
                    return self.fail(&target.stats, given_up(Miss::NotConnected, &tries));
                }
                None => Answer::Miss(Miss::NotConnected),
                Some(link) => {
                    let trace = self.begin_try(&mut spans, target, &link, &tries, &mut encoded);
                    let outgoing =
                        self.prepare(route, target, &link, &tries, trace.as_ref(), &mut encoded)?;
                    let attempt = target.stats.tries.begin();
                    let give_up = || self.core.budget.borrow_mut().withdraw(Instant::now());
                    let answer = link.call(outgoing, give_up).await;
                    answer.count(attempt);
                    spans.end(&answer);
                    answer
                }
            };
            let miss = match answer {
                Answer::Miss(miss) => miss,
                Answer::Http(response) | Answer::Native(NativeReply::Response(response)) => {
                    return self.respond(response, &target.stats, kind, room);
                }
                Answer::Native(NativeReply::ServiceError { status, text, headers, body }) => {
                    let reply = envelope::Response { status, headers, trailers: HeaderMap::new(), body };
                    let reply = service_error(reply, text, self.from.request_id);
                    return self.respond(reply, &target.stats, kind, room);
                }
                Answer::Unreadable(reason) => {
                    return self.bad_reply(&target.stats, format!("unreadable reply: {reason}"));
                }
            };
            // Nothing comes back of this try.
            room = None;
            match self.after_miss(miss, &mut tries) {
                Next::GiveUp => return self.fail(&target.stats, given_up(miss, &tries)),
                Next::RetryAfter(Duration::ZERO) => {}
                Next::RetryAfter(pause) => tokio::time::sleep(pause).await,
            }
            resolved = self.resolve_anew(&resolved, &mut encoded)?;
        }
    }

    /// The route in force after a wait: what a try missed may be because it changed, and a version is chosen and counted
    /// as out without giving way in between.
    fn resolve_anew(&self, before: &Resolved, encoded: &mut Option<Encoded>) -> Result<Resolved, Problem> {
        let now = self.resolve()?;
        if !encodes_alike(before.route(), now.route()) {
            *encoded = None;
        }
        Ok(now)
    }

    /// Begins the span of the next try, when the request is traced; gives what the message carries of it.
    fn begin_try(
        &self,
        spans: &mut TrySpans,
        target: &TargetView,
        link: &Link,
        tries: &Tries,
        encoded: &mut Option<Encoded>,
    ) -> Option<TraceFields> {
        let tracer = self.core.spans.as_ref()?.tracer();
        let (subject, version) = (&target.subject, target.stats.version());
        let hop = Hop { subject, version, broker: link.address(), resends: tries.made() };
        let Begun { fields, are_new } = spans.begin(tracer, hop);
        if are_new {
            // The worker's span is this try's child, so it has a message of its own.
            *encoded = None;
        }
        fields
    }

    /// The message of one try, within the bounds of the link.
    fn prepare(
        &self,
        route: &Route,
        target: &TargetView,
        link: &Link,
        tries: &Tries,
        trace: Option<&TraceFields>,
        encoded: &mut Option<Encoded>,
    ) -> Result<Outgoing, Problem> {
        let now = Instant::now();
        let until = tries.until(now, route.try_timeout);
        let sending = Sending::new(now, until, link.unix_ms_at(now));
        let message = match encoded {
            Some(encoded) => encoded.stamped(sending),
            none => none.insert(self.encode(route, sending, trace)?).first(),
        };
        let bytes = message.bytes();
        link.admit(bytes).map_err(not_admitted)?;
        let manners = message.manners(route.cancel, tries.is_idempotent());
        Ok(Outgoing {
            subject: target.subject.clone(),
            manners,
            payload: message.payload,
            headers: message.headers,
            bytes,
            deadline: until,
            doubt_from: tries.doubt_from(now, until).filter(|_| manners.signals),
            version: Some(Arc::clone(&target.stats.tries)),
        })
    }

    fn after_miss(&self, miss: Miss, tries: &mut Tries) -> Next {
        self.core.metrics.missed(miss);
        let next = tries.after(miss, Instant::now(), fastrand::f64(), &mut self.core.budget.borrow_mut());
        if next != Next::GiveUp {
            self.core.metrics.retries.inc();
        }
        next
    }

    fn encode(
        &self,
        route: &Route,
        sending: Sending,
        trace: Option<&TraceFields>,
    ) -> Result<Encoded, Problem> {
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
        Encoded::new(route.codec, sending, &self.head.method, &path, &fields, &self.body).map_err(|error| {
            let detail = format!("the request cannot be forwarded: {error}");
            Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail)
        })
    }

    /// The response for a client, of a worker's that was checked.
    fn respond(
        &self,
        reply: envelope::Response,
        stats: &TargetStats,
        kind: Kind,
        room: Option<Reservation>,
    ) -> Result<Response<ReplyBody>, Problem> {
        let envelope::Response { status, mut headers, trailers, body } = reply;
        let fields_bytes = cost::reply_fields_bytes(&headers) + cost::reply_fields_bytes(&trailers);
        self.core.room.sizes.record(kind, fields_bytes + body.len(), Instant::now());
        let reply_bytes = fields_bytes + cost::reply_bytes(body.len());
        let Some(held) = room.and_then(|room| room.arrived(reply_bytes)) else {
            let detail =
                "the answer is larger than those before, and the gateway has no room for it; the request ran";
            return self.fail(stats, bad_gateway("no_room_for_answer", detail.to_owned()));
        };
        let body = compact(body);
        if let Err(fault) = check_response(&self.head.method, status, &mut headers, body.len()) {
            return self.bad_reply(stats, format!("the worker's response is wrong: {fault}"));
        }
        let content = self.head.method != Method::HEAD && has_content(status);
        if !has_content(status) && !body.is_empty() {
            self.core.metrics.bodies_dropped.inc();
        }
        let trailers = self.passable_trailers(trailers, content);
        if let Some(names) = announced(&trailers) {
            headers.insert(header::TRAILER, names);
        }
        let body = if content { ReplyBody::new(body, trailers) } else { ReplyBody::default() };
        let mut response = Response::new(body.holding(held));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        stats.responded(status, self.started.elapsed());
        Ok(response)
    }

    /// The trailers that this client may have; the others are counted.
    fn passable_trailers(&self, trailers: HeaderMap, content: bool) -> HeaderMap {
        if trailers.is_empty() {
            return trailers;
        }
        let all = trailers.len();
        let passed = passable_trailers(trailers, &self.head.headers, self.head.version, content);
        self.core.metrics.trailers_dropped.add((all - passed.len()) as u64);
        passed
    }

    /// A reply that no client can get: told in the log now and then, for it is a fault of the worker's program.
    fn bad_reply(&self, stats: &TargetStats, reason: String) -> Result<Response<ReplyBody>, Problem> {
        self.core.metrics.bad_replies.inc();
        if let Some(unsaid) = self.core.bad_replies.borrow_mut().say(Instant::now()) {
            let (route, version, request_id) = (stats.route(), stats.version(), self.from.request_id);
            warn!(route, version, request_id, reason, unsaid, "reply not passed on");
        }
        self.fail(stats, bad_gateway("bad_reply", reason))
    }

    /// Counts a failure with the version that it was with.
    fn fail(&self, stats: &TargetStats, problem: Problem) -> Result<Response<ReplyBody>, Problem> {
        stats.responded(problem.status, self.started.elapsed());
        Err(problem)
    }
}

/// Whether a request that was encoded for one route can go out for another as it is.
fn encodes_alike(one: &Route, other: &Route) -> bool {
    one.codec == other.codec && one.strip_prefix == other.strip_prefix
}

fn not_admitted(refused: Refused) -> Problem {
    match refused {
        Refused::TooLarge { most_bytes } => {
            let detail =
                format!("with its headers this request is above the broker's limit of {most_bytes} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
        }
        Refused::Full => unavailable("overloaded", "the gateway has as many requests out as it may"),
    }
}

/// A native backend's error as a response: with its own fields, and its own body or else its text as a problem.
fn service_error(error: envelope::Response, text: String, request_id: &str) -> envelope::Response {
    let detail = if text.is_empty() { "the service reports an error".to_owned() } else { text };
    let problem = Problem::new(error.status, "service_error", detail);
    let envelope::Response { status, headers: mut own, trailers, mut body } = error;
    let mut headers = problem.fields();
    if body.is_empty() {
        body = problem.document(request_id);
        // They would describe a body that is not there.
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH, header::ETAG] {
            own.remove(name);
        }
    } else {
        headers.remove(header::CONTENT_TYPE);
    }
    headers.extend(own);
    envelope::Response { status, headers, trailers, body }
}

fn given_up(miss: Miss, tries: &Tries) -> Problem {
    let detail = || format!("no answer after {} tries; the request may have run", tries.made());
    match miss {
        Miss::NotConnected => unavailable(miss.as_str(), "the gateway has no connection to the broker"),
        Miss::NoResponders | Miss::Moved => unavailable(miss.as_str(), "no worker of this service is there"),
        Miss::Overloaded => unavailable(miss.as_str(), "the workers of this service are full"),
        Miss::Expired => unavailable(miss.as_str(), "the request reached no worker in time"),
        Miss::InstanceLost => {
            bad_gateway(miss.as_str(), "the worker that ran this request is gone".to_owned())
        }
        Miss::ConnectionLost | Miss::NotAccepted | Miss::TimedOut => {
            Problem::new(StatusCode::GATEWAY_TIMEOUT, miss.as_str(), detail())
        }
    }
}

fn unavailable(code: &'static str, detail: &'static str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
}

fn memory_full() -> Problem {
    unavailable("memory_full", "the gateway holds as much for its clients, or for this one, as it may")
}

fn bad_gateway(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, code, detail)
}

fn too_large(limit_bytes: usize) -> Problem {
    let detail = format!("the body is above this route's limit of {limit_bytes} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

fn request_timeout() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not arrive in time")
}
