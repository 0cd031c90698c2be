//! How many instances a target should have: pure functions of what is seen, one small type each.
//!
//! Every configured policy is asked, and the largest answer wins. A policy that cannot tell yet, because the rate of
//! an instance is not learned, has no opinion, and says so.

mod analysers;
mod example;
mod lag;
mod latency_slo;
mod rate;
mod utilisation;

pub use analysers::{Analyser, Analysers, Directive, QueueMetric, Thresholds, Verdict, chain};
pub use example::Example;
pub use lag::Lag;
pub use latency_slo::LatencySlo;
pub use rate::Rate;
pub use utilisation::Utilisation;

use serde::{Deserialize, Serialize};

use crate::sample::Fleet;

/// What a policy sees of a target.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct View {
    /// Now, in milliseconds since the origin of the samples.
    pub now_ms: u64,
    /// The instances.
    pub fleet: Fleet,
    /// Messages a second that come: over the window, what lies ahead included where growth was seen.
    pub arrival_rate: f64,
    /// Messages a second that are finished.
    pub completion_rate: f64,
    /// Messages that no instance has; 0 where nobody counts them.
    pub waiting: u64,
    /// Messages that instances hold.
    pub in_hand: u64,
    /// Messages a second of one busy instance, once learned.
    pub service_rate: Option<f64>,
    /// The share of their capacity that instances used, 0 to 1, where the time spent is counted.
    pub utilisation: Option<f64>,
    /// The share of time, 0 to 1, in which a message found an instance free, where that is counted.
    pub free_share: Option<f64>,
    /// Messages that one instance fetches ahead.
    pub prefetch: u32,
    /// Messages that ever came, since the first look.
    pub count: u64,
    /// When the first look was taken.
    pub since_ms: u64,
    /// When the last message came, if one ever did.
    pub last_arrival_ms: Option<u64>,
}

impl View {
    /// How long no message has come, in milliseconds.
    pub fn idle_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.last_arrival_ms.unwrap_or(self.since_ms))
    }

    /// Messages that have come and are not finished.
    pub fn backlog(&self) -> u64 {
        self.waiting.saturating_add(self.in_hand)
    }
}

/// What a policy answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The instances that it wants; `None` when it cannot tell.
    pub instances: Option<u32>,
    /// Why, with the figures that it used.
    pub because: String,
}

impl Answer {
    /// So many, for this reason.
    pub fn want(instances: u32, because: impl Into<String>) -> Answer {
        Answer { instances: Some(instances), because: because.into() }
    }

    /// No opinion, for this reason.
    pub fn none(because: impl Into<String>) -> Answer {
        Answer { instances: None, because: because.into() }
    }

    fn unlearned() -> Answer {
        Answer::none("the rate of an instance is not learned yet")
    }
}

/// A rule that says how many instances a target should have.
///
/// It sees everything in the [`View`] and may keep what it needs from one call to the next; it is called once for each
/// poll, with looks that can be believed, and never on missing data.
pub trait Policy: Send {
    /// The name that configuration and explanations use.
    fn name(&self) -> &'static str;

    /// How many instances there should be now.
    fn desire(&mut self, view: &View) -> Answer;
}

/// The least number of instances that carries `load`, each `capacity`; never more than fit an answer.
pub(crate) fn instances_for(load: f64, capacity: f64) -> u32 {
    if load <= 0.0 {
        return 0;
    }
    // A hair less, so that 3.0000000001 instances are three.
    let exact = (load / capacity - 1e-9).ceil();
    if exact.is_finite() { exact.clamp(0.0, f64::from(u32::MAX)) as u32 } else { u32::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_needs_whole_instances() {
        for (load, capacity, instances) in
            [(0.0, 1.0, 0), (-1.0, 1.0, 0), (3.0, 1.0, 3), (3.1, 1.0, 4), (0.3, 0.1, 3), (1.0, 0.0, u32::MAX)]
        {
            assert_eq!(instances_for(load, capacity), instances, "{load} by {capacity}");
        }
    }
}
