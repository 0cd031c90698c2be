//! What became of requests on their way to an app.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

/// Counters of one upstream.
#[derive(Debug, Default)]
pub(super) struct UpstreamMetrics {
    pub(super) connections: AtomicU64,
    pub(super) connections_reused: AtomicU64,
    pub(super) sent_again: AtomicU64,
    pub(super) down: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) broken: AtomicU64,
    pub(super) broken_bodies: AtomicU64,
    pub(super) upgrades: AtomicU64,
}

/// The counters of an upstream at one moment; `nats micro stats` shows them as `data.upstream`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UpstreamStats {
    /// Connections that were made to the app.
    pub connections: u64,
    /// Requests that went by a connection which had served another one.
    pub connections_reused: u64,
    /// Requests that were sent once more on a fresh connection, since the app had closed the first.
    pub sent_again: u64,
    /// Requests that found the app down: they did not reach it.
    pub down: u64,
    /// Requests that the app did not begin to answer in time.
    pub timed_out: u64,
    /// Requests whose connection broke, or answered what is no HTTP, before there was a response.
    pub broken: u64,
    /// Responses that broke off behind their head.
    pub broken_bodies: u64,
    /// Requests that became another protocol, say a WebSocket.
    pub upgrades: u64,
}

impl UpstreamMetrics {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> UpstreamStats {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        UpstreamStats {
            connections: read(&self.connections),
            connections_reused: read(&self.connections_reused),
            sent_again: read(&self.sent_again),
            down: read(&self.down),
            timed_out: read(&self.timed_out),
            broken: read(&self.broken),
            broken_bodies: read(&self.broken_bodies),
            upgrades: read(&self.upgrades),
        }
    }
}
