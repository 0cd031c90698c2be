//! The path of a request: its head is inspected, its body read, and then it is sent and answered.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use hyper::body::{Body, Incoming};
use natsway_caller::route_view::Resolved;
use natsway_caller::trace::AttemptSpans;
use natsway_routes::table::RouteLimits;
use tracing::info;

use crate::body::{Inline, ReadError, ReplyBody, read_inline};
use crate::call::{Call, From};
use crate::client_address::{FORWARDED_FOR, client_address};
use crate::fields::Survey;
use crate::grpc;
use crate::headers::{Caller, REQUEST_ID, sound_request_id};
use crate::inspect::{authority, inspect};
use crate::memory::{Account, BodyBudget, cost};
use crate::metrics::ClientClose;
use crate::problem::{Problem, into_response, memory_full, request_timeout, too_large};
use crate::shard::{RouteStats, Shard};
use crate::stream::upgrade::take_upgrade;
use crate::target::is_server_wide;
use crate::trace::RequestSpan;

/// What a problem costs until its client has taken it.
const PROBLEM_BYTES: usize = cost::REPLY_BYTES + 512;

/// There is no room to answer, not even that there is none.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no room for one more answer of this connection")]
pub struct NoRoom;

/// A request as it came, with its head counted: a client may send so many at once that those which
/// wait to be looked at would be more than all that may be held.
pub struct Arrived {
    request: Request<Incoming>,
    survey: Survey,
    started: Instant,
    /// What its head costs, until the request is answered, for a body may have to wait for another
    /// attempt; nothing where there is no room for it.
    held: BodyBudget,
    has_room: bool,
}

impl Arrived {
    /// Counts a request's head. Without room for it the head is given up at once, but for what its
    /// refusal needs.
    pub fn new(account: &Rc<Account>, mut request: Request<Incoming>) -> Self {
        let survey = Survey::of(request.headers());
        let mut held = BodyBudget::arriving(account);
        if request.body().is_end_stream() {
            held.arrived();
        }
        let has_room = held.reach(head_bytes(&request, &survey));
        if !has_room {
            keep_for_refusal(request.headers_mut());
        }
        Self { request, survey, started: Instant::now(), held, has_room }
    }
}

fn head_bytes<B>(request: &Request<B>, survey: &Survey) -> usize {
    let path_bytes = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    cost::head_bytes(request.headers().len(), path_bytes + survey.text_bytes)
}

/// Takes all fields away but those by which a refusal is said, logged and traced.
fn keep_for_refusal(headers: &mut HeaderMap) {
    const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
    let all = std::mem::take(headers);
    for name in [REQUEST_ID, TRACEPARENT, FORWARDED_FOR, header::CONTENT_TYPE] {
        if let Some(value) = all.get(&name) {
            headers.insert(name, value.clone());
        }
    }
}

