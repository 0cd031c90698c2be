//! A request's spans, by OpenTelemetry's conventions for HTTP servers and for messaging.
//!
//! A request has a span of its own, a child of the client's if the client sent one, and under it
//! those of its attempts ([`AttemptSpans`]), which are the parents of the worker's. What a span is
//! not for: queries and header fields, which may hold secrets. A request that is not sampled has
//! none of it: it costs a look at its `traceparent`, or else a random number, and the word to the
//! worker that it is not.

use http::uri::Authority;
use http::{Method, Request, StatusCode, Version, header};
use natsway_boot::trace::conventions::{failed, method_attributes, method_in_name, scope};
use natsway_boot::trace::{
    Head, HeadSampler, Sampled, TRACEPARENT, TRACESTATE, Unsampled, extract,
};
use natsway_caller::encode::{Fields, TraceFields};
use natsway_caller::trace::AttemptSpans;
use natsway_routes::table::Route;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_semantic_conventions::attribute as key;

use crate::client_address::Client;
use crate::headers::{Caller, Forwarded};

/// Makes spans; a shard has one when traces are exported.
pub struct Spans {
    tracer: BoxedTracer,
    sampler: HeadSampler,
}

/// A request's part in a trace, from its head to its response's.
#[derive(Debug)]
pub enum RequestSpan {
    /// It has a span.
    Sampled(Box<OpenSpan>),
    /// It has none, which the worker is to know.
    Unsampled(Unsampled),
}

/// A span that ends as a failure when it is dropped.
#[derive(Debug)]
pub struct OpenSpan {
    context: Context,
    /// The kind of error, if nobody ends it before.
    dropped: &'static str,
    ended: bool,
}

/// What a worker is to see of a request: the client's word of a trace stands unless there is ours.
#[derive(Debug)]
pub struct Traced<'a> {
    /// Everything else.
    pub forwarded: Forwarded<'a>,
    /// Ours.
    pub trace: Option<&'a TraceFields>,
}

impl Spans {
    /// By the tracer of this process, which boot has set up to sample as `sampler` does.
    pub fn new(sampler: HeadSampler) -> Self {
        let tracer = opentelemetry::global::tracer_with_scope(scope("natsway-apiproxy"));
        Self { tracer, sampler }
    }

    /// Makes the spans of attempts.
    pub fn tracer(&self) -> &BoxedTracer {
        &self.tracer
    }
}

impl RequestSpan {
    /// Begins with the request's head.
    ///
    /// What a stranger says of a trace decides nothing: neither whether its request is sampled,
    /// which costs us, nor the trace's id, of which samplers by ratio make their choice. Its trace
    /// is begun anew, as W3C Trace Context has it where trust ends, and a span that is made links
    /// to what the stranger named.
    pub fn begin<B>(spans: &Spans, request: &Request<B>, caller: &Caller, client: &Client) -> Self {
        let head = match caller.trusted {
            true => spans.sampler.judge(request.headers()),
            false => spans.sampler.begin(),
        };
        match head {
            Head::Unsampled(unsampled) => Self::Unsampled(unsampled),
            Head::Sampled(seen) => {
                Self::Sampled(OpenSpan::request(spans, seen, request, caller, client))
            }
        }
    }

    /// The trace's id, for log lines.
    pub fn trace_id(&self) -> TraceId {
        match self {
            Self::Sampled(span) => span.context.span().span_context().trace_id(),
            Self::Unsampled(unsampled) => unsampled.trace_id(),
        }
    }

    /// Says which route answers it.
    pub fn routed(&self, method: &Method, route: &Route, authority: &Authority) {
        if let Self::Sampled(span) = self {
            span.routed(method, route, authority);
        }
    }

    /// The part that its attempts have in it.
    pub fn attempts(&self) -> AttemptSpans {
        match self {
            Self::Sampled(span) => AttemptSpans::of(span.context.clone()),
            Self::Unsampled(unsampled) => AttemptSpans::Unsampled(*unsampled),
        }
    }

