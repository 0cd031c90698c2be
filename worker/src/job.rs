//! One admitted request: the service is called, its answer encoded and sent.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use natsway_wire::envelope::encode_response;
use natsway_wire::problem::Problem;
use tower::{Service, ServiceExt};
use tracing::{error, warn};

use crate::body::{Body, CollectError, collect};
use crate::metrics::{Permit, WorkerMetrics};
use crate::outbox::{Outbox, SendError};
use crate::panics::{Panic, caught};
use crate::trace::Spans;

/// Names a request from the gateway on; whoever else calls may leave it out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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

    /// A deadline that is so far away now, say for one call of a [`Client`](crate::Client).
    pub fn after(budget: Duration) -> Deadline {
        Deadline(Instant::now() + budget)
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
    pub(crate) context: Arc<ReaderContext>,
    /// Which of the worker's subjects it came by.
    pub(crate) endpoint: usize,
}

/// What the jobs of one reader share.
#[derive(Debug)]
pub(crate) struct ReaderContext {
    pub(crate) outbox: Outbox,
    /// One for each subject.
    pub(crate) metrics: Vec<WorkerMetrics>,
    pub(crate) max_response_bytes: usize,
    pub(crate) spans: Spans,
}

/// What the service could not do, as its caller is to hear it.
struct Failure {
    problem: Problem,
    /// What the worker's own metrics say, when that is more.
    reason: Option<String>,
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
    let Job { mut request, reply, started, deadline, permit, context, endpoint } = job;
    let metrics = &context.metrics[endpoint];
    // The request is the service's from here on; these are cheap to keep and name it in a log line
    // or a problem.
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let request_id = request.headers().get(REQUEST_ID).cloned();
    let limit = context.outbox.max_payload();
    let span = context.spans.begin(endpoint, &mut request, started);
    let mut handled = pin!(caught(answer(service, request, context.max_response_bytes, limit)));
    let handled = poll_fn(|context| {
        let _entered = span.enter();
        handled.as_mut().poll(context)
    });
    let answer = handled.await.unwrap_or_else(|panic| Err(panicked(panic, &method, &uri)));
    let answer = answer.unwrap_or_else(|failure| failure.into_answer(request_id.as_ref()));
    span.end(answer.status);

    let now = Instant::now();
    metrics.ran(now.saturating_duration_since(started));
    if answer.status.is_server_error() {
        let reason = answer
            .error
            .as_deref()
            .unwrap_or_else(|| answer.status.canonical_reason().unwrap_or("-"));
        metrics.failed(format!("{}: {method} {}: {reason}", answer.status.as_u16(), uri.path()));
    }
    if now >= deadline {
        metrics.overran.fetch_add(1, Relaxed);
        return;
    }
    match context.outbox.send(reply, answer.message, deadline).await {
        Ok(()) => {}
        Err(SendError::Late) => WorkerMetrics::count(&metrics.overran),
        Err(error) => warn!(?error, %method, path = uri.path(), "reply not sent"),
    }
    drop(permit);
}

/// Calls the service and encodes what it gives, or why it gives nothing.
async fn answer<S, B>(
    service: S,
    request: Request<Body>,
    body_limit: usize,
    message_limit: usize,
) -> Result<Answer, Failure>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    let response =
        service.oneshot(request).await.map_err(|failure| service_failed(&failure.into()))?;
    let (head, body) = response.into_parts();
    let limit = body_limit.min(message_limit);
    let collected = collect(body, limit).await.map_err(|error| match error {
        CollectError::TooLarge => too_large(limit),
        CollectError::Body(failure) => service_failed(&failure.into()),
    })?;
    match encode_response(head.status, &head.headers, &collected.trailers, &collected.data) {
        Ok(message) if message.len() <= message_limit => {
            Ok(Answer { status: head.status, message, error: None })
        }
        Ok(_) => Err(too_large(message_limit)),
        Err(error) => {
            let detail = format!("the response cannot be sent: {error}");
            Err(Problem::new(StatusCode::BAD_GATEWAY, "response_unsendable", detail).into())
        }
    }
}

fn too_large(limit: usize) -> Failure {
    let detail = format!("the response is longer than the {limit} bytes that one message may have");
    Problem::new(StatusCode::BAD_GATEWAY, "response_too_large", detail).into()
}

fn service_failed(failure: &BoxError) -> Failure {
    error!(error = %failure, "service failed");
    let told =
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "service_failed", "the service failed");
    Failure { problem: told, reason: Some(failure.to_string()) }
}

fn panicked(panic: Panic, method: &Method, uri: &Uri) -> Failure {
    let Panic { text, place } = panic;
    error!(panic = text, place, %method, path = uri.path(), "handler panicked");
    let told =
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "handler_panicked", "the handler panicked");
    Failure { problem: told, reason: Some(format!("panic: {text}")) }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        Failure { problem, reason: None }
    }
}

impl Failure {
    /// The answer that says it, as the gateway says its own.
    fn into_answer(self, request_id: Option<&HeaderValue>) -> Answer {
        let Failure { problem, reason } = self;
        let body = problem.document(request_id.and_then(|id| id.to_str().ok()));
        let message = encode_response(problem.status, &problem.fields(), &HeaderMap::new(), &body)
            .expect("a few short fields are within every limit");
        let error = Some(reason.unwrap_or_else(|| problem.detail.into_owned()));
        Answer { status: problem.status, message, error }
    }
}
