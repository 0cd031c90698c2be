//! The analysers of QueueWatch, a chain of which the first that fires decides.
//!
//! | analyser | fires when | directive |
//! |---|---|---|
//! | `ConsumerUtilisationTooLow` | messages find an instance free less often than the threshold | out |
//! | `ConsumptionRateIncreased` | the rate of arrivals (so it is, whatever its name) rose by the difference | out |
//! | `DispatchRateDecreased` | the rate of deliveries fell by the difference while messages wait | out |
//! | `QueueLengthIncreased` | the queue is longer than the threshold and grew by the difference | out |
//! | `ConsumptionRateDecreased` | arrivals fell by the difference, or there are none, and the queue is short | in |
//! | `Stable` | otherwise | none |
//!
//! On NATS, *consumer utilisation* is the share of looks at which no message waited or a pull request did, so a
//! message found an instance free; the *dispatch rate* is that of completions.
//!
//! What is mended: differences are taken of the earlier figure, not the later, so that a total stall is -100 %; the
//! queue's growth is no integer division; nobody is sent away while the queue is long, and nobody called because a
//! queue that is empty is dispatched slower; rates below [`Thresholds::least_rate`] are no rates.
//!
//! <https://insidethecpu.com/2015/09/11/microservices-in-c-part-5-autoscaling/>

use serde::{Deserialize, Serialize};

use super::{Answer, Policy, View};

/// From where on the analysers fire.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Time between two comparisons, in milliseconds.
    pub every_ms: u64,
    /// Change of a rate or length that counts, in percent of the earlier figure.
    pub difference_percent: f64,
    /// Queue length that counts as long, in messages.
    pub queue_length: u64,
    /// Consumer utilisation below which instances are too few, in percent.
    pub utilisation_percent: f64,
    /// Rates below this, in messages a second, count as zero.
    pub least_rate: f64,
}

impl Default for Thresholds {
    /// Those of QueueWatch: every 5 s, 20 %, 100 messages, 99 %.
    fn default() -> Thresholds {
        Thresholds {
            every_ms: 5_000,
            difference_percent: 20.0,
            queue_length: 100,
            utilisation_percent: 99.0,
            least_rate: 0.1,
        }
    }
}

/// What a queue showed at one poll.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueMetric {
    /// Share of time in which a message found an instance free, in percent, where it is counted.
    pub utilisation_percent: Option<f64>,
    /// Arrivals a second.
    pub publish_rate: f64,
    /// Completions a second.
    pub dispatch_rate: f64,
    /// Messages that wait.
    pub length: u64,
}

/// What an analyser has done about an instance.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directive {
    /// One more.
    ScaleOut,
    /// One less.
    ScaleIn,
}

/// What the chain said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The analyser that fired.
    pub analyser: &'static str,
    /// What is to be done; `None` to stay.
    pub directive: Option<Directive>,
}

/// One link of the chain.
pub trait Analyser: Send {
    /// Its name, as in QueueWatch.
    fn name(&self) -> &'static str;
    /// What it orders when it fires.
    fn directive(&self) -> Option<Directive>;
    /// Whether it fires.
    fn fires(&self, now: &QueueMetric, before: &QueueMetric, thresholds: &Thresholds) -> bool;
}

struct ConsumerUtilisationTooLow;
struct ConsumptionRateIncreased;
struct DispatchRateDecreased;
struct QueueLengthIncreased;
struct ConsumptionRateDecreased;
struct Stable;

impl Analyser for ConsumerUtilisationTooLow {
    fn name(&self) -> &'static str {
        "ConsumerUtilisationTooLow"
    }
    fn directive(&self) -> Option<Directive> {
        Some(Directive::ScaleOut)
    }
    fn fires(&self, now: &QueueMetric, _: &QueueMetric, thresholds: &Thresholds) -> bool {
        now.utilisation_percent.is_some_and(|percent| percent < thresholds.utilisation_percent)
    }
}

