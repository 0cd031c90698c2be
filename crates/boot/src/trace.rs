//! Trace context in header fields: W3C Trace Context, level 1.
//!
//! Written by hand rather than by the SDK's propagator, because libraries take part in traces without the SDK.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

/// Which trace a message belongs to, and which span sent it.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems on the way want to find again; theirs alone to read.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Lengths of the fields of version 00: version, trace id, span id, flags.
const PARTS: [usize; 4] = [2, 32, 16, 2];

/// A context whose span is the sender's; without a sound `traceparent`, one without a span.
pub fn extract(headers: &HeaderMap) -> Context {
    match remote_span(headers) {
        Some(span) => Context::new().with_remote_span_context(span),
        None => Context::new(),
    }
}

/// The fields that make `span` the parent at the receiver; none for a span that is no span.
pub fn fields(span: &SpanContext) -> Option<(HeaderValue, Option<HeaderValue>)> {
    if !span.is_valid() {
        return None;
    }
    let parent = HeaderValue::from_bytes(&traceparent(span)).ok()?;
    let state = span.trace_state().header();
    let state = (!state.is_empty()).then(|| HeaderValue::try_from(state).ok()).flatten();
    Some((parent, state))
}

/// Version 00, digit by digit: every request passes here, sampled or not, and formatting costs several times as much.
fn traceparent(span: &SpanContext) -> [u8; 55] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let mut write = |at: usize, bytes: &[u8]| {
        for (pair, byte) in text[at..].chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0xf)];
        }
    };
    write(3, &span.trace_id().to_bytes());
    write(36, &span.span_id().to_bytes());
    write(53, &[span.trace_flags().to_u8()]);
    text
}

fn remote_span(headers: &HeaderMap) -> Option<SpanContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    let (trace, span, flags) = parse(parent.to_str().ok()?)?;
    let states = headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok());
    // A state that cannot be read does not cost the trace.
    let state = states.collect::<Option<Vec<_>>>().unwrap_or_default().join(",").parse::<TraceState>();
    let context = SpanContext::new(trace, span, flags, true, state.unwrap_or_default());
    context.is_valid().then_some(context)
}

fn parse(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut parts = text.trim().split('-');
    let mut next = |length| {
        let part = parts.next()?;
        let is_lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (part.len() == length && part.bytes().all(is_lower_hex)).then_some(part)
    };
    let [version, trace, span, flags] = [next(PARTS[0])?, next(PARTS[1])?, next(PARTS[2])?, next(PARTS[3])?];
    // A later version may have more behind these four, and means the same by them; ff is no version.
    let too_long = version == "00" && parts.next().is_some();
    if too_long || version == "ff" {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & TraceFlags::SAMPLED.to_u8();
    Some((TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, TraceFlags::new(sampled)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap())
        };
        fields.iter().map(pair).collect()
    }

    #[test]
    fn what_was_read_is_written_again() {
        let headers = headers(&[("traceparent", SOUND), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let context = extract(&headers);
        let span = context.span().span_context().clone();
        assert!(span.is_remote() && span.is_sampled());
        let (parent, state) = fields(&span).unwrap();
        assert_eq!(parent, SOUND);
        assert_eq!(state.unwrap(), "a=1,b=2");
    }

    #[test]
    fn what_is_not_sound_is_no_parent() {
        for parent in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(!extract(&headers(&[("traceparent", parent)])).has_active_span(), "{parent}");
        }
        let twice = headers(&[("traceparent", SOUND), ("traceparent", SOUND)]);
        assert!(!extract(&twice).has_active_span());
        assert!(!extract(&HeaderMap::new()).has_active_span());
    }

    #[test]
    fn a_later_version_and_a_broken_state_keep_the_trace() {
        let later = format!("01{}-what-comes", &SOUND[2..]);
        let context = extract(&headers(&[("traceparent", &later), ("tracestate", "no state")]));
        assert!(context.span().span_context().is_sampled());
        assert_eq!(fields(context.span().span_context()).unwrap(), (HeaderValue::from_static(SOUND), None));
    }
}
