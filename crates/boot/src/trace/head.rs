//! Whether anybody will see a request's spans, decided before one is made.
//!
//! The SDK asks its sampler when a span begins, and what it makes of a no costs a large part of
//! what it makes of a yes. Where one request in a hundred is sampled that is most of the cost, so
//! the same question is answered here by what the message says and, where it says nothing, by the
//! number that becomes the trace's id.

use std::cell::Cell;

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, Tracer,
};

use super::{PARENT_BYTES, Sender, sender, state, traceparent};

/// The largest number that a share is counted by: OpenTelemetry compares 63 bits of a trace's id.
const ALL: u64 = 1 << 63;

thread_local! {
    /// The trace that the next span without a parent begins.
    static BEGINS: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// How a tracer provider samples, for what has to know it before there is a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSampler {
    heeds_parent: bool,
    /// Traces whose number is below it are sampled.
    bound: u64,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub enum Head {
    /// It has a span.
    Sampled(Sampled),
    /// It has none.
    Unsampled(Unsampled),
}

/// A request that is sampled, or of which the tracer provider is to decide.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampled {
    begins: Option<TraceId>,
}

/// A request that is not sampled. Whoever gets it next is told so, and does not decide anew.
#[derive(Clone, Copy, Debug)]
pub struct Unsampled {
    trace: TraceId,
    span: SpanId,
    /// Whether what came with the message says it already.
    said: bool,
}

impl HeadSampler {
    /// A share of all traces, 0 to 1, as `TraceIdRatioBased` of the SDK takes it.
    pub fn share(share: f64) -> Self {
        let bound = if share >= 1.0 { ALL } else { (share.max(0.0) * ALL as f64) as u64 };
        Self { heeds_parent: false, bound }
    }

    /// What the sender of a message decided goes for its receiver, as with `ParentBased` of the
    /// SDK.
    pub fn heeding_parent(self) -> Self {
        Self { heeds_parent: true, ..self }
    }

    /// Decides about a message by its fields.
    pub fn judge(&self, headers: &HeaderMap) -> Head {
        let Some(Sender { trace, span, sampled }) = sender(headers) else { return self.begin() };
        let takes = if self.heeds_parent { sampled } else { self.takes(trace) };
        match takes {
            true => Head::Sampled(Sampled::default()),
            false => Head::Unsampled(Unsampled { trace, span, said: !sampled }),
        }
    }

    /// Decides about a trace that begins here, whatever a message says. The quick generator will
    /// do: an id is no secret, and nothing that is kept has one of these alone, for of a trace that
    /// is not sampled nothing is kept.
    pub fn begin(&self) -> Head {
        let number = fastrand::u64(1..);
        let trace = TraceId::from(u128::from(fastrand::u64(..)) << 64 | u128::from(number));
        match self.takes(trace) {
            true => Head::Sampled(Sampled { begins: Some(trace) }),
            false => Head::Unsampled(Unsampled {
                trace,
                span: SpanId::from(fastrand::u64(1..)),
                said: false,
            }),
        }
    }

    fn takes(&self, trace: TraceId) -> bool {
        let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < self.bound
    }
}

impl Sampled {
    /// Begins the span of the request.
    pub fn span<T: Tracer>(self, tracer: &T, builder: SpanBuilder, parent: &Context) -> T::Span {
        BEGINS.set(self.begins);
        let span = tracer.build_with_context(builder, parent);
        BEGINS.set(None);
        span
    }
}

impl Unsampled {
    /// The trace that it would have been part of.
    pub fn trace_id(&self) -> TraceId {
        self.trace
    }

    /// The `traceparent` that says so to the next; none where the one that came with the message
    /// says it already.
    pub fn parent(&self) -> Option<[u8; PARENT_BYTES]> {
        (!self.said).then(|| traceparent(self.trace, self.span, TraceFlags::default()))
    }

    /// A context that keeps spans below it from being sampled.
    pub fn context(&self, headers: &HeaderMap) -> Context {
        let span =
            SpanContext::new(self.trace, self.span, TraceFlags::default(), true, state(headers));
        Context::new().with_remote_span_context(span)
    }
}

/// The id of the trace that is begun, if it is known already: for the provider's generator of ids.
#[cfg(feature = "cli")]
pub(crate) fn begun_trace() -> Option<TraceId> {
    BEGINS.take()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::trace::TRACEPARENT;

    fn with_parent(parent: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(parent))])
    }

    fn unsampled(head: Head) -> Unsampled {
        let Head::Unsampled(unsampled) = head else { panic!("{head:?}") };
        unsampled
    }

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const NOT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    #[test]
    fn the_sender_decides_where_it_is_heeded() {
        let (all, none) = (HeadSampler::share(1.0), HeadSampler::share(0.0));
        assert!(matches!(none.heeding_parent().judge(&with_parent(SAMPLED)), Head::Sampled(_)));
        assert!(matches!(all.judge(&with_parent(NOT)), Head::Sampled(_)));
        let said = unsampled(all.heeding_parent().judge(&with_parent(NOT)));
        assert_eq!(said.parent(), None, "it stays as it came");
        let overruled = unsampled(none.judge(&with_parent(SAMPLED)));
        assert_eq!(
            overruled.parent().unwrap(),
            NOT.as_bytes(),
            "the same trace, and the word is no"
        );
        let context = overruled.context(&HeaderMap::new());
        assert_eq!(context.span().span_context().trace_id(), overruled.trace_id());
        assert!(!context.span().span_context().is_sampled());
    }

    #[test]
    fn what_is_not_sampled_and_begins_here_has_an_identity() {
        let sampler = HeadSampler::share(0.0).heeding_parent();
        let one = unsampled(sampler.judge(&with_parent("nonsense")));
        let other = unsampled(sampler.judge(&HeaderMap::new()));
        assert_ne!(one.trace_id(), other.trace_id());
        let parent = HeaderValue::from_bytes(&one.parent().unwrap()).unwrap();
        let read = unsampled(
            HeadSampler::share(1.0)
                .heeding_parent()
                .judge(&HeaderMap::from_iter([(TRACEPARENT, parent)])),
        );
        assert_eq!(read.trace_id(), one.trace_id());
    }

    #[test]
    fn a_share_is_taken_of_what_says_nothing() {
        fastrand::seed(1);
        let sampler = HeadSampler::share(0.25).heeding_parent();
        let sampled = (0..4_000)
            .filter(|_| matches!(sampler.judge(&HeaderMap::new()), Head::Sampled(_)))
            .count();
        assert!((800..1_200).contains(&sampled), "{sampled}");
    }
}
