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
    last_ready: u32,
    learned_s: Option<f64>,
}

impl StartupEstimator {
    /// Takes a poll at how many there are. Instances become ready in the order in which they were
    /// started.
    pub fn observe(&mut self, now_ms: u64, fleet: Fleet) {
        let starting = fleet.starting as usize;
        let became_ready = fleet.ready.saturating_sub(self.last_ready);
        self.last_ready = fleet.ready;
        for _ in 0..became_ready {
            let Some(since_ms) = self.since.pop_front() else { break };
            let took_s = now_ms.saturating_sub(since_ms) as f64 / 1_000.0;
            self.learned_s =
                Some(self.learned_s.map_or(took_s, |old| old + WEIGHT * (took_s - old)));
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
