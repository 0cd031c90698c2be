//! Types of content whose bodies go on for as long as both ends like.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// Whether these fields are those of an event stream.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    has_type(headers, "text/event-stream")
}

/// Whether the content is of this type, with whatever parameters or suffix.
fn has_type(headers: &HeaderMap, name: &str) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| {
        value.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
    })
}
