//! The spans of a request's tries: publish, broker, worker, and back; each is the parent of the worker's.
//!
//! Tries that did not run and go to the same subject again are one span, with an event for each: a service without a
//! worker is asked a dozen times within two seconds, which is one thing to look at and not a dozen.

use std::time::SystemTime;

use natsway_boot::trace::conventions::{broker_attributes, failed};
use natsway_boot::trace::{Unseen, fields};
use natsway_wire::native::NativeReply;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_semantic_conventions::attribute as key;

use crate::encode::TraceFields;
use crate::link::Answer;
use crate::retry::Miss;

/// The tries' part in the trace of a request.
#[derive(Debug, Default)]
pub enum TrySpans {
    /// Nothing is traced: what the sender said of a trace goes on.
    #[default]
    Off,
    /// They have none, whatever the sampler, since their request has none.
    Unseen(Unseen),
    /// They have spans.
    Seen(Box<Tried>),
}

/// The spans of the tries of a request that has one.
#[derive(Debug)]
pub struct Tried {
    request: Context,
    open: Option<Open>,
}

/// A span that is not at its end.
#[derive(Debug)]
struct Open {
    context: Context,
    subject: String,
    tries: i64,
    /// How the last try ended, and when; none while one is out.
    missed: Option<(Miss, SystemTime)>,
}

/// Where a try goes.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'h> {
    /// The subject.
    pub subject: &'h str,
    /// The version behind it.
    pub version: &'h str,
    /// The broker that it goes over, `host:port`.
    pub broker: &'h str,
    /// Tries that were made before it.
    pub resends: u32,
}

/// What the message of a try is to carry.
#[derive(Debug)]
pub struct Begun {
    /// Nothing of its own where the sender's word stands.
    pub fields: Option<TraceFields>,
    /// They are other ones than those of the try before.
    pub are_new: bool,
}

impl TrySpans {
    /// Those of a request whose span is in this context.
    pub fn of(request: Context) -> TrySpans {
        TrySpans::Seen(Box::new(Tried { request, open: None }))
    }

    /// Begins a try.
    pub fn begin(&mut self, tracer: &BoxedTracer, hop: Hop<'_>) -> Begun {
        match self {
            TrySpans::Off => Begun { fields: None, are_new: false },
            TrySpans::Unseen(unseen) => {
                let fields = unseen.parent().map(|parent| TraceFields { parent, state: None });
                Begun { fields, are_new: false }
            }
            TrySpans::Seen(tried) => tried.begin(tracer, hop),
        }
    }

    /// Ends a try with what came back.
    pub fn end(&mut self, answer: &Answer) {
        if let TrySpans::Seen(tried) = self {
            tried.end(answer);
        }
    }
}

impl Tried {
    fn begin(&mut self, tracer: &BoxedTracer, hop: Hop<'_>) -> Begun {
        if let Some(open) = &mut self.open
            && open.subject == hop.subject
            && open.missed.take().is_some()
        {
            open.tries += 1;
            return Begun { fields: open.fields(), are_new: false };
        }
        // The one before ends by being dropped.
        let open = self.open.insert(Open::new(tracer, &self.request, hop));
        Begun { fields: open.fields(), are_new: true }
    }

    fn end(&mut self, answer: &Answer) {
        let Some(open) = &mut self.open else { return };
        match answer {
            Answer::Miss(miss) if !miss.may_have_run() => open.missed(*miss),
            answer => {
                open.answered(answer);
                self.open = None;
            }
        }
    }
}

impl Open {
    fn new(tracer: &BoxedTracer, request: &Context, hop: Hop<'_>) -> Open {
        let Hop { subject, version, broker, resends } = hop;
        let builder = tracer.span_builder(format!("send {subject}")).with_kind(SpanKind::Producer);
        let context = Context::new().with_span(tracer.build_with_context(builder, request));
        let span = context.span();
        span.set_attributes([
            KeyValue::new(key::MESSAGING_SYSTEM, "nats"),
            KeyValue::new(key::MESSAGING_OPERATION_TYPE, "send"),
            KeyValue::new(key::MESSAGING_OPERATION_NAME, "send"),
            KeyValue::new(key::MESSAGING_DESTINATION_NAME, subject.to_owned()),
            KeyValue::new("natsway.version", version.to_owned()),
        ]);
        span.set_attributes(broker_attributes(broker));
        if resends > 0 {
            span.set_attribute(KeyValue::new(key::HTTP_REQUEST_RESEND_COUNT, i64::from(resends)));
        }
        Open { context, subject: subject.to_owned(), tries: 1, missed: None }
    }

    fn fields(&self) -> Option<TraceFields> {
        let (parent, state) = fields(self.context.span().span_context())?;
        Some(TraceFields { parent, state })
    }

    fn missed(&mut self, miss: Miss) {
        self.context.span().add_event("not run", vec![KeyValue::new(key::ERROR_TYPE, miss.as_str())]);
        self.missed = Some((miss, SystemTime::now()));
    }

    fn answered(&mut self, answer: &Answer) {
        let outcome = match answer {
            Answer::Http(response) | Answer::Native(NativeReply::Response(response)) => Ok(response.status),
            Answer::Native(NativeReply::ServiceError { status, .. }) => Ok(*status),
            Answer::Miss(miss) => Err(miss.as_str()),
            Answer::Unreadable(_) => Err("bad_reply"),
        };
        match outcome {
            Ok(status) => {
                let span = self.context.span();
                span.set_attribute(KeyValue::new(key::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
                if status.is_server_error() {
                    failed(&self.context, status.as_str().to_owned());
                }
            }
            Err(kind) => failed(&self.context, kind.to_owned()),
        }
        self.close(SystemTime::now());
    }

    fn close(&mut self, at: SystemTime) {
        let span = self.context.span();
        if self.tries > 1 {
            span.set_attribute(KeyValue::new("natsway.tries", self.tries));
        }
        span.end_with_timestamp(at);
        // It has no parent, and is not closed again.
        self.context = Context::new();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.context.has_active_span() {
            return;
        }
        match self.missed.take() {
            // No other try came.
            Some((miss, at)) => {
                failed(&self.context, miss.as_str().to_owned());
                self.close(at);
            }
            // Nobody waits for it any more.
            None => {
                failed(&self.context, "abandoned".to_owned());
                self.close(SystemTime::now());
            }
        }
    }
}
