//! How long instances take to start, learned from those that were seen to.

use std::collections::VecDeque;

use crate::sample::Fleet;

/// How much one start that was seen counts beside those before it.
const WEIGHT: f64 = 0.3;

/// Those that start, and how long others took.
#[derive(Clone, Debug, Default)]
pub struct StartupEstimator {
    /// When each of those that start was first seen, oldest first, in milliseconds.
    since: VecDeque<u64>,
    last: Fleet,
    learned_s: Option<f64>,
}

impl StartupEstimator {
    /// Takes a poll at how many there are. Instances become ready in the order in which they were
    /// started.
    ///
    /// Numbers do not tell who it was: where some fell silent or woke, one more that is ready may
    /// be one that was ready long ago. Such a poll teaches nothing.
    pub fn observe(&mut self, now_ms: u64, fleet: Fleet) {
        let starting = fleet.starting as usize;
        let last = std::mem::replace(&mut self.last, fleet);
        if fleet.silent == last.silent {
            for _ in 0..fleet.ready.saturating_sub(last.ready) {
                let Some(since_ms) = self.since.pop_front() else { break };
                let took_s = now_ms.saturating_sub(since_ms) as f64 / 1_000.0;
                self.learned_s =
                    Some(self.learned_s.map_or(took_s, |old| old + WEIGHT * (took_s - old)));
            }
        } else {
            // Whoever does not start any more has become ready or silent.
            self.since.drain(..self.since.len().saturating_sub(starting));
        }
        // The newest are those that are told to stop.
        self.since.truncate(starting);
        self.since.resize(starting, now_ms);
    }

    /// How long an instance takes to start, in seconds; `configured` until one was seen to.
    pub fn start_s(&self, configured: f64) -> f64 {
        self.learned_s.unwrap_or(configured)
    }

    /// The seconds that those that start have behind them, all together.
    pub fn started_s(&self, now_ms: u64) -> f64 {
        self.since.iter().map(|since_ms| now_ms.saturating_sub(*since_ms) as f64 / 1_000.0).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(ready: u32, starting: u32, silent: u32) -> Fleet {
        Fleet { ready, starting, silent, ..Fleet::default() }
    }

    #[test]
    fn one_that_wakes_does_not_teach_how_long_a_start_takes() {
        let mut starts = StartupEstimator::default();
        starts.observe(0, fleet(2, 0, 0));
        starts.observe(1_000, fleet(1, 1, 1));
        // The silent one wakes while the other one still starts.
        starts.observe(3_000, fleet(2, 1, 0));
        assert_eq!((starts.start_s(7.0), starts.started_s(3_000)), (7.0, 2.0));
        starts.observe(9_000, fleet(3, 0, 0));
        assert_eq!(starts.start_s(7.0), 8.0);
    }

    #[test]
    fn one_that_falls_silent_hides_no_start() {
        let mut starts = StartupEstimator::default();
        starts.observe(0, fleet(2, 1, 0));
        starts.observe(1_000, fleet(2, 2, 0));
        // One is ready, and another one is silent.
        starts.observe(5_000, fleet(2, 1, 1));
        assert_eq!(
            (starts.start_s(7.0), starts.started_s(5_000)),
            (7.0, 4.0),
            "the second one still starts"
        );
        starts.observe(6_000, fleet(3, 0, 1));
        assert_eq!(starts.start_s(7.0), 5.0);
    }
}