/// Answers one request, whatever happens to it.
///
/// # Errors
/// [`NoRoom`]: HTTP then ends the stream or the connection.
pub async fn handle(
    shard: Rc<Shard>,
    caller: Rc<Caller>,
    closing: bool,
    arrived: Arrived,
) -> Result<Response<ReplyBody>, NoRoom> {
    let Arrived { request, survey, started, mut held, has_room } = arrived;
    shard.metrics.requests.inc();
    shard.dispatcher.deposit();
    let request_id = match sound_request_id(request.headers(), &survey) {
        Some(id) => id.to_owned(),
        None => natsway_boot::random_id(),
    };
    let (version, method) = (request.version(), request.method().clone());
    let reads_grpc = grpc::reads_grpc(version, request.headers());
    let logged = shard.settings.access_log.then(|| request.uri().path().to_owned());
    let proxies = &shard.settings.trusted_proxies;
    // In a box: where there is no proxy, nobody needs it.
    let told = caller
        .trusted
        .then(|| Box::new(client_address(caller.peer.ip(), request.headers(), proxies)));
    let client = told.as_deref().unwrap_or(&caller.client);
    let span =
        shard.spans.as_ref().map(|spans| RequestSpan::begin(spans, &request, &caller, client));

    let from = From { caller: &caller, client, request_id: &request_id, survey: &survey };
    caller.unread.request_began();
    match request.body().is_end_stream() {
        true => caller.unread.request_ended(),
        false => caller.unread.body_began(),
    }
    let served = match has_room {
        true => serve(&shard, from, span.as_ref(), request, started, &mut held).await,
        false => Err(memory_full()),
    };
    let mut problem_code = None;
    let mut response = match served {
        Ok(response) => response,
        Err(problem) => {
            shard.metrics.problem(problem.code);
            problem_code = Some(problem.code);
            held.arrived();
            held.shrink_to(PROBLEM_BYTES);
            // In a box: it is rare, and the room would be kept in every request's future.
            if !held.reach(PROBLEM_BYTES) && !Box::pin(room_for_problem(&shard, &mut held)).await {
                shard.metrics.closed(ClientClose::NoRoom);
                return Err(NoRoom);
            }
            let response = match reads_grpc {
                true => grpc::into_response(&problem),
                false => into_response(&problem, &request_id),
            };
            response.map(|body| body.holding(held))
        }
    };

    if let Some(path) = logged {
        log_access(from, &method, &path, response.status(), started, span.as_ref());
    }
    if let Some(span) = span {
        span.end(response.status(), problem_code);
    }
    let id = HeaderValue::try_from(request_id).expect("a sound request id is a header value");
    response.headers_mut().insert(REQUEST_ID, id);
    // A request that is refused before its body was read ends its connection: what is left of it
    // is thrown away.
    if version < Version::HTTP_2 && (closing || caller.unread.is_in_body()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Writes a request's line of the access log.
pub(crate) fn log_access(
    from: From<'_>,
    method: &Method,
    path: &str,
    status: StatusCode,
    started: Instant,
    span: Option<&RequestSpan>,
) {
    let From { caller, client, request_id, .. } = from;
    let (client, peer, status) = (client.address, caller.peer, status.as_u16());
    let (duration, trace_id) = (started.elapsed(), span.map(|span| span.trace_id().to_string()));
    info!(target: "access", %client, %peer, %method, path, status, ?duration, request_id, trace_id);
}

/// Waits a moment until there is room for a problem: others are written meanwhile.
async fn room_for_problem(shard: &Shard, held: &mut BodyBudget) -> bool {
    const TIMES: u32 = 20;
    const MOST_WAITING: usize = 1_024;
    if shard.refusing.get() >= MOST_WAITING {
        return false;
    }
    shard.refusing.set(shard.refusing.get() + 1);
    let _refusing = Refusing(shard);
    for _ in 0..TIMES {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if held.reach(PROBLEM_BYTES) {
            return true;
        }
    }
    false
}

/// A request that waits to be told that it is refused.
struct Refusing<'c>(&'c Shard);

impl Drop for Refusing<'_> {
    fn drop(&mut self) {
        self.0.refusing.set(self.0.refusing.get() - 1);
    }
}

async fn serve(
    shard: &Shard,
    from: From<'_>,
    span: Option<&RequestSpan>,
    request: Request<Incoming>,
    started: Instant,
    held: &mut BodyBudget,
) -> Result<Response<ReplyBody>, Problem> {
    let (mut head, body) = request.into_parts();
    let account = &Rc::clone(held.account());
    // A body would have to come before the other protocol, and nobody sends one: then the wish is
    // passed over.
    let may_upgrade = from.survey.has_upgrade && body.is_end_stream();
    let upgrade = take_upgrade(&mut head, may_upgrade);
    inspect(&head, from.survey, &shard.settings.client)?;
    let authority = authority(&head, from.survey)?;
    if is_server_wide(&head) {
        let held = BodyBudget::take(account, cost::REPLY_BYTES).ok_or_else(memory_full)?;
        return Ok(Response::new(ReplyBody::default().holding(held)));
    }
    let (none, spans) = (Bytes::new(), AttemptSpans::default());
    let mut call = Call {
        shard,
        account,
        started,
        head,
        body: none,
        from,
        authority,
        span,
        spans,
        timeout: Duration::ZERO,
        patience: None,
        up: None,
        was_not_opened: false,
    };
    let mut first = shard.dispatcher.resolve(&call)?;
    let is_whole = body.is_end_stream();
    if let Some(upgrade) = upgrade {
        if upgrade.protocol == "websocket"
            && let Some(options) = &first.route().args.websocket
        {
            return call.open_session(first.route(), options, upgrade);
        }
        call.go_up_as_connection(first.route(), upgrade)?;
    } else if !is_whole {
        // In a box: most requests have no body, and the room would be kept in every request's
        // future.
        Box::pin(read_body(&mut call, &first, body, held)).await?;
        // A slow body must not go to a version that has been drained meanwhile.
        first = shard.dispatcher.resolve(&call)?;
    }
    if first.route().publish.is_some() {
        // In a box, as above.
        return Box::pin(call.store(first)).await;
    }
    match call.send(first).await {
        Err(problem) if call.is_unread() => {
            // In a box, as above.
            Box::pin(send_in_message(&mut call, problem, held)).await
        }
        answered => answered,
    }
}

