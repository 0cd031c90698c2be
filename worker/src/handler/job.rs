//! One admitted request: the service is called, its answer encoded and sent.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use natsway_wire::envelope::{NotRun, Signal, encode_response, encode_signal};
use natsway_wire::problem::Problem;
use tower::{Service, ServiceExt};
use tracing::{error, warn};

use super::body::{Body, BoxError, CollectError, Collected, collect};
use super::context::ReaderContext;
use super::going_on::{GoingOn, Started, is_small, open_request};
use super::outbox::SendError;
use super::panics::{Panic, caught};
use crate::streams::Offered;
use crate::telemetry::metrics::{Permit, WorkerMetrics};
use crate::unary::ReplyTo;

/// Names a request from the gateway on; whoever else calls may leave it out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// On a response: another instance may be able to do what this one could not, and the request may
/// go there without harm. The response is what is answered where there is no way to say that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TryElsewhere(pub(crate) NotRun);

/// A request that was admitted, and what its answer needs.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request<Body>,
    pub(crate) reply: ReplyTo,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    /// Held until the reply is handed over, so that leaving waits for that.
    pub(crate) permit: Permit,
    pub(crate) context: Arc<ReaderContext>,
    /// Which of the worker's subjects it came by.
    pub(crate) endpoint: usize,
    /// Where its sender takes tunnels, if it does.
    pub(crate) offer: Option<Bytes>,
    /// Its body comes on a stream.
    pub(crate) is_stream: bool,
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
    let Job { mut request, reply, started, deadline, permit, context, endpoint, offer, is_stream } =
        job;
    let metrics = &context.metrics[endpoint];
    // In boxes, as all that concerns streams: most requests have none, and the room would be kept
    // in every request's future.
    let mut stream = None;
    let heard_at = reply.subject().cloned();
    if is_stream {
        let offer = offer.clone().unwrap_or_default();
        let offered = Offered { offer: &offer, reply: heard_at.as_ref(), endpoint };
        let opening = open_request(&context, &mut request, offered, deadline);
        match Box::pin(opening).await {
            Some(opened) => stream = Some(opened),
            None => return,
        }
    }
    // The request is the service's from here on; these are cheap to keep and name it in a log line
    // or a problem.
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let request_id = request.headers().get(REQUEST_ID).cloned();
    let span = context.spans.begin(endpoint, &mut request, started);
    let way = match (&stream, &offer) {
        (Some(_), _) => Way::Stream,
        (None, Some(offer)) if context.streams.is_on() => {
            Way::MessageOrStream(Offered { offer, reply: heard_at.as_ref(), endpoint })
        }
        (None, _) => Way::Message,
    };
    let message_limit = reply.most_bytes(&context.outbox);
    let mut handled = pin!(caught(answer(service, request, &context, way, message_limit)));
    let mut handled = poll_fn(|context| {
        let _entered = span.enter();
        handled.as_mut().poll(context)
    });
    let handled = match &mut stream {
        None => handled.await,
        // Its client left.
        Some(stream) => tokio::select! {
            biased;
            handled = &mut handled => handled,
            () = stream.respond.closed() => return WorkerMetrics::count(&metrics.cancelled),
        },
    };
    let answered = handled.unwrap_or_else(|panic| Err(panicked(panic, &method, &uri)));
    let answer = match answered {
        Ok(Answered::Message(answer)) => answer,
        Ok(Answered::Elsewhere(reason)) => {
            span.end(StatusCode::BAD_GATEWAY);
            metrics.ran(started.elapsed());
            metrics.failed(format!("{}: {method} {}", reason.as_str(), uri.path()));
            let signal = encode_signal(&Signal::NotRun(reason));
            if let Err(error) = reply.send(&context.outbox, signal, deadline).await {
                warn!(?error, %method, path = uri.path(), "reply not sent");
            }
            return;
        }
        Ok(Answered::GoesOn(answer)) => {
            span.end(answer.head.status);
            metrics.ran(started.elapsed());
            if answer.head.status.is_server_error() {
                let status = answer.head.status;
                let reason = status.canonical_reason().unwrap_or("-");
                metrics.failed(format!("{}: {method} {}: {reason}", status.as_u16(), uri.path()));
            }
            let going = async {
                let path = uri.path();
                match stream {
                    Some(stream) => {
                        // It is no request in hand any more, but a stream.
                        drop(permit);
                        answer.go_on(stream, &context, path).await;
                    }
                    None => answer.refer(&context, reply, deadline, permit, path).await,
                }
            };
            if let Err(panic) = Box::pin(caught(going)).await {
                panicked(panic, &method, &uri);
            }
            return;
        }
        Err(failure) => match stream {
            None => failure.into_answer(request_id.as_ref()),
            Some(stream) => {
                let (problem, body) = failure.told(request_id.as_ref());
                span.end(problem.status);
                metrics.ran(started.elapsed());
                let status = problem.status.as_u16();
                metrics.failed(format!("{status}: {method} {}: {}", uri.path(), problem.detail));
                let mut head = Response::new(()).into_parts().0;
                (head.status, head.headers) = (problem.status, problem.fields());
                let answer = GoingOn::from_start(head, Body::from(body));
                return Box::pin(answer.go_on(stream, &context, uri.path())).await;
            }
        },
    };
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
    let message = match (&reply, &offer) {
        (ReplyTo::Broker(_), Some(offer)) => {
            context.unary.join(offer, endpoint, answer.message, message_limit)
        }
        _ => answer.message,
    };
    match reply.send(&context.outbox, message, deadline).await {
        Ok(()) => {}
        Err(SendError::Late) => WorkerMetrics::count(&metrics.overran),
        Err(error) => warn!(?error, %method, path = uri.path(), "reply not sent"),
    }
    drop(permit);
}