    /// Ends with the response; `problem` is why the gateway answered by itself, if it did.
    pub fn end(self, status: StatusCode, problem: Option<&'static str>) {
        if let Self::Sampled(span) = self {
            span.responded(status, problem);
        }
    }
}

impl OpenSpan {
    fn request<B>(
        spans: &Spans,
        seen: Sampled,
        request: &Request<B>,
        caller: &Caller,
        client: &Client,
    ) -> Box<Self> {
        let name = method_in_name(request.method());
        let said = extract(request.headers());
        let mut builder = spans.tracer.span_builder(name).with_kind(SpanKind::Server);
        if !caller.trusted && said.has_active_span() {
            builder =
                builder.with_links(vec![Link::with_context(said.span().span_context().clone())]);
        }
        let parent = if caller.trusted { said } else { Context::new() };
        let span = seen.span(&spans.tracer, builder, &parent);
        let context = Context::new().with_span(span);
        // Hyper drops a request whose client left.
        let begun = Box::new(Self { context, dropped: "client_gone", ended: false });
        begun.describe(request, caller, client);
        begun
    }

    fn describe<B>(&self, request: &Request<B>, caller: &Caller, client: &Client) {
        let span = self.context.span();
        span.set_attributes(method_attributes(request.method()));
        let mut attributes = vec![
            KeyValue::new(key::URL_PATH, request.uri().path().to_owned()),
            KeyValue::new(key::URL_SCHEME, client.scheme.as_str()),
            KeyValue::new(key::CLIENT_ADDRESS, client.address.to_string()),
            KeyValue::new(key::NETWORK_PEER_ADDRESS, caller.peer.ip().to_canonical().to_string()),
        ];
        if let Some(version) = protocol_version(request.version()) {
            attributes.push(KeyValue::new(key::NETWORK_PROTOCOL_VERSION, version));
        }
        if let Some(agent) =
            request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok())
        {
            attributes.push(KeyValue::new(key::USER_AGENT_ORIGINAL, agent.to_owned()));
        }
        span.set_attributes(attributes);
    }

    fn routed(&self, method: &Method, route: &Route, authority: &Authority) {
        let span = self.context.span();
        span.update_name(format!("{} {}", method_in_name(method), route.path));
        span.set_attribute(KeyValue::new(key::HTTP_ROUTE, route.path.to_string()));
        span.set_attribute(KeyValue::new("natsway.route", route.name.clone()));
        span.set_attribute(KeyValue::new(key::SERVER_ADDRESS, authority.host().to_owned()));
        if let Some(port) = authority.port_u16() {
            span.set_attribute(KeyValue::new(key::SERVER_PORT, i64::from(port)));
        }
    }

    fn responded(mut self, status: StatusCode, problem: Option<&'static str>) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new(
            key::HTTP_RESPONSE_STATUS_CODE,
            i64::from(status.as_u16()),
        ));
        if status.is_server_error() {
            let kind = problem.map_or_else(|| status.as_str().to_owned(), str::to_owned);
            failed(&self.context, kind);
        }
        span.end();
        self.ended = true;
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if !self.ended {
            failed(&self.context, self.dropped.to_owned());
            self.context.span().end();
        }
    }
}

impl Fields for Traced<'_> {
    fn bytes(&self) -> usize {
        // A traceparent is 70 bytes; a state is no longer than the client's was.
        self.forwarded.bytes() + self.trace.map_or(0, |_| 80)
    }

    fn each<E>(&self, mut put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let Some(trace) = self.trace else { return self.forwarded.each(put) };
        let (parent, state) = (TRACEPARENT, TRACESTATE);
        let (parent, state) = (parent.as_str(), state.as_str());
        self.forwarded.each(|name, value| match name == parent || name == state {
            true => Ok(()),
            false => put(name, value),
        })?;
        put(parent, &trace.parent)?;
        trace.state.as_ref().map_or(Ok(()), |state| put(TRACESTATE.as_str(), state.as_bytes()))
    }
}

fn protocol_version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}