impl Analyser for ConsumptionRateIncreased {
    fn name(&self) -> &'static str {
        "ConsumptionRateIncreased"
    }
    fn directive(&self) -> Option<Directive> {
        Some(Directive::ScaleOut)
    }
    fn fires(&self, now: &QueueMetric, before: &QueueMetric, thresholds: &Thresholds) -> bool {
        thresholds.change(before.publish_rate, now.publish_rate) >= thresholds.difference_percent
    }
}

impl Analyser for DispatchRateDecreased {
    fn name(&self) -> &'static str {
        "DispatchRateDecreased"
    }
    fn directive(&self) -> Option<Directive> {
        Some(Directive::ScaleOut)
    }
    fn fires(&self, now: &QueueMetric, before: &QueueMetric, thresholds: &Thresholds) -> bool {
        let change = thresholds.change(before.dispatch_rate, now.dispatch_rate);
        now.length > 0 && change <= -thresholds.difference_percent
    }
}

impl Analyser for QueueLengthIncreased {
    fn name(&self) -> &'static str {
        "QueueLengthIncreased"
    }
    fn directive(&self) -> Option<Directive> {
        Some(Directive::ScaleOut)
    }
    fn fires(&self, now: &QueueMetric, before: &QueueMetric, thresholds: &Thresholds) -> bool {
        let change = percent(before.length as f64, now.length as f64);
        now.length > thresholds.queue_length && change >= thresholds.difference_percent
    }
}

impl Analyser for ConsumptionRateDecreased {
    fn name(&self) -> &'static str {
        "ConsumptionRateDecreased"
    }
    fn directive(&self) -> Option<Directive> {
        Some(Directive::ScaleIn)
    }
    fn fires(&self, now: &QueueMetric, before: &QueueMetric, thresholds: &Thresholds) -> bool {
        let change = thresholds.change(before.publish_rate, now.publish_rate);
        let fewer = change <= -thresholds.difference_percent || now.publish_rate < thresholds.least_rate;
        now.length <= thresholds.queue_length && fewer
    }
}

impl Analyser for Stable {
    fn name(&self) -> &'static str {
        "Stable"
    }
    fn directive(&self) -> Option<Directive> {
        None
    }
    fn fires(&self, _: &QueueMetric, _: &QueueMetric, _: &Thresholds) -> bool {
        true
    }
}

impl Thresholds {
    /// The change from one rate to another, in percent; rates too low to count are 0.
    fn change(&self, before: f64, now: f64) -> f64 {
        let counted = |rate: f64| if rate < self.least_rate { 0.0 } else { rate };
        percent(counted(before), counted(now))
    }
}

/// The change in percent of `before`; something after nothing is 100 %.
fn percent(before: f64, now: f64) -> f64 {
    match before == 0.0 {
        true if now > 0.0 => 100.0,
        true => 0.0,
        false => (now - before) * 100.0 / before,
    }
}

/// The six, in QueueWatch's order.
pub fn chain() -> Vec<Box<dyn Analyser>> {
    vec![
        Box::new(ConsumerUtilisationTooLow),
        Box::new(ConsumptionRateIncreased),
        Box::new(DispatchRateDecreased),
        Box::new(QueueLengthIncreased),
        Box::new(ConsumptionRateDecreased),
        Box::new(Stable),
    ]
}

/// The chain as a policy: one instance more or less after each comparison.
pub struct Analysers {
    thresholds: Thresholds,
    chain: Vec<Box<dyn Analyser>>,
    before: Option<(u64, QueueMetric)>,
    /// What was wanted since the last comparison, and why.
    standing: Option<(u32, Verdict)>,
}

impl Analysers {
    /// The six analysers with these thresholds.
    pub fn new(thresholds: Thresholds) -> Analysers {
        Analysers { thresholds, chain: chain(), before: None, standing: None }
    }

    /// What the chain says of two polls.
    pub fn analyse(&self, now: &QueueMetric, before: &QueueMetric) -> Verdict {
        let mut chain = self.chain.iter();
        let fired = chain.find(|analyser| analyser.fires(now, before, &self.thresholds));
        let fired = fired.expect("the last of the chain always fires");
        Verdict { analyser: fired.name(), directive: fired.directive() }
    }
}

