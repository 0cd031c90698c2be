//! The spans of a request's attempts: publish, broker, worker, and back; each is the parent of the
//! worker's.
//!
//! Attempts that did not run and go to the same subject again are one span, with an event for each:
//! a service without a worker is asked a dozen times within two seconds, which is one thing to look
//! at and not a dozen.

use std::time::SystemTime;

use natsway_boot::trace::conventions::{broker_attributes, failed};
use natsway_boot::trace::{Unsampled, fields};
use natsway_wire::native::NativeReply;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_semantic_conventions::attribute as key;

use crate::attempt::{Answer, AttemptError, Hop, TraceContext};
use crate::encode::TraceFields;

/// The attempts' part in the trace of a request.
#[derive(Debug, Default)]
pub enum AttemptSpans {
    /// Nothing is traced: what the sender said of a trace goes on.
    #[default]
    Off,
    /// They have none, whatever the sampler, since their request has none.
    Unsampled(Unsampled),
    /// They have spans.
    Sampled(Box<TracedAttempts>),
}

/// The spans of the attempts of a request that has one.
#[derive(Debug)]
pub struct TracedAttempts {
    request: Context,
    open: Option<Open>,
}

/// A span that is not at its end.
#[derive(Debug)]
struct Open {
    context: Context,
    subject: String,
    attempts: i64,
    /// How the last attempt ended, and when; none while one is out.
    failure: Option<(AttemptError, SystemTime)>,
}

impl AttemptSpans {
    /// Those of a request whose span is in this context.
    pub fn of(request: Context) -> Self {
        Self::Sampled(Box::new(TracedAttempts { request, open: None }))
    }

    /// Begins an attempt.
    pub fn begin(&mut self, tracer: &BoxedTracer, hop: Hop<'_>) -> TraceContext {
        match self {
            Self::Off => TraceContext::default(),
            Self::Unsampled(unsampled) => {
                let fields = unsampled.parent().map(|parent| TraceFields { parent, state: None });
                TraceContext { fields, are_new: false }
            }
            Self::Sampled(traced) => traced.begin(tracer, hop),
        }
    }

    /// Ends an attempt with what came back.
    pub fn end(&mut self, answer: &Answer) {
        if let Self::Sampled(traced) = self {
            traced.end(answer);
        }
    }
}

impl TracedAttempts {
    fn begin(&mut self, tracer: &BoxedTracer, hop: Hop<'_>) -> TraceContext {
        if let Some(open) = &mut self.open
            && open.subject == hop.subject
            && open.failure.take().is_some()
        {
            open.attempts += 1;
            return TraceContext { fields: open.fields(), are_new: false };
        }
        // The one before ends by being dropped.
        let open = self.open.insert(Open::new(tracer, &self.request, hop));
        TraceContext { fields: open.fields(), are_new: true }
    }

    fn end(&mut self, answer: &Answer) {
        let Some(open) = &mut self.open else { return };
        match answer {
            Answer::Failed(error) if !error.may_have_run() => open.did_not_run(*error),
            answer => {
                open.answered(answer);
                self.open = None;
            }
        }
    }
}

impl Open {
    fn new(tracer: &BoxedTracer, request: &Context, hop: Hop<'_>) -> Self {
        let Hop { subject, version, broker, resends } = hop;
        let builder = tracer.span_builder(format!("send {subject}")).with_kind(SpanKind::Producer);
        let context = Context::new().with_span(tracer.build_with_context(builder, request));
        let span = context.span();
        span.set_attributes([
            KeyValue::new(key::MESSAGING_SYSTEM, "nats"),
            KeyValue::new(key::MESSAGING_OPERATION_TYPE, "send"),
            KeyValue::new(key::MESSAGING_OPERATION_NAME, "send"),
            KeyValue::new(key::MESSAGING_DESTINATION_NAME, subject.to_owned()),
        ]);
        if let Some(version) = version {
            span.set_attribute(KeyValue::new("natsway.version", version.to_owned()));
        }
        span.set_attributes(broker_attributes(broker));
        if resends > 0 {
            span.set_attribute(KeyValue::new(key::HTTP_REQUEST_RESEND_COUNT, i64::from(resends)));
        }
        Self { context, subject: subject.to_owned(), attempts: 1, failure: None }
    }

    fn fields(&self) -> Option<TraceFields> {
        let (parent, state) = fields(self.context.span().span_context())?;
        Some(TraceFields { parent, state })
    }

    fn did_not_run(&mut self, error: AttemptError) {
        self.context
            .span()
            .add_event("not run", vec![KeyValue::new(key::ERROR_TYPE, error.as_str())]);
        self.failure = Some((error, SystemTime::now()));
    }

    fn answered(&mut self, answer: &Answer) {
        let outcome = match answer {
            Answer::Replied(NativeReply::Response(response)) => Ok(response.status),
            Answer::Replied(NativeReply::ServiceError { status, .. }) => Ok(*status),
            Answer::Streamed(streamed) => Ok(streamed.response.status),
            // Followed before anybody is told.
            Answer::Continues(_) => return,
            Answer::Failed(error) => Err(error.as_str()),
            Answer::Unreadable(_) => Err("bad_reply"),
        };
        match outcome {
            Ok(status) => {
                let span = self.context.span();
                span.set_attribute(KeyValue::new(
                    key::HTTP_RESPONSE_STATUS_CODE,
                    i64::from(status.as_u16()),
                ));
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
        if self.attempts > 1 {
            span.set_attribute(KeyValue::new("natsway.attempts", self.attempts));
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
        match self.failure.take() {
            // No other attempt came.
            Some((error, at)) => {
                failed(&self.context, error.as_str().to_owned());
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
