//! What the jobs of one reader share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use crate::streams::Streams;
use crate::telemetry::metrics::WorkerMetrics;
use crate::telemetry::trace::Spans;
use crate::unary::UnaryTunnels;

/// What the jobs of one reader share.
#[derive(Debug)]
pub(crate) struct ReaderContext {
    /// The instance as gateways know it.
    pub(crate) instance: String,
    pub(crate) outbox: Arc<Outbox>,
    /// One for each subject.
    pub(crate) metrics: Vec<WorkerMetrics>,
    pub(crate) max_response_bytes: usize,
    pub(crate) spans: Spans,
    pub(crate) streams: Streams,
    /// Whole requests that come by tunnels.
    pub(crate) unary: UnaryTunnels,
    /// Cancelled when the reader has left its queue groups.
    pub(crate) draining: Arc<CancellationToken>,
}
