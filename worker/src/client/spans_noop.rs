//! What `spans` is without the feature `trace`: nothing.

use http::request::Parts;
use http::{HeaderMap, Response};
use natsway_caller::attempt::{Answer, Hop, TraceContext};

use super::error::CallError;
use crate::Body;

/// None have.
pub(super) type Wanted = Option<std::convert::Infallible>;

/// Makes no spans.
pub(super) struct Spans;

/// There is none.
pub(super) struct CallSpan;

/// There are none.
pub(super) struct AttemptSpans;

impl Spans {
    pub(super) fn new(_wanted: Wanted) -> Self {
        Self
    }

    pub(super) fn begin(&self, _route: &str, _head: &Parts) -> CallSpan {
        CallSpan
    }

    pub(super) fn begin_attempt(&self, _spans: &mut AttemptSpans, _hop: Hop<'_>) -> TraceContext {
        TraceContext::default()
    }
}

pub(super) fn follow_current(_headers: &mut HeaderMap) {}

impl CallSpan {
    pub(super) fn attempts(&self) -> AttemptSpans {
        AttemptSpans
    }

    pub(super) fn end(self, _answer: &Result<Response<Body>, CallError>) {}
}

impl AttemptSpans {
    pub(super) fn end(&mut self, _answer: &Answer) {}
}
