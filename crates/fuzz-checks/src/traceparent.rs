//! The trace that header fields tell is told on unchanged.

use http::{HeaderMap, HeaderValue};
use natsway_boot::trace::{TRACEPARENT, TRACESTATE, extract, fields};
use opentelemetry::trace::TraceContextExt;

/// See the module.
pub fn check(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for (place, line) in data.split(|byte| *byte == b'\n').enumerate() {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        headers.append(if place == 0 { TRACEPARENT } else { TRACESTATE }, value);
    }
    let context = extract(&headers);
    let span = context.span().span_context().clone();
    let Some((parent, state)) = fields(&span) else { return };
    let mut told = HeaderMap::new();
    told.insert(TRACEPARENT, HeaderValue::from_bytes(&parent).expect("hexadecimal digits"));
    if let Some(state) = state {
        told.insert(TRACESTATE, state);
    }
    assert_eq!(extract(&told).span().span_context(), &span);
}
