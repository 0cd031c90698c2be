//! A request's span at the worker, by OpenTelemetry's conventions for messaging: a child of the gateway's, and the
//! parent of whatever spans the handler makes.

use std::fmt;
use std::time::{Instant, SystemTime};

use http::{Request, StatusCode};
use natsway_boot::trace::{TRACEPARENT, extract, fields};
use natsway_wire::{QueueGroup, Subject};
use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, ContextGuard, KeyValue};
use opentelemetry_semantic_conventions::attribute as key;

/// Makes the spans of requests, when the user wants them.
pub(crate) struct Spans(Option<Tracing>);

struct Tracing {
    tracer: BoxedTracer,
    /// What all requests of a subject have in common, by subject.
    subjects: Vec<Known>,
}

struct Known {
    name: String,
    attributes: Vec<KeyValue>,
}

/// The span of one request, until it is answered or dropped.
pub(crate) struct Span {
    context: Context,
    ended: bool,
}

impl Spans {
    pub(crate) fn new(wanted: bool, subjects: &[Subject], group: &QueueGroup) -> Spans {
        let known = |subject: &Subject| Known {
            name: format!("process {subject}"),
            attributes: vec![
                KeyValue::new(key::MESSAGING_SYSTEM, "nats"),
                KeyValue::new(key::MESSAGING_OPERATION_TYPE, "process"),
                KeyValue::new(key::MESSAGING_OPERATION_NAME, "process"),
                KeyValue::new(key::MESSAGING_DESTINATION_NAME, subject.to_string()),
                KeyValue::new(key::MESSAGING_CONSUMER_GROUP_NAME, group.to_string()),
            ],
        };
        Spans(wanted.then(|| Tracing {
            tracer: global::tracer("natsway-worker"),
            subjects: subjects.iter().map(known).collect(),
        }))
    }

    /// Begins the span of a request that arrived at `arrived` on a subject. It takes the place of its own parent in the
    /// request, so that the calls that a handler makes by the request's word are its children as well.
    pub(crate) fn begin<B>(
        &self,
        endpoint: usize,
        request: &mut Request<B>,
        arrived: Instant,
    ) -> Option<Box<Span>> {
        let tracing = self.0.as_ref()?;
        let builder = tracing.tracer.span_builder("process").with_kind(SpanKind::Consumer);
        let builder = builder.with_start_time(SystemTime::now() - arrived.elapsed());
        let parent = extract(request.headers());
        let span = tracing.tracer.build_with_context(builder, &parent);
        let context = Context::new().with_span(span);
        let span = context.span();
        if span.is_recording() {
            let known = &tracing.subjects[endpoint];
            span.update_name(known.name.clone());
            span.set_attributes(known.attributes.iter().cloned());
            span.set_attribute(KeyValue::new(key::HTTP_REQUEST_METHOD, request.method().as_str().to_owned()));
            span.set_attribute(KeyValue::new(key::URL_PATH, request.uri().path().to_owned()));
        }
        // Where nobody will see it, its parent serves as well.
        let stays =
            parent.has_active_span() && !span.is_recording() && !parent.span().span_context().is_sampled();
        if !stays && let Some((own, _)) = fields(span.span_context()) {
            request.headers_mut().insert(TRACEPARENT, own);
        }
        Some(Box::new(Span { context, ended: false }))
    }
}

impl Span {
    /// Makes it the parent of the spans that are begun on this thread until the guard is dropped; never across an
    /// await.
    pub(crate) fn enter(&self) -> ContextGuard {
        self.context.clone().attach()
    }

    /// Ends with the answer.
    pub(crate) fn end(mut self, status: StatusCode) {
        let span = self.context.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
            if status.is_server_error() {
                self.failed(status.as_str().to_owned());
            }
        }
        span.end();
        self.ended = true;
    }

    fn failed(&self, kind: String) {
        let span = self.context.span();
        span.set_status(Status::error(kind.clone()));
        span.set_attribute(KeyValue::new(key::ERROR_TYPE, kind));
    }
}

impl Drop for Span {
    /// A handler that is cancelled or runs past its deadline is dropped with its span.
    fn drop(&mut self) {
        if !self.ended {
            self.failed("dropped".to_owned());
            self.context.span().end();
        }
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spans").field(&self.0.is_some()).finish()
    }
}
