//! Unix time that never steps while a process runs, and goes on while its machine is suspended.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the clock that counts suspension is known to be ahead of the one that does not, in
/// nanoseconds: a figure of the machine, the same for all clocks.
static AHEAD_NS: AtomicI64 = AtomicI64::new(i64::MIN);

/// Unix time in milliseconds: read once from the system, then advanced by the machine's own clocks.
///
/// Two readings of one clock differ by the time that passed between them, whatever NTP does to the
/// system's clock meanwhile; two clocks differ by a constant (and drift, some 50 ppm). Time in
/// which the machine was suspended has passed too: an [`Instant`] does not see it on Linux, and
/// what waited through it would look fresh.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_unix_ms: u64,
    start_ahead_ns: i64,
}

impl Clock {
    /// A clock that starts from the system's time now.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Self { start: Instant::now(), start_unix_ms, start_ahead_ns: ahead_ns() }
    }

    /// The time at `instant`, in milliseconds since the Unix epoch, if the machine was not
    /// suspended since then.
    pub fn unix_ms_at(&self, instant: Instant) -> u64 {
        self.at(instant, ahead_ns())
    }

    fn at(&self, instant: Instant, ahead_ns: i64) -> u64 {
        let awake = instant.saturating_duration_since(self.start);
        let suspended_ns = ahead_ns.saturating_sub(self.start_ahead_ns);
        let suspended = Duration::from_nanos(u64::try_from(suspended_ns).unwrap_or(0));
        let elapsed = awake.saturating_add(suspended).as_millis();
        self.start_unix_ms.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

/// The most that is known of how far the one clock is ahead of the other.
fn ahead_ns() -> i64 {
    let (seen, known) = (difference_ns(), AHEAD_NS.load(Relaxed));
    if seen <= known {
        // As a rule, so that threads do not write to what they share.
        return known;
    }
    AHEAD_NS.fetch_max(seen, Relaxed).max(seen)
}

/// The difference of the two clocks, or less: the one that counts suspension is read first, so that
/// a thread that has to wait between the two does not take its wait for a suspension. What it
/// misses so, the next reading finds.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn difference_ns() -> i64 {
    use nix::time::{ClockId, clock_gettime};
    let read_ns = |clock: ClockId| {
        let time = clock_gettime(clock).ok()?;
        time.tv_sec().checked_mul(1_000_000_000)?.checked_add(time.tv_nsec())
    };
    match (read_ns(ClockId::CLOCK_BOOTTIME), read_ns(ClockId::CLOCK_MONOTONIC)) {
        (Some(with_suspension), Some(without)) => with_suspension.saturating_sub(without),
        _ => 0,
    }
}

/// Where an [`Instant`] counts suspension itself, or nothing does.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn difference_ns() -> i64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const AHEAD: i64 = 7_000_000_000;

    fn clock() -> Clock {
        Clock { start: Instant::now(), start_unix_ms: 1_000_000, start_ahead_ns: AHEAD }
    }

    #[test]
    fn readings_differ_by_the_time_between_them() {
        let clock = clock();
        let later = clock.start + Duration::from_millis(1_234);
        assert_eq!(clock.at(later, AHEAD) - clock.at(clock.start, AHEAD), 1_234);
        let now = Clock::start();
        assert!(now.unix_ms_at(now.start) > 1_700_000_000_000, "a Unix time of this century");
    }

    #[test]
    fn time_passes_while_the_machine_is_suspended() {
        let clock = clock();
        let before = clock.at(clock.start, AHEAD);
        // An hour in which an instant does not move by more than a second.
        let woken = clock.start + Duration::from_secs(1);
        assert_eq!(clock.at(woken, AHEAD + 3_600_000_000_000) - before, 3_601_000);
    }

    #[test]
    fn a_reading_that_was_held_up_takes_no_time_back() {
        let clock = clock();
        assert_eq!(clock.at(clock.start, AHEAD - 50_000_000), clock.at(clock.start, AHEAD));
    }

    #[test]
    fn the_two_clocks_of_the_system_keep_their_distance() {
        let first = ahead_ns();
        std::thread::sleep(Duration::from_millis(5));
        let second = ahead_ns();
        assert!(second >= first, "it is never less");
        // A test machine is not suspended meanwhile; how far apart two readings can be says how
        // finely it is told.
        assert!(second - first < 50_000_000, "{}", second - first);
    }
}
