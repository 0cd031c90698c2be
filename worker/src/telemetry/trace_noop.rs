//! What `trace` is without the feature of that name: nothing.

use std::convert::Infallible;
use std::time::Instant;

use http::{Request, StatusCode};
use natsway_wire::{QueueGroup, Subject};

/// Makes no spans.
#[derive(Debug)]
pub(crate) struct Spans;

/// None have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted {
    None,
}

/// There is none.
pub(crate) struct Span;

impl Spans {
    pub(crate) fn new(_wanted: Wanted, _subjects: &[Subject], _group: &QueueGroup) -> Self {
        Self
    }

    pub(crate) fn connected(&self, _address: &str) {}

    pub(crate) fn begin<B>(
        &self,
        _endpoint: usize,
        _request: &mut Request<B>,
        _arrived: Instant,
    ) -> Span {
        Span
    }
}

impl Span {
    pub(crate) fn enter(&self) -> Option<Infallible> {
        None
    }

    pub(crate) fn end(self, _status: StatusCode) {}
}
