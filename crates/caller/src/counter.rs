//! What the connections of one thread count, for others to read.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};

use natsway_tunnel::pipe::PipeMeter;

use crate::attempt::AttemptError;
use crate::publish::PublishCounts;

/// A figure that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The figure now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A figure that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds, or takes away.
    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The figure now.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// The metrics of one thread's connections.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// Replies that nobody waited for: late ones, and second ones.
    pub late_replies: Counter,
    /// Requests cancelled at their worker because nobody waited any more.
    pub cancelled: Counter,
    /// Connections to the broker that are up.
    pub connected: Gauge,
    /// Connections to the broker that were made.
    pub sessions: Counter,
}

/// The metrics of one thread's dispatcher.
#[derive(Debug, Default)]
pub struct DispatchCounts {
    /// Attempts after the first.
    pub retries: Counter,
    /// What its publications come to.
    pub publish: PublishCounts,
    /// Attempts that gave no response, by kind.
    failures: [Counter; AttemptError::ALL.len()],
}

impl DispatchCounts {
    /// Counts an attempt that gave no response.
    pub fn failed(&self, error: AttemptError) {
        self.failures[error as usize].inc();
    }

    /// Returns how many attempts failed so.
    pub fn failures(&self, error: AttemptError) -> u64 {
        self.failures[error as usize].get()
    }
}

/// The metrics of one thread's tunnels.
#[derive(Debug, Default)]
pub struct TunnelCounts {
    /// Tunnels that are open.
    pub open: Gauge,
    /// Tunnels that were opened.
    pub opened: Counter,
    /// Connections that did not become a tunnel.
    pub refused: Counter,
    /// Pipes on the broker that are open.
    pub pipes: Gauge,
    /// What went by them.
    pub pipe_meter: Arc<PipeMeter>,
    /// Streams that were opened.
    pub streams: Counter,
    /// Streams that were not.
    pub not_opened: Counter,
    /// Tunnels for whole requests that are open.
    pub unary_open: Gauge,
    /// Tunnels for whole requests that were opened.
    pub unary_opened: Counter,
    /// Requests that were sent by a tunnel.
    pub unary_requests: Counter,
    /// Answers on a tunnel that nobody waited for.
    pub unary_late: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_a_counter_of_its_own() {
        let counts = DispatchCounts::default();
        for (times, error) in AttemptError::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counts.failed(error));
        }
        let counted: Vec<u64> =
            AttemptError::ALL.into_iter().map(|error| counts.failures(error)).collect();
        assert_eq!(counted, (0..AttemptError::ALL.len() as u64).collect::<Vec<_>>());
    }
}
