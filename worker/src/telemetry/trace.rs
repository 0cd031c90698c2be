//! A request's span at the worker, by OpenTelemetry's conventions for messaging: a child of the
//! gateway's, and the parent of whatever spans the handler makes.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use http::{HeaderValue, Request, StatusCode};
use natsway_boot::trace::conventions::{broker_attributes, failed, method_attributes, scope};
use natsway_boot::trace::{Head, HeadSampler, PARENT_BYTES, Sampled, TRACEPARENT, extract, fields};
use natsway_wire::{QueueGroup, Subject};
use opentelemetry::global::{self, BoxedTracer};
use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, ContextGuard, KeyValue};
use opentelemetry_semantic_conventions::attribute as key;

/// Makes the spans of requests, when the user wants them.
pub(crate) struct Spans(Option<Tracing>);

/// Which requests have spans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted {
    None,
    /// Those that the tracer provider wants, which is asked each time.
    Asked,
    /// Those that the provider's sampler wants, which is known.
    Sampled(HeadSampler),
}

struct Tracing {
    tracer: BoxedTracer,
    /// How the provider samples, if that is known.
    sampler: Option<HeadSampler>,
    /// What all requests of a subject have in common, by subject.
    subjects: Vec<Known>,
    /// The broker that requests come over now.
    broker: Mutex<Vec<KeyValue>>,
}

struct Known {
    name: String,
    attributes: Vec<KeyValue>,
}

/// A request's part in a trace, until it is answered or dropped.
pub(crate) enum Span {
    /// Nobody asks for it.
    Off,
    /// It has no span, and spans of its handler's are not to be seen either.
    Unsampled(Context),
    /// It has a span.
    Sampled(Box<Open>),
}

/// A span that ends as a failure when it is dropped.
pub(crate) struct Open {
    context: Context,
    ended: bool,
}

impl Spans {
    pub(crate) fn new(wanted: Wanted, subjects: &[Subject], group: &QueueGroup) -> Self {
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
        let sampler = match wanted {
            Wanted::None => return Self(None),
            Wanted::Asked => None,
            Wanted::Sampled(sampler) => Some(sampler),
        };
        let tracer = global::tracer_with_scope(scope("natsway-worker"));
        let (subjects, broker) = (subjects.iter().map(known).collect(), Mutex::default());
        Self(Some(Tracing { tracer, sampler, subjects, broker }))
    }

    /// Requests come over the broker at this address from now on.
    pub(crate) fn connected(&self, address: &str) {
        if let Some(tracing) = &self.0 {
            *tracing.broker.lock().unwrap_or_else(PoisonError::into_inner) =
                broker_attributes(address).collect();
        }
    }

    /// Begins the span of a request that arrived at `arrived` on a subject. It takes the place of
    /// its own parent in the request, so that the calls that a handler makes by the request's word
    /// are its children as well.
    pub(crate) fn begin<B>(
        &self,
        endpoint: usize,
        request: &mut Request<B>,
        arrived: Instant,
    ) -> Span {
        let Some(tracing) = &self.0 else { return Span::Off };
        let seen = match tracing.sampler.map(|sampler| sampler.judge(request.headers())) {
            Some(Head::Unsampled(unsampled)) => {
                let context = unsampled.context(request.headers());
                if let Some(parent) = unsampled.parent() {
                    replace_parent(request, &parent);
                }
                return Span::Unsampled(context);
            }
            Some(Head::Sampled(seen)) => seen,
            None => Sampled::default(),
        };
        let builder = tracing.tracer.span_builder("process").with_kind(SpanKind::Consumer);
        let builder = builder.with_start_time(SystemTime::now() - arrived.elapsed());
        let parent = extract(request.headers());
        let span = seen.span(&tracing.tracer, builder, &parent);
        let context = Context::new().with_span(span);
        let span = context.span();
        let seen = span.is_recording();
        if seen {
            let known = &tracing.subjects[endpoint];
            span.update_name(known.name.clone());
            span.set_attributes(known.attributes.iter().cloned());
            span.set_attributes(
                tracing.broker.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned(),
            );
            span.set_attributes(method_attributes(request.method()));
            span.set_attribute(KeyValue::new(key::URL_PATH, request.uri().path().to_owned()));
        }
        // Where nobody will see it, its parent serves as well.
        let stays = parent.has_active_span() && !seen && !parent.span().span_context().is_sampled();
        if !stays && let Some((own, _)) = fields(span.span_context()) {
            replace_parent(request, &own);
        }
        match seen {
            true => Span::Sampled(Box::new(Open { context, ended: false })),
            false => Span::Unsampled(context),
        }
    }
}

fn replace_parent<B>(request: &mut Request<B>, parent: &[u8; PARENT_BYTES]) {
    let parent = HeaderValue::from_bytes(parent).expect("digits and dashes are a header's value");
    request.headers_mut().insert(TRACEPARENT, parent);
}

impl Span {
    /// Makes it the parent of the spans that are begun on this thread until the guard is dropped;
    /// never across an await.
    pub(crate) fn enter(&self) -> Option<ContextGuard> {
        match self {
            Self::Off => None,
            Self::Unsampled(context) => Some(context.clone().attach()),
            Self::Sampled(open) => Some(open.context.clone().attach()),
        }
    }

    /// Ends with the answer.
    pub(crate) fn end(self, status: StatusCode) {
        if let Self::Sampled(open) = self {
            open.end(status);
        }
    }
}

impl Open {
    fn end(mut self, status: StatusCode) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new(
            key::HTTP_RESPONSE_STATUS_CODE,
            i64::from(status.as_u16()),
        ));
        if status.is_server_error() {
            failed(&self.context, status.as_str().to_owned());
        }
        span.end();
        self.ended = true;
    }
}

impl Drop for Open {
    /// A handler that is cancelled or runs past its deadline is dropped with its span.
    fn drop(&mut self) {
        if !self.ended {
            failed(&self.context, "dropped".to_owned());
            self.context.span().end();
        }
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spans").field(&self.0.is_some()).finish()
    }
}
