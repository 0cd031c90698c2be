//! How far two clocks are apart, and so how old a request is.

/// How long a bound counts: two windows of this length, so that drift does not add up.
const WINDOW_MS: i64 = 60_000;

/// Both clocks are read in whole milliseconds.
const ROUNDING_MS: i64 = 1;

/// The least that this end's clock can be ahead of the peer's.
///
/// The peer's clock was read between the moment when this end asked and the one when it heard. So
/// the age of a request is known to be at most what it is by the earlier of the two, and that is
/// too much by a round trip at the worst. Compare NTP (RFC 5905, section 8).
#[derive(Clone, Debug, Default)]
pub struct ClockBounds {
    bounds: Option<Bounds>,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    least: i64,
    least_before: i64,
    window_began_ms: i64,
}

impl ClockBounds {
    /// Takes note of an exchange: this end asked at `asked_ms`, the peer's clock showed `peer_ms`,
    /// and its answer was heard at `now_ms`.
    pub fn exchanged(&mut self, asked_ms: u64, peer_ms: u64, now_ms: u64) {
        let (asked, peer, now) = (signed(asked_ms), signed(peer_ms), signed(now_ms));
        // What cannot have been is no exchange.
        if asked > now {
            return;
        }
        let least = asked.saturating_sub(peer) - ROUNDING_MS;
        let most = now.saturating_sub(peer) + ROUNDING_MS;
        let anew = Bounds { least, least_before: least, window_began_ms: now };
        self.bounds = Some(match self.bounds {
            // A clock was moved.
            Some(bounds) if most < bounds.least() => anew,
            Some(bounds) if now.saturating_sub(bounds.window_began_ms) >= WINDOW_MS => {
                Bounds { least, least_before: bounds.least, window_began_ms: now }
            }
            Some(bounds) => Bounds { least: bounds.least.max(least), ..bounds },
            None => anew,
        });
    }

    /// Returns the most that a message can be old that was sent at `sent_ms` of the peer's clock
    /// and heard at `now_ms`. `None` when that is not known: there was no exchange, or a clock was
    /// moved since.
    pub fn age_ms(&self, sent_ms: u64, now_ms: u64) -> Option<u64> {
        let difference = signed(now_ms).saturating_sub(signed(sent_ms));
        let age = difference.saturating_sub(self.bounds?.least());
        u64::try_from(age).ok()
    }
}

impl Bounds {
    fn least(&self) -> i64 {
        self.least.max(self.least_before)
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
