//! The bytes of requests that a core holds while it reads their bodies and until they are answered: bounded over all
//! of its connections, so that many clients with lawful requests cannot fill the memory together.

use natsway_caller::counter::Gauge;

/// What one request holds of its core's allowance. Dropping it gives that back.
///
/// Only the core's own thread takes from its gauge, so looking and then adding is no race.
#[derive(Debug)]
pub struct Held<'c> {
    all: &'c Gauge,
    most_bytes: usize,
    bytes: usize,
}

impl<'c> Held<'c> {
    /// A request that holds nothing yet; `all` is what the core's requests hold together, `most_bytes` the most that
    /// this may be.
    pub fn new(all: &'c Gauge, most_bytes: usize) -> Held<'c> {
        Held { all, most_bytes, bytes: 0 }
    }

    /// Has the request hold `bytes` in all, if there is room for as many more as that takes; otherwise nothing
    /// changes.
    #[must_use]
    pub fn reach(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let held = usize::try_from(self.all.get()).unwrap_or(0);
        if more > self.most_bytes.saturating_sub(held) {
            return false;
        }
        self.all.add(signed(more));
        self.bytes += more;
        true
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.add(-signed(self.bytes));
    }
}

/// Bytes in memory are fewer than half of what a `usize` counts.
fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_hold_is_bounded_together_and_given_back() {
        let all = Gauge::default();
        let (mut first, mut second) = (Held::new(&all, 100), Held::new(&all, 100));
        assert!(first.reach(60) && first.reach(10), "less than before is held already");
        assert!(!second.reach(41) && second.reach(40));
        assert!(!first.reach(61));
        assert_eq!(all.get(), 100);
        drop(second);
        assert!(first.reach(100) && !first.reach(101) && !first.reach(usize::MAX));
        drop(first);
        assert_eq!(all.get(), 0);
    }
}
