//! The spans of calls to other services, by OpenTelemeattempt's conventions for HTTP clients:
//! children of the request that is being handled, and the parents of their attempts.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use natsway_boot::trace::conventions::{failed, method_attributes, method_in_name, scope};
use natsway_boot::trace::{Head, HeadSampler, TRACEPARENT, TRACESTATE, Unsampled, extract, fields};
use natsway_caller::attempt::{Hop, TraceContext};
use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{SpanKind, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use opentelemetry_semantic_conventions::attribute as key;

use super::error::{CallError, CallErrorKind};
use crate::Body;

pub(super) use natsway_caller::trace::AttemptSpans;

/// How calls are sampled, if they have spans.
pub(super) type Wanted = Option<HeadSampler>;

/// Makes the spans of calls, when the user wants them.
pub(super) struct Spans(Option<Tracing>);

struct Tracing {
    tracer: BoxedTracer,
    sampler: HeadSampler,
}

/// A call's part in a trace.
pub(super) enum CallSpan {
    Off,
    Unsampled(Unsampled),
    Sampled(Open),
}

/// A span that ends as a failure when it is dropped.
pub(super) struct Open {
    context: Context,
    ended: bool,
}

impl Spans {
    pub(super) fn new(wanted: Wanted) -> Self {
        let tracer = || global::tracer_with_scope(scope("natsway-worker"));
        Self(wanted.map(|sampler| Tracing { tracer: tracer(), sampler }))
    }

    /// Begins the span of a call to a route.
    pub(super) fn begin(&self, route: &str, head: &Parts) -> CallSpan {
        let Some(Tracing { tracer, sampler }) = &self.0 else { return CallSpan::Off };
        let seen = match sampler.judge(&head.headers) {
            Head::Unsampled(unsampled) => return CallSpan::Unsampled(unsampled),
            Head::Sampled(seen) => seen,
        };
        let name = format!("{} {route}", method_in_name(&head.method));
        let builder =
            opentelemetry::trace::SpanBuilder::from_name(name).with_kind(SpanKind::Client);
        let span = seen.span(tracer, builder, &extract(&head.headers));
        let context = Context::new().with_span(span);
        let span = context.span();
        span.set_attributes(method_attributes(&head.method));
        span.set_attributes([
            // The authority of the call, which names the route; the query may hold secrets.
            KeyValue::new(key::SERVER_ADDRESS, route.to_owned()),
            KeyValue::new(key::URL_FULL, format!("http://{route}{}", head.uri.path())),
            KeyValue::new("natsway.route", route.to_owned()),
        ]);
        CallSpan::Sampled(Open { context, ended: false })
    }

    /// Begins an attempt; gives what its message carries of it.
    pub(super) fn begin_attempt(&self, spans: &mut AttemptSpans, hop: Hop<'_>) -> TraceContext {
        match &self.0 {
            Some(Tracing { tracer, .. }) => spans.begin(tracer, hop),
            None => TraceContext::default(),
        }
    }
}

impl CallSpan {
    /// The part that its attempts have in it.
    pub(super) fn attempts(&self) -> AttemptSpans {
        match self {
            Self::Off => AttemptSpans::Off,
            Self::Unsampled(unsampled) => AttemptSpans::Unsampled(*unsampled),
            Self::Sampled(open) => AttemptSpans::of(open.context.clone()),
        }
    }

    /// Ends with the answer.
    pub(super) fn end(self, answer: &Result<Response<Body>, CallError>) {
        let Self::Sampled(mut open) = self else { return };
        match answer {
            Ok(response) => open.responded(response.status()),
            Err(error) => failed(&open.context, kind(error).to_owned()),
        }
        open.context.span().end();
        open.ended = true;
    }
}

/// The kind of a failure, of a small set.
fn kind(error: &CallError) -> &'static str {
    match error.kind() {
        CallErrorKind::Refused => "refused",
        CallErrorKind::NoRoute => "no_route",
        CallErrorKind::NoVersion => "no_version",
        CallErrorKind::Unavailable => "unavailable",
        CallErrorKind::TimedOut => "timed_out",
        CallErrorKind::OutcomeUnknown => "outcome_unknown",
        CallErrorKind::BadReply => "bad_reply",
        CallErrorKind::Closed => "closed",
    }
}

/// Has a call that says nothing of a trace follow from the span that is current where it is made.
pub(super) fn follow_current(headers: &mut HeaderMap) {
    if headers.contains_key(TRACEPARENT) {
        return;
    }
    let current = Context::current();
    let Some((parent, state)) = fields(current.span().span_context()) else { return };
    let parent = HeaderValue::from_bytes(&parent).expect("digits and dashes are a header's value");
    headers.insert(TRACEPARENT, parent);
    headers.remove(TRACESTATE);
    if let Some(state) = state {
        headers.insert(TRACESTATE, state);
    }
}

impl Open {
    fn responded(&self, status: StatusCode) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new(
            key::HTTP_RESPONSE_STATUS_CODE,
            i64::from(status.as_u16()),
        ));
        // For who calls, also what is wrong with the call is a failure.
        if status.is_client_error() || status.is_server_error() {
            failed(&self.context, status.as_str().to_owned());
        }
    }
}

impl Drop for Open {
    /// A call that nobody waits for any more is dropped with its span.
    fn drop(&mut self) {
        if !self.ended {
            failed(&self.context, "dropped".to_owned());
            self.context.span().end();
        }
    }
}
