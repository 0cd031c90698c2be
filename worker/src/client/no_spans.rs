//! What `spans` is without the feature `trace`: nothing.

use http::request::Parts;
use http::{HeaderMap, Response};
use natsway_caller::encode::TraceFields;
use natsway_caller::link::{Answer, Link};

use super::error::CallError;
use crate::Body;

/// None have.
pub(super) type Wanted = Option<std::convert::Infallible>;

/// Makes no spans.
pub(super) struct Spans;

/// There is none.
pub(super) struct CallSpan;

/// There are none.
pub(super) struct TrySpans;

impl Spans {
    pub(super) fn new(_wanted: Wanted) -> Spans {
        Spans
    }

    pub(super) fn begin(&self, _route: &str, _head: &Parts) -> CallSpan {
        CallSpan
    }

    pub(super) fn begin_try(
        &self,
        _spans: &mut TrySpans,
        _subject: &str,
        _version: &str,
        _link: &Link,
        _resends: u32,
    ) -> (Option<TraceFields>, bool) {
        (None, false)
    }
}

pub(super) fn follow_current(_headers: &mut HeaderMap) {}

impl CallSpan {
    pub(super) fn tries(&self) -> TrySpans {
        TrySpans
    }

    pub(super) fn end(self, _answer: &Result<Response<Body>, CallError>) {}
}

impl TrySpans {
    pub(super) fn end(&mut self, _answer: &Answer) {}
}
