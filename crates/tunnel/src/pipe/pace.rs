//! How fast the pipes of one thread may be, all together. Pure but for its lock.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much may go at once after a rest. Less than it takes to notice, more than a timer misses.
const BURST: Duration = Duration::from_millis(10);

/// A rate that is shared: who wants to send asks when it may. The generic cell rate algorithm
/// (ITU-T I.371): each gets its time in the order in which they asked.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: NonZeroU64,
    /// When all that was asked for has gone.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// Returns one at which nothing has gone yet.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// Returns when so many bytes may go; they count from now on.
    pub fn reserve(&self, bytes: u64, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = now.checked_sub(BURST).unwrap_or(now);
        let start = free_at.map_or(rested, |free_at| free_at.max(rested));
        let takes = bytes.saturating_mul(1_000_000_000) / self.bytes_per_second;
        *free_at = Some(start + Duration::from_nanos(takes));
        start.max(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_goes_than_the_rate_and_a_burst(
            asks in proptest::collection::vec((1..100_000_u64, 0..50_u64), 1..100),
        ) {
            let rate = 1_000_000;
            let pace = Pace::new(NonZeroU64::new(rate).expect("some"));
            let begun = Instant::now();
            let (mut now, mut gone, mut last) = (begun, 0, begun);
            for (bytes, pause) in asks {
                now += Duration::from_millis(pause);
                let at = pace.reserve(bytes, now);
                prop_assert!(at >= now && at >= last, "in the order in which they asked");
                let most = (at - begun + BURST).as_secs_f64() * rate as f64;
                prop_assert!(gone as f64 <= most + 1.0, "{gone} bytes before {at:?}");
                gone += bytes;
                last = at;
            }
        }
    }

    #[test]
    fn who_asks_for_little_does_not_wait() {
        let pace = Pace::new(NonZeroU64::new(32 << 20).expect("some"));
        let now = Instant::now();
        assert_eq!(pace.reserve(16 << 10, now), now);
        let later = now + Duration::from_millis(1);
        assert_eq!(pace.reserve(16 << 10, later), later);
    }
}
