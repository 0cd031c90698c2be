//! Unix time that never steps while a process runs.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds: read once from the system, then advanced by the monotonic clock.
///
/// Two readings of one clock differ by the time that passed between them, whatever NTP does to the system's clock
/// meanwhile; two clocks differ by a constant (and drift, some 50 ppm).
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_unix_ms: u64,
}

impl Clock {
    /// A clock that starts from the system's time now.
    pub fn start() -> Clock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Clock { start: Instant::now(), start_unix_ms }
    }

    /// The time at `instant`, in milliseconds since the Unix epoch.
    pub fn unix_ms_at(&self, instant: Instant) -> u64 {
        let elapsed = instant.saturating_duration_since(self.start);
        self.start_unix_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn readings_differ_by_the_time_between_them() {
        let clock = Clock::start();
        let later = clock.start + Duration::from_millis(1_234);
        assert_eq!(clock.unix_ms_at(later) - clock.unix_ms_at(clock.start), 1_234);
        assert!(clock.unix_ms_at(clock.start) > 1_700_000_000_000, "a Unix time of this century");
    }
}