/// How an answer may go back.
#[derive(Clone, Copy)]
enum Way<'o> {
    /// In a message.
    Message,
    /// In a message, or by a stream to whoever made this offer.
    MessageOrStream(Offered<'o>),
    /// By the stream that the request came by.
    Stream,
}

/// What the service answered.
enum Answered<B> {
    Message(Answer),
    GoesOn(Box<GoingOn<B>>),
    /// It is left to another instance.
    Elsewhere(NotRun),
}

/// Calls the service and encodes what it gives, or why it gives nothing.
async fn answer<S, B>(
    service: S,
    request: Request<Body>,
    context: &ReaderContext,
    way: Way<'_>,
    message_limit: usize,
) -> Result<Answered<B>, Failure>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    let response =
        service.oneshot(request).await.map_err(|failure| service_failed(&failure.into()))?;
    let (head, body) = response.into_parts();
    // A stream that is there cannot be given back: its response says what went wrong.
    if let (Some(TryElsewhere(reason)), false) = (head.extensions.get(), matches!(way, Way::Stream))
    {
        return Ok(Answered::Elsewhere(*reason));
    }
    let limit = context.max_response_bytes.min(message_limit);
    let collected = match way {
        Way::Stream => return Ok(Answered::GoesOn(Box::new(GoingOn::from_start(head, body)))),
        Way::MessageOrStream(offer) if !is_small(&body) => {
            // In a box, as above.
            let begun = Box::pin(GoingOn::begin(head, body, context, offer)).await;
            match begun.map_err(|failure| service_failed(&failure.into()))? {
                Started::Whole(head, collected) => {
                    return encode(&head, &collected, message_limit).map(Answered::Message);
                }
                Started::GoesOn(going) => return Ok(Answered::GoesOn(going)),
                Started::Full => return Err(streams_full()),
                Started::Unreachable(head, partial) => {
                    let collected = Box::pin(partial.collect(limit)).await;
                    let collected = collected.map_err(|error| uncollected(error, limit))?;
                    return encode(&head, &collected, message_limit).map(Answered::Message);
                }
            }
        }
        Way::Message | Way::MessageOrStream(_) => collect(body, limit).await,
    };
    let collected = collected.map_err(|error| uncollected(error, limit))?;
    encode(&head, &collected, message_limit).map(Answered::Message)
}

/// Why a body is no answer.
fn uncollected<E: Into<BoxError>>(error: CollectError<E>, limit: usize) -> Failure {
    match error {
        CollectError::TooLarge => too_large(limit),
        CollectError::Body(failure) => service_failed(&failure.into()),
    }
}

fn encode(head: &Parts, collected: &Collected, message_limit: usize) -> Result<Answer, Failure> {
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

fn streams_full() -> Failure {
    let detail = "the request ran, and this worker has as many streams open as it may";
    Problem::new(StatusCode::BAD_GATEWAY, "worker_streams_full", detail).into()
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
    fn from(problem: Problem) -> Self {
        Self { problem, reason: None }
    }
}

impl Failure {
    /// What is told of it, and as which document.
    fn told(self, request_id: Option<&HeaderValue>) -> (Problem, Bytes) {
        let body = self.problem.document(request_id.and_then(|id| id.to_str().ok()));
        (self.problem, body)
    }

    /// The answer that says it, as the gateway says its own.
    fn into_answer(self, request_id: Option<&HeaderValue>) -> Answer {
        let reason = self.reason.clone();
        let (problem, body) = self.told(request_id);
        let message = encode_response(problem.status, &problem.fields(), &HeaderMap::new(), &body)
            .expect("a few short fields are within every limit");
        let error = Some(reason.unwrap_or_else(|| problem.detail.into_owned()));
        Answer { status: problem.status, message, error }
    }
}