/// Sends a body in a message for which no worker opens a stream, if it fits; else it is refused as
/// it was.
async fn send_in_message(
    call: &mut Call<'_>,
    refusal: Problem,
    held: &mut BodyBudget,
) -> Result<Response<ReplyBody>, Problem> {
    let shard = call.shard;
    let Some(body) = call.take_unread() else { return Err(refusal) };
    let most = shard.dispatcher.resolve(call)?.route().limits.inline_body_bytes;
    let head_bytes = held.bytes();
    let reading = read_inline(body, false, most, head_bytes, held);
    match in_time(reading, shard.settings.client.body_timeout).await? {
        Inline::Whole(whole) => {
            call.body = whole.bytes;
            call.from.caller.unread.request_ended();
            let first = shard.dispatcher.resolve(call)?;
            call.send(first).await
        }
        Inline::GoesOn { .. } => Err(refusal),
    }
}

/// Reads a body that travels in the message, or as much as shows that it goes up by a stream.
async fn read_body(
    call: &mut Call<'_>,
    first: &Resolved<RouteStats>,
    body: Incoming,
    held: &mut BodyBudget,
) -> Result<(), Problem> {
    let head_bytes = held.bytes();
    let (shard, route) = (call.shard, first.route());
    let RouteLimits { inline_body_bytes, max_body_bytes } = route.limits;
    if let Some(most) = max_body_bytes
        && body.size_hint().lower() > most
    {
        return Err(too_large(most));
    }
    let is_http2 = call.head.version >= Version::HTTP_2;
    let read = match call.goes_up_at_once(route, &body) {
        true => Inline::GoesOn { first: Bytes::new(), rest: body },
        false => {
            let reading = read_inline(body, is_http2, inline_body_bytes, head_bytes, held);
            in_time(reading, shard.settings.client.body_timeout).await?
        }
    };
    match read {
        Inline::Whole(whole) => {
            shard.metrics.request_trailers_dropped.add(whole.trailer_fields as u64);
            call.body = whole.bytes;
            call.from.caller.unread.request_ended();
        }
        Inline::GoesOn { first: start, rest } => call.go_up(route, start, rest)?,
    }
    held.arrived();
    Ok(())
}

async fn in_time<B>(
    reading: impl Future<Output = Result<Inline<B>, ReadError>>,
    patience: Duration,
) -> Result<Inline<B>, Problem> {
    let read = tokio::time::timeout(patience, reading).await;
    read.map_err(|_| request_timeout())?.map_err(|error| match error {
        ReadError::NoRoom => memory_full(),
        ReadError::Broken => Problem::new(
            StatusCode::BAD_REQUEST,
            "broken_body",
            "the body broke off or is malformed",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_without_room_keeps_only_what_its_refusal_says() {
        let mut headers = HeaderMap::new();
        for number in 0..60 {
            headers.insert(HeaderName::try_from(format!("x{number}")).unwrap(), 1.into());
        }
        for value in ["first", "second"] {
            headers.append(FORWARDED_FOR, HeaderValue::from_static(value));
        }
        headers.insert(REQUEST_ID, HeaderValue::from_static("name"));
        keep_for_refusal(&mut headers);
        assert_eq!(headers.len(), 2);
        assert!(headers[REQUEST_ID] == "name" && headers[FORWARDED_FOR] == "first");
        assert!(headers.capacity() < 16, "the room of the others is given back");
    }
}
