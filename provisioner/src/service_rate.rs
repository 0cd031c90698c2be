//! How many messages a second one instance can handle, learned from what instances did while they
//! were busy.

use crate::sample::Sample;

/// How fast new evidence replaces old, in seconds.
const MEMORY_S: f64 = 10.0;

/// Less evidence than this says nothing: one slow message would be a rate.
const MESSAGES: u64 = 5;

/// A rate that was done can be done. Beyond this factor it corrects what was believed; below, it is
/// chance.
const SURPASSED: f64 = 1.1;

/// The learned rate of one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServiceRate {
    per_second: Option<f64>,
}

impl ServiceRate {
    /// A rate to begin with, if one is known.
    pub fn starting_at(per_second: Option<f64>) -> Self {
        Self { per_second: per_second.filter(|rate| rate.is_finite() && *rate > 0.0) }
    }

    /// Messages a second of one busy instance, once known.
    pub fn per_second(self) -> Option<f64> {
        self.per_second
    }

    /// Learns from two polls between which `ready` instances took messages, each up to
    /// `concurrency` at a time.
    ///
    /// Where the time spent is counted, messages for each busy second are the rate. Elsewhere
    /// instances were busy all the time if a message waited for each of them at both looks, and
    /// what they finished is their rate; and whatever they finished at other times they can do at
    /// the least.
    pub fn learn(&mut self, before: &Sample, after: &Sample, ready: u32, concurrency: f64) {
        let elapsed_s = after.at_ms.saturating_sub(before.at_ms) as f64 / 1_000.0;
        let completed = after.completed.saturating_sub(before.completed);
        if ready == 0 || elapsed_s <= 0.0 {
            return;
        }
        let spent =
            before.busy_ms.zip(after.busy_ms).map(|(before, after)| after.saturating_sub(before));
        if let Some(spent_ms) = spent {
            if spent_ms > 0 && completed >= MESSAGES {
                self.believe(completed as f64 * 1_000.0 / spent_ms as f64 * concurrency, elapsed_s);
            }
            return;
        }
        let done = completed as f64 / (elapsed_s * f64::from(ready));
        let waited =
            |sample: &Sample| sample.waiting.is_some_and(|waiting| waiting >= u64::from(ready));
        let nobody_free = after.waiting_pulls.is_none_or(|pulls| pulls == 0);
        let surpassed = self.per_second.is_some_and(|believed| done > believed * SURPASSED);
        let were_busy = waited(before) && waited(after) && nobody_free;
        if completed >= MESSAGES && (were_busy || surpassed) {
            self.believe(done, elapsed_s);
        }
    }

    fn believe(&mut self, rate: f64, elapsed_s: f64) {
        let weight = 1.0 - (-elapsed_s / MEMORY_S).exp();
        let believed = self.per_second.map_or(rate, |old| old + weight * (rate - old));
        self.per_second = Some(believed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(at_ms: u64, completed: u64, waiting: u64) -> Sample {
        Sample { at_ms, completed, waiting: Some(waiting), ..Sample::default() }
    }

    #[test]
    fn busy_instances_show_their_rate() {
        let mut rate = ServiceRate::default();
        rate.learn(&poll(0, 0, 50), &poll(1_000, 300, 50), 3, 1.0);
        assert_eq!(rate.per_second(), Some(100.0));
    }

    #[test]
    fn idle_instances_show_only_what_they_can_do_at_least() {
        let mut rate = ServiceRate::default();
        rate.learn(&poll(0, 0, 0), &poll(1_000, 30, 0), 3, 1.0);
        assert_eq!(rate.per_second(), None);
        let mut rate = ServiceRate::starting_at(Some(100.0));
        rate.learn(&poll(0, 0, 0), &poll(1_000, 30, 0), 3, 1.0);
        assert_eq!(rate.per_second(), Some(100.0));
        rate.learn(&poll(0, 0, 0), &poll(1_000, 600, 0), 3, 1.0);
        assert!(rate.per_second() > Some(105.0), "{rate:?}");
    }

    #[test]
    fn time_spent_is_better_evidence() {
        let busy = |at_ms, completed, busy_ms| Sample {
            busy_ms: Some(busy_ms),
            ..poll(at_ms, completed, 0)
        };
        let mut rate = ServiceRate::default();
        rate.learn(&busy(0, 0, 0), &busy(1_000, 40, 2_000), 5, 8.0);
        assert_eq!(rate.per_second(), Some(160.0), "20 a busy second, 8 at a time");
    }

    #[test]
    fn a_change_is_learned_within_a_minute() {
        let mut rate = ServiceRate::starting_at(Some(1_000.0));
        for second in 0..60 {
            rate.learn(
                &poll(second * 1_000, second * 50, 9),
                &poll((second + 1) * 1_000, (second + 1) * 50, 9),
                1,
                1.0,
            );
        }
        assert!((50.0..55.0).contains(&rate.per_second().unwrap()), "{rate:?}");
    }

    #[test]
    fn nothing_is_learned_from_nothing() {
        let mut rate = ServiceRate::starting_at(Some(f64::NAN));
        rate.learn(&poll(0, 0, 5), &poll(0, 100, 5), 1, 1.0);
        rate.learn(&poll(0, 0, 5), &poll(1_000, 2, 5), 1, 1.0);
        rate.learn(&poll(0, 0, 5), &poll(1_000, 100, 5), 0, 1.0);
        assert_eq!(rate.per_second(), None);
    }
}
