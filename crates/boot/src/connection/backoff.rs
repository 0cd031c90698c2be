//! The pause before another attempt to connect.

use std::time::Duration;

/// How long to wait before the `attempt`th try, counted from 1: none at first, then 10 ms doubled
/// up to 2 s, half of it jitter, so that clients do not come back all at once.
pub(crate) fn backoff(attempt: usize) -> Duration {
    const LONGEST_MS: u64 = 2_000;
    let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
    let full = 10_u64.saturating_mul(1 << doublings.min(20)).min(LONGEST_MS);
    Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_starts_at_once_grows_and_stays_bounded() {
        assert_eq!(backoff(1), Duration::ZERO);
        for attempt in 2..100 {
            assert!(backoff(attempt) <= Duration::from_secs(2));
        }
        assert!(backoff(50) >= Duration::from_secs(1));
    }
}
