//! The analysers of QueueWatch, a chain of which the first that fires decides.
//!
//! | analyser | fires when | directive |
//! |---|---|---|
//! | `ConsumerUtilisationTooLow` | messages find an instance free less often than the threshold | out |
//! | `ConsumptionRateIncreased` | the rate of arrivals (so it is, whatever its name) rose by the difference | out |
//! | `DispatchRateDecreased` | the rate of completions fell by the difference while messages are unfinished | out |
//! | `QueueLengthIncreased` | more messages than the threshold are unfinished, and more by the difference | out |
//! | `ConsumptionRateDecreased` | arrivals fell by the difference, or there are none, and none waits | in |
//! | `Stable` | otherwise | none |
//!
//! On NATS, *consumer utilisation* is the share of polls at which a message found an instance free,
//! and the share of messages that were not turned away; the smaller of both counts. The *queue
//! length* is that of RabbitMQ, which counts what consumers hold too.
//!
//! What is mended: differences are taken of the earlier figure, not the later, so that a total
//! stall is -100 %; the queue's growth is no integer division; nobody is sent away while messages
//! wait. And no link fires on what chance explains: each asks whether its change, or its share, is
//! further from none than four standard deviations of a Poisson stream. So a load that fluctuates
//! does not bounce.
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
    fn default() -> Self {
        Self {
            every_ms: 5_000,
            difference_percent: 20.0,
            queue_length: 100,
            utilisation_percent: 99.0,
            least_rate: 0.1,
        }
    }
}

/// A link fires on what is further from chance than so many standard deviations. Four are exceeded
/// by chance once in 30,000 comparisons: at one each 5 s, once in two days.
const SIGMAS: f64 = 4.0;

/// Fewer polls than this say nothing of a share; they are judged with those of the next comparison.
const LEAST_POLLS: u32 = 5;

/// What a queue showed between one comparison and the next.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueMetric {
    /// How long that was, in seconds.
    pub elapsed_s: f64,
    /// Messages that came meanwhile.
    pub published: u64,
    /// Messages that were finished meanwhile.
    pub dispatched: u64,
    /// Messages that were turned away meanwhile for want of capacity.
    pub refused: u64,
    /// Polls meanwhile at which a message that came would have found no instance free.
    pub full_polls: u32,
    /// All polls meanwhile.
    pub polls: u32,
    /// Messages that wait now.
    pub waiting: u64,
    /// Messages that are not finished now, those that wait included.
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
pub struct Analysis {
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
        let tolerated = 1.0 - thresholds.utilisation_percent / 100.0;
        let asked = now.dispatched + now.refused;
        surely_above(u64::from(now.full_polls), u64::from(now.polls), tolerated)
            || surely_above(now.refused, asked, tolerated)
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
        let (earlier, later) = (before.count(before.published), now.count(now.published));
        thresholds.change(earlier, later) >= thresholds.difference_percent
            && later.is_surely_above(earlier)
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
        let (earlier, later) = (before.count(before.dispatched), now.count(now.dispatched));
        let change = thresholds.change(earlier, later);
        // What is finished less because less comes is no fault of the instances.
        let is_behind = now.count(now.published).rate()
            > later.rate() * (1.0 + thresholds.difference_percent / 100.0);
        now.length > 0
            && is_behind
            && change <= -thresholds.difference_percent
            && earlier.is_surely_above(later)
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
        // Coming and going alone make it walk that far.
        let chance = SIGMAS * ((now.published + now.dispatched) as f64).sqrt();
        let grown = now.length.saturating_sub(before.length) as f64;
        now.length > thresholds.queue_length
            && change >= thresholds.difference_percent
            && grown > chance
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
        let (earlier, later) = (before.count(before.published), now.count(now.published));
        let fell = thresholds.change(earlier, later) <= -thresholds.difference_percent
            && earlier.is_surely_above(later);
        let idle = before.published + now.published == 0;
        let is_strained =
            now.waiting > thresholds.queue_length || now.full_polls > 0 || now.refused > 0;
        !is_strained && (fell || idle)
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
    fn change(&self, before: Count, now: Count) -> f64 {
        let counted =
            |count: Count| if count.rate() < self.least_rate { 0.0 } else { count.rate() };
        percent(counted(before), counted(now))
    }
}

