//! How a long catch-up goes, for the log.

use std::time::{Duration, Instant};

use tracing::info;

use super::status::Metrics;
use crate::units::ByteSize;

/// How often a long catch-up says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// From how many bytes on it is long.
const LONG_BYTES: u64 = 64 << 20;

/// Says how a long catch-up goes.
pub(super) struct Progress {
    reported_at: Instant,
    bytes: u64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { reported_at: Instant::now(), bytes: 0 }
    }

    pub(super) fn report(&mut self, metrics: &Metrics) {
        let (elapsed, left) = (self.reported_at.elapsed(), metrics.unread_bytes());
        if elapsed < REPORT_INTERVAL {
            return;
        }
        let done = metrics.bytes.get();
        let rate = (done - self.bytes) as f64 / elapsed.as_secs_f64();
        (self.reported_at, self.bytes) = (Instant::now(), done);
        if left >= LONG_BYTES {
            let percent = done * 100 / (done + left);
            info!(
                "catching up: {percent} % done, {} left, {}/s",
                ByteSize(left),
                ByteSize(rate as u64)
            );
        }
    }
}
