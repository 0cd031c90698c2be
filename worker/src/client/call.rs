//! One call: its route by name, and what the dispatcher's answer or failure is to its caller.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use natsway_caller::outbound::{Dispatched, Reply};
use natsway_caller::retry::Attempts;
use natsway_wire::envelope;
use natsway_wire::native::NativeReply;
use tokio::sync::oneshot;

use super::context::REQUEST_ID;
use super::error::CallError;
use super::outbound::{NamedRequest, Timing};
use super::thread::ClientThread;
use crate::{Body, Deadline};

/// A call on its way to the client's thread.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: Request<Body>,
    pub(super) started: Instant,
    pub(super) answer: oneshot::Sender<Result<Response<Body>, CallError>>,
}

/// Answers a call, unless nobody waits for it any more: then what is out is dropped, which cancels
/// it at its worker.
pub(super) async fn answer(thread: Rc<ClientThread>, call: Call) {
    let Call { request, started, mut answer } = call;
    let carried = tokio::select! {
        biased;
        carried = carry(&thread, request, started) => carried,
        () = answer.closed() => return,
    };
    answer.send(carried).ok();
}

async fn carry(
    thread: &ClientThread,
    request: Request<Body>,
    started: Instant,
) -> Result<Response<Body>, CallError> {
    let (mut head, body) = request.into_parts();
    let route = route_name(&head)?;
    // Names the call in the logs of whoever answers it, also when it follows from no request.
    head.headers.entry(REQUEST_ID).or_insert_with(|| {
        HeaderValue::try_from(natsway_boot::random_id())
            .expect("letters and digits are a header value")
    });
    let span = thread.spans.begin(&route, &head);
    let spans = span.attempts();
    let request = NamedRequest {
        spans,
        maker: &thread.spans,
        route,
        head,
        body: Bytes::new(),
        up: None,
        timing: Timing::default(),
    };
    // With it its last attempt ends, before the call does.
    let carried = send(thread, request, body, started).await;
    span.end(&carried);
    carried
}

/// Sends a request until there is an answer, or no attempt is left.
async fn send(
    thread: &ClientThread,
    mut request: NamedRequest<'_>,
    body: Body,
    started: Instant,
) -> Result<Response<Body>, CallError> {
    let mut first = thread.dispatcher.resolve(&request)?;
    // With the route's time-out, or the deadline of the request that the call follows from.
    let inherited = request.head.extensions.get().map(Deadline::at);
    request.timing = Timing { timeout: first.route().timeout, inherited };
    let deadline = request.timing.behind(started);
    if deadline <= Instant::now() {
        return Err(CallError::too_late(&request.route));
    }
    let is_whole = body.is_whole();
    let taking = request.take_body(thread, first.route(), body);
    let taken = tokio::time::timeout_at(deadline.into(), taking).await;
    taken.map_err(|_| CallError::body_too_late(&request.route))??;
    if !is_whole {
        // A slow body must not go to a version that has been drained meanwhile.
        first = thread.dispatcher.resolve(&request)?;
    }
    thread.dispatcher.deposit();
    let retry = first.route().retry;
    let attempts = Attempts::new(retry, request.head.method.is_idempotent(), started, deadline);
    match thread.dispatcher.dispatch(&mut request, first, attempts).await {
        Ok(Dispatched { reply: Reply::Whole(reply), .. }) => Ok(whole_response(reply)),
        Ok(Dispatched { reply: Reply::Streamed(streamed), chosen, .. }) => {
            request.respond_streamed(thread, *streamed, chosen.route())
        }
        Err(error) => Err(request.own_fault().unwrap_or_else(|| request.failed(error))),
    }
}

/// The route that a request's authority names.
fn route_name(head: &Parts) -> Result<String, CallError> {
    let refused = |reason: String| CallError::refused("", reason);
    let Some(authority) = head.uri.authority() else {
        return Err(refused(format!(
            "the uri {:?} names no route: expected http://<route>/<path>",
            head.uri
        )));
    };
    if authority.as_str() != authority.host() {
        return Err(refused(format!(
            "{authority:?}: expected the name of a route, without a port or a user"
        )));
    }
    Ok(authority.host().to_owned())
}

fn whole_response(reply: NativeReply) -> Response<Body> {
    let envelope::Response { status, headers, trailers, body, .. } = match reply {
        NativeReply::Response(response) => response,
        NativeReply::ServiceError { status, text, headers, body } => {
            let body = if body.is_empty() { text.into() } else { body };
            envelope::Response { status, headers, trailers: HeaderMap::new(), body, join: None }
        }
    };
    let mut http = Response::new(Body::new(body).with_trailers(trailers));
    *http.status_mut() = status;
    *http.headers_mut() = headers;
    http
}