impl QueueMetric {
    fn count(&self, messages: u64) -> Count {
        Count { messages: messages as f64, elapsed_s: self.elapsed_s }
    }
}

/// Messages that were counted within a time.
#[derive(Clone, Copy, Debug)]
struct Count {
    messages: f64,
    elapsed_s: f64,
}

impl Count {
    fn rate(self) -> f64 {
        if self.elapsed_s > 0.0 { self.messages / self.elapsed_s } else { 0.0 }
    }

    /// Whether its rate is above the other's by more than chance explains, both being Poisson.
    /// Square roots of counts have the same deviation, a half, whatever the rate (F. Anscombe,
    /// 1948); so this holds for a few messages too.
    fn is_surely_above(self, other: Self) -> bool {
        if self.elapsed_s <= 0.0 || other.elapsed_s <= 0.0 {
            return false;
        }
        let root = |count: Self| ((count.messages + 0.375) / count.elapsed_s).sqrt();
        let deviation = (0.25 / self.elapsed_s + 0.25 / other.elapsed_s).sqrt();
        root(self) - root(other) > SIGMAS * deviation
    }
}

/// Whether `count` of `all` is surely a larger share than another (E. Wilson, 1927). One may always
/// be chance.
fn surely_above(count: u64, all: u64, share: f64) -> bool {
    if all == 0 {
        return false;
    }
    let (all, z2) = (all as f64, SIGMAS * SIGMAS);
    let seen = count.saturating_sub(1) as f64 / all;
    let spread = SIGMAS * (seen * (1.0 - seen) / all + z2 / (4.0 * all * all)).sqrt();
    (seen + z2 / (2.0 * all) - spread) / (1.0 + z2 / all) > share
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
    /// What was counted up to the last comparison.
    since: Option<Counted>,
    /// What the comparison before the next one showed.
    before: Option<QueueMetric>,
    polls: u32,
    full_polls: u32,
    /// What was wanted since the last comparison, and why.
    standing: Option<(u32, Analysis)>,
}

/// Counters as they stood at a comparison.
#[derive(Clone, Copy, Debug)]
struct Counted {
    at_ms: u64,
    /// When the counting began: at another time, it began anew.
    begun_ms: u64,
    arrived: u64,
    finished: u64,
    refused: u64,
}

impl Analysers {
    /// The six analysers with these thresholds.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            chain: chain(),
            since: None,
            before: None,
            polls: 0,
            full_polls: 0,
            standing: None,
        }
    }

    /// What the chain says of two polls.
    pub fn analyse(&self, now: &QueueMetric, before: &QueueMetric) -> Analysis {
        let mut chain = self.chain.iter();
        let fired = chain.find(|analyser| analyser.fires(now, before, &self.thresholds));
        let fired = fired.expect("the last of the chain always fires");
        Analysis { analyser: fired.name(), directive: fired.directive() }
    }

    fn begin(&mut self, now: Counted) {
        self.since = Some(now);
        if self.polls >= LEAST_POLLS {
            (self.polls, self.full_polls) = (0, 0);
        }
    }
}

