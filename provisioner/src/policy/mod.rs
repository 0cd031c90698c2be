//! How many instances a target should have: pure functions of what is seen, one small type each.
//!
//! Every configured policy is asked, and the largest answer wins. A policy that cannot tell yet,
//! because the rate of an instance is not learned, has no opinion, and says so.

mod analysers;
mod example;
mod lag;
mod latency_slo;
mod rate;
mod utilisation;

pub use analysers::{Analyser, Analysers, Analysis, Directive, QueueMetric, Thresholds, chain};
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
    /// Messages a second that come: over the window, what lies ahead included where growth was
    /// seen.
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
    /// Messages that the instances take at a time, all together, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// Pull requests that wait for messages, where they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_pulls: Option<u64>,
    /// Messages a second that were turned away for want of capacity, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal_rate: Option<f64>,
    /// Messages that were ever finished, since the first poll.
    #[serde(default)]
    pub finished: u64,
    /// Messages that were ever turned away for want of capacity, since the first poll.
    #[serde(default)]
    pub refused: u64,
    /// Messages that one instance fetches ahead.
    pub prefetch: u32,
    /// How long an instance takes to start, in seconds.
    #[serde(default)]
    pub start_s: f64,
    /// The seconds that those that start have behind them, all together.
    #[serde(default)]
    pub started_s: f64,
    /// Messages that ever came, since the first poll.
    pub count: u64,
    /// When the first poll was taken.
    pub since_ms: u64,
    /// When the last message came, if one ever did.
    pub last_arrival_ms: Option<u64>,
}

impl View {
    /// How long no message has come, in milliseconds.
    pub fn idle_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.last_arrival_ms.unwrap_or(self.since_ms))
    }

    /// Whether a message that comes now finds no instance free, where that can be told: one waits
    /// already and nobody asks for it, or as many are held as can be.
    pub fn is_full(&self) -> bool {
        let is_full =
            self.capacity.is_some_and(|capacity| self.in_hand >= capacity && capacity > 0);
        (self.waiting > 0 || is_full) && self.waiting_pulls.is_none_or(|pulls| pulls == 0)
    }

    /// Messages that have come and are not finished.
    pub fn backlog(&self) -> u64 {
        self.waiting.saturating_add(self.in_hand)
    }

    /// Instances that are there or on their way.
    pub fn present(&self) -> f64 {
        f64::from(self.fleet.ready) + f64::from(self.fleet.starting)
    }

    /// Instances with which a backlog of `messages` is gone `within_s` after another instance could
    /// have started, when each does `service_rate`; `None` when those that are present do it. Those
    /// that start already are credited with the time that they will have had by then: a backlog
    /// that grows while they start asks for no others.
    pub fn clearing(&self, messages: u64, service_rate: f64, within_s: f64) -> Option<f64> {
        let (ready, starting) = (f64::from(self.fleet.ready), f64::from(self.fleet.starting));
        let horizon_s = self.start_s + within_s;
        let to_do = messages as f64 + self.arrival_rate * horizon_s;
        let started_s = self.started_s.min(starting * self.start_s);
        let done = (ready * horizon_s + starting * within_s + started_s) * service_rate;
        (to_do > done).then(|| self.present() + (to_do - done) / (service_rate * within_s))
    }
}

/// What a policy answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The instances that it wants.
    pub want: Want,
    /// Why, with the metrics that it used.
    pub because: String,
}

/// The instances that a policy wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// It cannot tell.
    Unknown,
    /// Exactly so many.
    Exactly(u32),
    /// So many instances' worth of load: the present number stays if it is near enough, and
    /// otherwise it is rounded up.
    Load(f64),
}

impl Answer {
    /// Exactly so many, for this reason.
    pub fn exactly(instances: u32, because: impl Into<String>) -> Self {
        Self { want: Want::Exactly(instances), because: because.into() }
    }

    /// So many instances' worth of load, for this reason.
    pub fn load(instances: f64, because: impl Into<String>) -> Self {
        Self { want: Want::Load(instances), because: because.into() }
    }

    /// No opinion, for this reason.
    pub fn none(because: impl Into<String>) -> Self {
        Self { want: Want::Unknown, because: because.into() }
    }

    /// The whole number of instances, when there are `current`: a load within `tolerance` of what
    /// they are for (0.1 is 10 %) is no reason to change, and fewer must carry it with as much to
    /// spare. So a load that hovers about what a whole number carries does not make it bounce.
    pub fn instances(&self, current: u32, tolerance: f64) -> Option<u32> {
        match self.want {
            Want::Unknown => None,
            Want::Exactly(instances) => Some(instances),
            Want::Load(load) => {
                let present = f64::from(current);
                let near = current > 0 && (load - present).abs() <= present * tolerance;
                let enough = whole(load);
                let to_spare = whole(load / (1.0 - tolerance).max(f64::EPSILON));
                Some(if near || enough < current && to_spare > current {
                    current
                } else {
                    enough.max(to_spare.min(current))
                })
            }
        }
    }

    /// Without a rate nothing can be said, but that nothing needs nobody.
    fn unlearned(view: &View) -> Self {
        if view.arrival_rate == 0.0 && view.backlog() == 0 {
            return Self::load(0.0, "nothing comes and nothing waits");
        }
        Self::none("the rate of an instance is not learned yet")
    }
}

/// A rule that says how many instances a target should have.
///
/// It sees everything in the [`View`] and may keep what it needs from one call to the next; it is
/// called once for each poll, with looks that can be believed, and never on missing data.
pub trait Policy: Send {
    /// The name that configuration and explanations use.
    fn name(&self) -> &'static str;

    /// How many instances there should be now.
    fn desire(&mut self, view: &View) -> Answer;
}

/// The whole number of instances that carries a load of so many.
fn whole(load: f64) -> u32 {
    // A hair less, so that 3.0000000001 instances are three. The cast keeps within what an answer
    // can hold.
    (load - 1e-9).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole number that a policy wants, without tolerance.
    pub(super) fn wanted(policy: &mut dyn Policy, view: &View) -> Option<u32> {
        policy.desire(view).instances(view.fleet.present(), 0.0)
    }

    #[test]
    fn a_load_needs_whole_instances() {
        for (load, instances) in [
            (0.0, 0),
            (-1.0, 0),
            (3.0, 3),
            (3.1, 4),
            (0.3 / 0.1, 3),
            (f64::INFINITY, u32::MAX),
            (f64::NAN, 0),
        ] {
            assert_eq!(whole(load), instances, "{load}");
        }
    }

    #[test]
    fn a_load_near_what_is_there_is_no_reason_to_change() {
        for (load, instances) in
            [(18.0, 20), (22.0, 20), (17.9, 20), (17.0, 19), (22.1, 23), (0.0, 0)]
        {
            assert_eq!(Answer::load(load, "").instances(20, 0.1), Some(instances), "{load}");
        }
        assert_eq!(Answer::load(0.05, "").instances(0, 0.1), Some(1));
        assert_eq!(Answer::exactly(21, "").instances(20, 0.1), Some(21));
    }
}
