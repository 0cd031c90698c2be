//! One admitted request: the service is called, its answer encoded and sent.

use std::any::Any;
use std::error::Error as StdError;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use natsway_wire::envelope::encode_response;
use tower::{Service, ServiceExt};
use tracing::{error, warn};

use crate::body::{Body, CollectError, collect};
use crate::figures::{Figures, Permit};
use crate::outbox::{Outbox, SendError};

/// Any error that a service or a body may give.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// When the caller stops waiting, as a request extension.
///
/// The handler is dropped then, so this is for those that want to do less in time.
///
/// ```
/// use std::time::Duration;
/// use natsway_worker::Deadline;
///
/// fn enough_for_the_long_way<B>(request: &http::Request<B>) -> bool {
///     let left = request.extensions().get::<Deadline>().map(Deadline::remaining);
///     left.is_none_or(|left| left > Duration::from_millis(200))
/// }
/// # assert!(enough_for_the_long_way(&http::Request::new(())));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    pub(crate) fn new(at: Instant) -> Deadline {
        Deadline(at)
    }

    /// The moment itself.
    pub fn at(&self) -> Instant {
        self.0
    }

    /// What is left of the budget; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// A request that was admitted, and what its answer needs.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request<Body>,
    pub(crate) reply: Subject,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    /// Held until the reply is handed over, so that leaving waits for that.
    pub(crate) permit: Permit,
    pub(crate) desk: Arc<Desk>,
    /// Which of the worker's subjects it came by.
    pub(crate) endpoint: usize,
}

/// What the jobs of one reader share.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) outbox: Outbox,
    /// One for each subject.
    pub(crate) figures: Vec<Figures>,
    pub(crate) max_response_bytes: usize,
}

/// An encoded answer.
struct Answer {
    status: StatusCode,
    message: Bytes,
    /// What went wrong, when something did.
    error: Option<String>,
}

/// Runs a job to its end: dropping the future is how it is cancelled.
pub(crate) async fn run<S, B>(service: S, job: Job)
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    let Job { request, reply, started, deadline, permit, desk, endpoint } = job;
    let figures = &desk.figures[endpoint];
    // The request is the service's from here on; these two are cheap to keep and name it in a log line.
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let limit = desk.outbox.max_payload();
    let handled = AssertUnwindSafe(answer(service, request, desk.max_response_bytes, limit)).catch_unwind();
    let answer = handled.await.unwrap_or_else(|panic| panicked(panic.as_ref(), &method, &uri));

    let now = Instant::now();
    figures.ran(now.saturating_duration_since(started));
    if answer.status.is_server_error() {
        let reason =
            answer.error.as_deref().unwrap_or_else(|| answer.status.canonical_reason().unwrap_or("-"));
        figures.failed(format!("{}: {method} {}: {reason}", answer.status.as_u16(), uri.path()));
    }
    if now >= deadline {
        figures.overran.fetch_add(1, Relaxed);
        return;
    }
    match desk.outbox.send(reply, answer.message, deadline).await {
        Ok(()) => {}
        Err(SendError::Late) => Figures::count(&figures.overran),
        Err(error) => warn!(?error, %method, path = uri.path(), "reply not sent"),
    }
    drop(permit);
}

/// Calls the service and encodes what it gives, or why it gives nothing.
async fn answer<S, B>(service: S, request: Request<Body>, body_limit: usize, message_limit: usize) -> Answer
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    let response = match service.oneshot(request).await {
        Ok(response) => response,
        Err(failure) => return service_failed(&failure.into()),
    };
    let (head, body) = response.into_parts();
    let limit = body_limit.min(message_limit);
    let collected = match collect(body, limit).await {
        Ok(collected) => collected,
        Err(CollectError::TooLarge) => return too_large(limit),
        Err(CollectError::Body(failure)) => return service_failed(&failure.into()),
    };
    match encode_response(head.status, &head.headers, &collected.trailers, &collected.data) {
        Ok(message) if message.len() <= message_limit => Answer { status: head.status, message, error: None },
        Ok(_) => too_large(message_limit),
        Err(error) => problem(StatusCode::BAD_GATEWAY, &format!("the response cannot be sent: {error}")),
    }
}

fn too_large(limit: usize) -> Answer {
    let detail = format!("the response is longer than the {limit} bytes that one message may have");
    problem(StatusCode::BAD_GATEWAY, &detail)
}

fn service_failed(failure: &BoxError) -> Answer {
    error!(error = %failure, "service failed");
    let answer = problem(StatusCode::INTERNAL_SERVER_ERROR, "the service failed");
    Answer { error: Some(failure.to_string()), ..answer }
}

fn panicked(panic: &(dyn Any + Send), method: &Method, uri: &Uri) -> Answer {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    error!(panic = text, %method, path = uri.path(), "handler panicked");
    let answer = problem(StatusCode::INTERNAL_SERVER_ERROR, "the handler panicked");
    Answer { error: Some(format!("panic: {text}")), ..answer }
}

/// An answer of our own, as RFC 9457 has it.
fn problem(status: StatusCode, detail: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or_default();
    let body = serde_json::json!({ "title": title, "status": status.as_u16(), "detail": detail }).to_string();
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    let message = encode_response(status, &headers, &HeaderMap::new(), body.as_bytes())
        .expect("one short header is within every limit");
    Answer { status, message, error: Some(detail.to_owned()) }
}