impl Policy for Analysers {
    fn name(&self) -> &'static str {
        "analysers"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let now = Counted {
            at_ms: view.now_ms,
            begun_ms: view.since_ms,
            arrived: view.count,
            finished: view.finished,
            refused: view.refused,
        };
        let Some(since) = self.since.filter(|since| since.begun_ms == now.begun_ms) else {
            self.begin(now);
            self.before = None;
            return Answer::none("the first poll is only kept, to compare the next one with");
        };
        self.polls += 1;
        self.full_polls += u32::from(view.is_full());
        let elapsed_ms = now.at_ms.saturating_sub(since.at_ms);
        if elapsed_ms >= self.thresholds.every_ms {
            let metric = QueueMetric {
                elapsed_s: elapsed_ms as f64 / 1_000.0,
                published: now.arrived.saturating_sub(since.arrived),
                dispatched: now.finished.saturating_sub(since.finished),
                refused: now.refused.saturating_sub(since.refused),
                full_polls: self.full_polls,
                polls: self.polls,
                waiting: view.waiting,
                length: view.backlog(),
            };
            self.begin(now);
            if let Some(before) = self.before.replace(metric) {
                let verdict = self.analyse(&metric, &before);
                let current = view.fleet.present();
                let wanted = match verdict.directive {
                    Some(Directive::ScaleOut) => current.saturating_add(1),
                    Some(Directive::ScaleIn) => current.saturating_sub(1).max(1),
                    None => current,
                };
                self.standing = Some((wanted, verdict));
            }
        }
        match self.standing {
            Some((wanted, verdict)) => Answer::exactly(wanted, verdict.analyser),
            None => Answer::none("between two polls"),
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::sample::Fleet;

    const CALM: QueueMetric = QueueMetric {
        elapsed_s: 5.0,
        published: 500,
        dispatched: 500,
        refused: 0,
        full_polls: 0,
        polls: 5,
        waiting: 0,
        length: 0,
    };

    fn verdict(now: QueueMetric, before: QueueMetric) -> &'static str {
        Analysers::new(Thresholds::default()).analyse(&now, &before).analyser
    }

    #[test]
    fn each_analyser_fires_for_its_own_reason() {
        let longer = |length| QueueMetric { length, ..CALM };
        let cases = [
            (QueueMetric { full_polls: 2, ..CALM }, CALM, "ConsumerUtilisationTooLow"),
            (QueueMetric { refused: 50, ..CALM }, CALM, "ConsumerUtilisationTooLow"),
            (QueueMetric { published: 700, ..CALM }, CALM, "ConsumptionRateIncreased"),
            (QueueMetric { dispatched: 300, length: 200, ..CALM }, CALM, "DispatchRateDecreased"),
            (longer(500), longer(200), "QueueLengthIncreased"),
            (
                QueueMetric { published: 300, dispatched: 300, ..CALM },
                CALM,
                "ConsumptionRateDecreased",
            ),
            (CALM, CALM, "Stable"),
        ];
        for (now, before, name) in cases {
            assert_eq!(verdict(now, before), name, "{now:?} after {before:?}");
        }
    }

    #[test]
    fn what_chance_explains_fires_nothing() {
        let few = QueueMetric { published: 10, dispatched: 10, ..CALM };
        for (now, before) in [
            (QueueMetric { published: 18, ..few }, few),
            (QueueMetric { published: 4, ..few }, few),
            (QueueMetric { dispatched: 4, length: 6, ..few }, few),
            (QueueMetric { full_polls: 1, ..few }, few),
            (QueueMetric { refused: 1, ..few }, few),
            (QueueMetric { length: 240, ..CALM }, QueueMetric { length: 200, ..CALM }),
            (
                QueueMetric { published: 0, dispatched: 0, ..few },
                QueueMetric { published: 5, ..few },
            ),
        ] {
            assert_eq!(verdict(now, before), "Stable", "{now:?} after {before:?}");
        }
    }

    #[test]
    fn a_total_stall_is_seen() {
        let stalled = QueueMetric { dispatched: 0, length: 500, ..CALM };
        assert_eq!(verdict(stalled, CALM), "DispatchRateDecreased");
    }

    #[test]
    fn nobody_is_sent_away_while_messages_wait_or_are_turned_away() {
        let ended =
            QueueMetric { published: 0, dispatched: 0, waiting: 10_000, length: 10_000, ..CALM };
        assert_eq!(verdict(ended, QueueMetric { length: 10_000, ..CALM }), "Stable");
        let refused = QueueMetric { published: 300, dispatched: 299, refused: 1, ..CALM };
        assert_eq!(verdict(refused, CALM), "Stable");
    }

    #[test]
    fn nothing_for_two_comparisons_is_idleness_however_little_came_before() {
        let nothing = QueueMetric { published: 0, dispatched: 0, ..CALM };
        assert_eq!(verdict(nothing, nothing), "ConsumptionRateDecreased");
    }