impl Policy for Analysers {
    fn name(&self) -> &'static str {
        "analysers"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let now = QueueMetric {
            utilisation_percent: view.free_share.map(|share| share * 100.0),
            publish_rate: view.arrival_rate,
            dispatch_rate: view.completion_rate,
            length: view.waiting,
        };
        let current = view.fleet.present();
        let Some((at_ms, before)) = self.before else {
            self.before = Some((view.now_ms, now));
            return Answer::none("the first poll is only kept, to compare the next one with");
        };
        if view.now_ms.saturating_sub(at_ms) >= self.thresholds.every_ms {
            let verdict = self.analyse(&now, &before);
            let wanted = match verdict.directive {
                Some(Directive::ScaleOut) => current.saturating_add(1),
                Some(Directive::ScaleIn) => current.saturating_sub(1).max(1),
                None => current,
            };
            self.before = Some((view.now_ms, now));
            self.standing = Some((wanted, verdict));
        }
        match self.standing {
            Some((wanted, verdict)) => Answer::exactly(wanted, verdict.analyser),
            None => Answer::none("between two polls"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::wanted;
    use crate::sample::Fleet;

    const CALM: QueueMetric = QueueMetric {
        utilisation_percent: Some(100.0),
        publish_rate: 100.0,
        dispatch_rate: 100.0,
        length: 0,
    };

    fn verdict(now: QueueMetric, before: QueueMetric) -> &'static str {
        Analysers::new(Thresholds::default()).analyse(&now, &before).analyser
    }

    #[test]
    fn each_analyser_fires_for_its_own_reason() {
        let cases = [
            (QueueMetric { utilisation_percent: Some(98.0), ..CALM }, CALM, "ConsumerUtilisationTooLow"),
            (QueueMetric { publish_rate: 120.0, ..CALM }, CALM, "ConsumptionRateIncreased"),
            (QueueMetric { dispatch_rate: 80.0, length: 1, ..CALM }, CALM, "DispatchRateDecreased"),
            (
                QueueMetric { length: 240, ..CALM },
                QueueMetric { length: 200, ..CALM },
                "QueueLengthIncreased",
            ),
            (QueueMetric { publish_rate: 80.0, ..CALM }, CALM, "ConsumptionRateDecreased"),
            (CALM, CALM, "Stable"),
        ];
        for (now, before, name) in cases {
            assert_eq!(verdict(now, before), name, "{now:?} after {before:?}");
        }
    }

    #[test]
    fn a_total_stall_is_seen() {
        let stalled = QueueMetric { dispatch_rate: 0.0, length: 50, ..CALM };
        assert_eq!(verdict(stalled, CALM), "DispatchRateDecreased");
    }

    #[test]
    fn nobody_is_sent_away_before_a_long_queue() {
        let ended = QueueMetric { publish_rate: 0.0, length: 10_000, ..CALM };
        assert_eq!(verdict(ended, QueueMetric { length: 10_000, ..CALM }), "Stable");
    }

    #[test]
    fn the_policy_compares_every_five_seconds_and_stands_by_it_between() {
        let mut policy = Analysers::new(Thresholds::default());
        let view = |second: u64, rate: f64| View {
            now_ms: second * 1_000,
            fleet: Fleet { ready: 3, ..Fleet::default() },
            arrival_rate: rate,
            completion_rate: rate,
            ..View::default()
        };
        assert_eq!(wanted(&mut policy, &view(0, 100.0)), None);
        assert_eq!(wanted(&mut policy, &view(1, 900.0)), None);
        assert_eq!(wanted(&mut policy, &view(5, 900.0)), Some(4));
        assert_eq!(wanted(&mut policy, &view(6, 0.0)), Some(4), "one comparison, one instance");
        assert_eq!(wanted(&mut policy, &view(10, 0.0)), Some(2));
    }
}
