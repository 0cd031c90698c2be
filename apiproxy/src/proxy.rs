//! The path of a request: its head is inspected, its body read, and then it is sent and answered.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::{Body, Incoming};
use natsway_caller::trace::AttemptSpans;
use tracing::info;

use crate::body::{ReadError, ReplyBody, WholeBody, read_whole};
use crate::call::{Call, From};
use crate::client_address::client_address;
use crate::headers::{Caller, REQUEST_ID, sound_request_id};
use crate::inspect::{authority, inspect};
use crate::memory::{Account, BodyBudget, cost};
use crate::metrics::ClientClose;
use crate::problem::{Problem, into_response, memory_full, request_timeout, too_large};
use crate::shard::Shard;
use crate::target::is_server_wide;
use crate::trace::RequestSpan;

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
    shard: Rc<Shard>,
    account: Rc<Account>,
    caller: Rc<Caller>,
    closing: bool,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, NoRoom> {
    let started = Instant::now();
    shard.metrics.requests.inc();
    shard.dispatcher.deposit();
    let request_id = match sound_request_id(request.headers()) {
        Some(id) => id.to_owned(),
        None => natsway_boot::random_id(),
    };
    let (version, method) = (request.version(), request.method().clone());
    let logged = shard.settings.access_log.then(|| request.uri().path().to_owned());
    let client =
        client_address(caller.peer.ip(), request.headers(), &shard.settings.trusted_proxies);
    let span =
        shard.spans.as_ref().map(|spans| RequestSpan::begin(spans, &request, &caller, &client));

    let from = From { caller: &caller, client: &client, request_id: &request_id };
    let mut held = BodyBudget::arriving(&account);
    let served = serve(&shard, from, span.as_ref(), request, started, &mut held).await;
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
            into_response(&problem, &request_id).map(|body| body.holding(held))
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
    // A request that is refused before its body was read ends its connection: what is left of it
    // is thrown away.
    if version < Version::HTTP_2 && (closing || caller.unread.is_in_body()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
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
    let (head, body) = request.into_parts();
    let account = &Rc::clone(held.account());
    match body.is_end_stream() {
        true => from.caller.unread.request_ended(),
        false => from.caller.unread.body_began(),
    }
    inspect(&head, &shard.settings.client)?;
    let authority = authority(&head)?;
    if is_server_wide(&head) {
        let held = BodyBudget::take(account, cost::REPLY_BYTES).ok_or_else(memory_full)?;
        return Ok(Response::new(ReplyBody::default().holding(held)));
    }
    let (none, spans) = (Bytes::new(), AttemptSpans::default());
    let mut call = Call { shard, account, started, head, body: none, from, authority, span, spans };
    let mut first = shard.dispatcher.resolve(&call)?;
    // Given back when the request is answered, not before: a body may have to wait for another
    // attempt.
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
        // In a box: most requests have no body, and the room would be kept in every request's
        // future.
        let limit_bytes = first.route().limits.body_bytes;
        let reading = read_whole(body, limit_bytes, head_bytes, held);
        let whole =
            Box::pin(in_time(reading, limit_bytes, shard.settings.client.body_timeout)).await?;
        shard.metrics.request_trailers_dropped.add(whole.trailer_fields as u64);
        call.body = whole.bytes;
        from.caller.unread.request_ended();
        held.arrived();
        // A slow body must not go to a version that has been drained meanwhile.
        first = shard.dispatcher.resolve(&call)?;
    }
    call.send(first).await
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
        ReadError::Broken => Problem::new(
            StatusCode::BAD_REQUEST,
            "broken_body",
            "the body broke off or is malformed",
        ),
    })
}
