//! KEDA's JetStream scaler with the Horizontal Pod Autoscaler behind it, as they are documented.
//!
//! - <https://keda.sh/docs/latest/scalers/nats-jetstream/>
//! - <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>
//! - <https://github.com/kubernetes/enhancements/tree/master/keps/sig-autoscaling/853-configurable-hpa-scale-velocity>

use serde::Serialize;

use super::Autoscaler;
use crate::sample::{Fault, Fleet, Sample};
use crate::scale::{Limiter, ScaleRules, Step, Traffic};

/// Ratios this close to 1 are no change.
const TOLERANCE: f64 = 0.1;

/// What can be set, with the defaults of both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HpaRules {
    /// KEDA's `lagThreshold`: messages for each replica.
    pub lag_threshold: f64,
    /// How often the HPA decides, in milliseconds; a flag of the controller manager.
    pub sync_ms: u64,
    /// `behavior.scaleDown.stabilizationWindowSeconds`, in milliseconds.
    pub down_window_ms: u64,
    /// KEDA's `pollingInterval`, in milliseconds: how soon the first replica comes.
    pub polling_ms: u64,
    /// KEDA's `cooldownPeriod`, in milliseconds: when the last replica goes.
    pub cooldown_ms: u64,
}

impl Default for HpaRules {
    fn default() -> Self {
        Self {
            lag_threshold: 10.0,
            sync_ms: 15_000,
            down_window_ms: 300_000,
            polling_ms: 30_000,
            cooldown_ms: 300_000,
        }
    }
}

/// The grid from which KEDA is tuned for each trace: thresholds of 0.1 to 2 s of one instance's
/// work, scale-in windows from the default to none, and decisions as often as ours, which takes a
/// flag of the controller manager.
pub const GRID: ([f64; 5], [u64; 3], [u64; 4]) =
    ([10.0, 25.0, 50.0, 100.0, 200.0], [15_000, 5_000, 1_000], [300_000, 60_000, 15_000, 0]);

/// The two of them together.
#[derive(Clone, Debug)]
pub struct Hpa {
    rules: HpaRules,
    min: u32,
    limiter: Limiter,
    last_work_ms: u64,
}

impl HpaRules {
    /// Every setting of [`GRID`].
    pub fn grid() -> Vec<Self> {
        let (thresholds, syncs, windows) = GRID;
        let mut grid = Vec::new();
        for lag_threshold in thresholds {
            for sync_ms in syncs {
                for down_window_ms in windows {
                    let polling_ms = sync_ms;
                    let cooldown_ms = down_window_ms;
                    grid.push(Self {
                        lag_threshold,
                        sync_ms,
                        down_window_ms,
                        polling_ms,
                        cooldown_ms,
                    });
                }
            }
        }
        grid
    }
}

impl Hpa {
    /// An autoscaler that keeps between `min` and `max` replicas.
    pub fn new(rules: HpaRules, min: u32, max: u32) -> Self {
        let step = |instances, percent| Some(Step { instances, percent, period_ms: 15_000 });
        let scale = ScaleRules {
            down_window_ms: rules.down_window_ms,
            up_step: step(4, 100),
            down_step: step(0, 100),
            ..ScaleRules::between(min.max(1), max)
        };
        Self { rules, min, limiter: Limiter::new(scale), last_work_ms: 0 }
    }

    /// Replicas for an average of a metric: `ceil(total / threshold)`, or the current number within
    /// the tolerance.
    pub fn replicas(current: u32, total: f64, threshold: f64) -> u32 {
        if current > 0 && (total / (threshold * f64::from(current)) - 1.0).abs() <= TOLERANCE {
            return current;
        }
        (total / threshold).ceil() as u32
    }
}

impl Autoscaler for Hpa {
    fn period_ms(&self) -> u64 {
        // Both intervals are multiples of the shorter one.
        self.rules.sync_ms.min(self.rules.polling_ms)
    }

    fn decide(&mut self, now_ms: u64, fleet: Fleet, poll: &Result<Sample, Fault>) -> u32 {
        let current = fleet.present();
        // Without the metric the HPA leaves things as they are.
        let Ok(sample) = poll else { return current };
        let lag = sample.backlog();
        if lag > 0 {
            self.last_work_ms = now_ms;
        }
        if current == 0 {
            let polls = now_ms.is_multiple_of(self.rules.polling_ms);
            return u32::from(polls && lag > 0);
        }
        if self.min == 0 && lag == 0 && now_ms - self.last_work_ms >= self.rules.cooldown_ms.max(1)
        {
            return 0;
        }
        if !now_ms.is_multiple_of(self.rules.sync_ms) {
            return current;
        }
        let wanted = Self::replicas(current, lag as f64, self.rules.lag_threshold);
        self.limiter.limit(now_ms, current, wanted, Traffic { idle_ms: 0, backlog: lag }).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "if the current metric value is 200m, and the desired value is 100m, the number of replicas
    /// will be doubled, since 200.0 / 100.0 == 2.0; if the current value is instead 50m, you'll
    /// halve the number of replicas".
    #[test]
    fn the_ratio_of_the_documentation() {
        assert_eq!(Hpa::replicas(4, 4.0 * 0.2, 0.1), 8);
        assert_eq!(Hpa::replicas(4, 4.0 * 0.05, 0.1), 2);
        assert_eq!(Hpa::replicas(10, 10.9, 1.0), 10, "within the tolerance of 0.1");
        assert_eq!(Hpa::replicas(10, 11.2, 1.0), 12);
    }

    fn lag(at_ms: u64, messages: u64) -> Result<Sample, Fault> {
        Ok(Sample { at_ms, waiting: Some(messages), ..Sample::default() })
    }

    /// The defaults: the larger of 4 pods and 100 % every 15 s on the way out, the largest of 300 s
    /// on the way in.
    #[test]
    fn the_default_behaviour() {
        let mut hpa = Hpa::new(HpaRules::default(), 1, 100);
        let mut current = 1;
        let mut trajectory = Vec::new();
        for sync in 0..30 {
            let now_ms = sync * 15_000;
            let messages = if sync < 5 { 1_000 } else { 10 };
            current = hpa.decide(
                now_ms,
                Fleet { ready: current, ..Fleet::default() },
                &lag(now_ms, messages),
            );
            trajectory.push(current);
        }
        assert_eq!(trajectory[..6], [5, 10, 20, 40, 80, 80]);
        assert_eq!(trajectory[24], 80, "300 s after the last of the large recommendations");
        assert_eq!(trajectory[25], 1);
    }

    #[test]
    fn zero_is_left_at_a_poll_and_reached_after_the_cooldown() {
        let mut hpa = Hpa::new(HpaRules::default(), 0, 100);
        let none = Fleet::default();
        assert_eq!(hpa.decide(15_000, none, &lag(15_000, 500)), 0);
        assert_eq!(hpa.decide(30_000, none, &lag(30_000, 500)), 1);
        let one = Fleet { ready: 1, ..none };
        assert_eq!(hpa.decide(315_000, one, &lag(315_000, 0)), 1);
        assert_eq!(hpa.decide(330_000, one, &lag(330_000, 0)), 0);
    }
}
