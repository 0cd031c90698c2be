//! Trace context in header fields: W3C Trace Context, level 1.
//!
//! Written by hand rather than by the SDK's propagator, because libraries take part in traces
//! without the SDK.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

pub mod conventions;
mod head;

#[cfg(feature = "cli")]
pub(crate) use head::begun_trace;
pub use head::{Head, HeadSampler, Sampled, Unsampled};

/// Which trace a message belongs to, and which span sent it.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems on the way want to find again; theirs alone to read.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a `traceparent` of version 00; what is behind them is a later version's.
pub const PARENT_BYTES: usize = 55;

/// What a sound `traceparent` says.
struct Sender {
    trace: TraceId,
    span: SpanId,
    sampled: bool,
}

/// A context whose span is the sender's; without a sound `traceparent`, one without a span.
pub fn extract(headers: &HeaderMap) -> Context {
    let Some(Sender { trace, span, sampled }) = sender(headers) else { return Context::new() };
    let flags = TraceFlags::default().with_sampled(sampled);
    Context::new().with_remote_span_context(SpanContext::new(
        trace,
        span,
        flags,
        true,
        state(headers),
    ))
}

/// The fields that make `span` the parent at the receiver; none for a span that is no span.
pub fn fields(span: &SpanContext) -> Option<([u8; PARENT_BYTES], Option<HeaderValue>)> {
    if !span.is_valid() {
        return None;
    }
    let parent = traceparent(span.trace_id(), span.span_id(), span.trace_flags());
    let state = span.trace_state().header();
    let state = (!state.is_empty()).then(|| HeaderValue::try_from(state).ok()).flatten();
    Some((parent, state))
}

/// Version 00, digit by digit: every request passes here, sampled or not, and formatting costs
/// several times as much.
fn traceparent(trace: TraceId, span: SpanId, flags: TraceFlags) -> [u8; PARENT_BYTES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let mut write = |at: usize, bytes: &[u8]| {
        for (pair, byte) in text[at..].chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0xf)];
        }
    };
    write(3, &trace.to_bytes());
    write(36, &span.to_bytes());
    write(53, &[flags.to_u8()]);
    text
}

/// Who sent a message, if it says so once and soundly.
fn sender(headers: &HeaderMap) -> Option<Sender> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    parse(parent.as_bytes().trim_ascii())
}

/// A state that cannot be read does not cost the trace.
fn state(headers: &HeaderMap) -> TraceState {
    let mut states = headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok()).peekable();
    if states.peek().is_none() {
        return TraceState::default();
    }
    let state =
        states.collect::<Option<Vec<_>>>().unwrap_or_default().join(",").parse::<TraceState>();
    state.unwrap_or_default()
}

fn parse(text: &[u8]) -> Option<Sender> {
    let (parent, rest) = text.split_at_checked(PARENT_BYTES)?;
    let [version] = hex(&parent[..2])?;
    // A later version may have more behind these four, and means the same by them; ff is no
    // version.
    let ends = rest.is_empty() || version != 0 && rest[0] == b'-';
    let parted = parent[2] == b'-' && parent[35] == b'-' && parent[52] == b'-';
    if !ends || !parted || version == 0xff {
        return None;
    }
    let trace = TraceId::from_bytes(hex(&parent[3..35])?);
    let span = SpanId::from_bytes(hex(&parent[36..52])?);
    let [flags] = hex(&parent[53..])?;
    let sampled = TraceFlags::new(flags).is_sampled();
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some(Sender {
        trace,
        span,
        sampled,
    })
}

/// What a byte is as a digit, in lower case, as the header is defined; [`NO_DIGIT`] for the others.
/// A table, because a worker reads 48 of them for every request, sampled or not.
const DIGIT: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    table
};

/// Has a bit that no digit has.
const NO_DIGIT: u8 = 0x80;

fn hex<const BYTES: usize>(digits: &[u8]) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let mut sampled = 0;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (DIGIT[usize::from(pair[0])], DIGIT[usize::from(pair[1])]);
        sampled |= high | low;
        *byte = high << 4 | low;
    }
    (sampled & NO_DIGIT == 0).then_some(bytes)
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
        let headers =
            headers(&[("traceparent", SOUND), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let context = extract(&headers);
        let span = context.span().span_context().clone();
        assert!(span.is_remote() && span.is_sampled());
        let (parent, state) = fields(&span).unwrap();
        assert_eq!(parent, SOUND.as_bytes());
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
        assert_eq!(
            fields(context.span().span_context()).unwrap(),
            (*SOUND.as_bytes().first_chunk().unwrap(), None)
        );
    }
}