    /// A service by a virtual clock: `sets` of them, each of which takes `slots` at a time for
    /// `work_s`, and turns the rest away.
    struct Service {
        rng: Rng,
        sets: u32,
        slots: u64,
        work_s: f64,
        /// When each that is at work will be finished.
        held: Vec<f64>,
        view: View,
        policy: Analysers,
        trajectory: Vec<u32>,
    }

    impl Service {
        fn new(seed: u64, sets: u32, slots: u64, work_s: f64) -> Self {
            let policy = Analysers::new(Thresholds::default());
            let (rng, held, trajectory) = (Rng::with_seed(seed), Vec::new(), vec![sets]);
            Self { rng, sets, slots, work_s, held, view: View::default(), policy, trajectory }
        }

        /// A second of Poisson arrivals, and a poll at its end.
        fn second(&mut self, rate: f64) {
            let from_s = self.view.now_ms as f64 / 1_000.0;
            let mut at_s = from_s;
            loop {
                at_s += -(1.0 - self.rng.f64()).ln() / rate.max(1e-9);
                let now_s = at_s.min(from_s + 1.0);
                let before = self.held.len();
                self.held.retain(|done_s| *done_s > now_s);
                self.view.finished += (before - self.held.len()) as u64;
                if at_s >= from_s + 1.0 {
                    break;
                }
                self.view.count += 1;
                if (self.held.len() as u64) < u64::from(self.sets) * self.slots {
                    self.held.push(at_s + self.work_s);
                } else {
                    self.view.refused += 1;
                }
            }
            self.view.now_ms += 1_000;
            self.view.in_hand = self.held.len() as u64;
            self.view.capacity = Some(u64::from(self.sets) * self.slots);
            self.view.fleet = Fleet { ready: self.sets, ..Fleet::default() };
            let wanted =
                self.policy.desire(&self.view).instances(self.sets, 0.0).unwrap_or(self.sets);
            let is_news = self.view.now_ms.is_multiple_of(5_000);
            self.sets = if is_news { wanted } else { self.sets };
            if self.trajectory.last() != Some(&self.sets) {
                self.trajectory.push(self.sets);
            }
        }
    }

    #[test]
    fn a_few_random_requests_with_an_idle_worker_never_bounce() {
        for seed in 0..20 {
            let mut service = Service::new(seed, 2, 8, 0.05);
            for _ in 0..3_600 {
                service.second(2.2);
            }
            assert_eq!(service.trajectory, [2], "seed {seed}: an hour of 2.2/s");
        }
    }

    #[test]
    fn steady_overload_scales_out_until_it_is_carried_and_then_rests() {
        for seed in 0..20 {
            // 150/s on one set that does 80/s.
            let mut service = Service::new(seed, 1, 8, 0.1);
            for _ in 0..20 {
                service.second(150.0);
            }
            assert!(
                service.sets >= 2 && service.trajectory.is_sorted(),
                "seed {seed}: {:?}",
                service.trajectory
            );
            for _ in 0..600 {
                service.second(150.0);
            }
            assert!((2..=5).contains(&service.sets), "seed {seed}: {:?}", service.trajectory);
            assert!(service.trajectory.is_sorted(), "seed {seed}: {:?}", service.trajectory);
            assert!(service.view.refused < service.view.count / 20, "seed {seed}");
        }
    }

    #[test]
    fn the_policy_compares_every_five_seconds_and_stands_by_it_between() {
        let mut policy = Analysers::new(Thresholds::default());
        let mut view = View { fleet: Fleet { ready: 3, ..Fleet::default() }, ..View::default() };
        let mut at = |second: u64, came: u64| {
            view.now_ms = second * 1_000;
            view.count += came;
            view.finished += came;
            policy.desire(&view).instances(3, 0.0)
        };
        assert_eq!(at(0, 0), None);
        assert_eq!(at(5, 500), None, "the first of two to compare");
        assert_eq!(at(6, 200), None);
        assert_eq!(at(10, 800), Some(4));
        assert_eq!(at(11, 0), Some(4), "one comparison, one instance");
        assert_eq!(at(15, 0), Some(2));
    }
}
