//! The last polls at a target: what may be believed of them, and the rates between them.

use std::collections::VecDeque;

use crate::sample::{Fault, Sample};

/// How often the same contradiction must be seen before it is the truth: a purge looks like a lie
/// once, a follower that lags (<https://github.com/kedacore/keda/issues/7322>) does not stay.
const CONVINCED_AFTER: u32 = 5;

/// A rise of the arrival rate counts at once when chance explains it no more: so many standard
/// deviations. Three are exceeded by chance once in 740 looks, which makes instances come and go on
/// steady traffic; four once in 30,000.
const SIGMAS: f64 = 4.0;

/// Over how long chance is measured, in seconds.
const CHANCE_MEMORY_S: f64 = 30.0;

/// A change from one poll to the next that is larger than so many deviations is a jump, and counts
/// as this much chance.
const JUMP_SIGMAS: f64 = 4.0;

/// How long a poll at the newest rate reaches back.
const NEWEST_MS: u64 = 1_000;

/// What a [`Window`] keeps and believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowRules {
    /// How far back rates reach, in milliseconds.
    pub span_ms: u64,
    /// From which age a poll is stale, in milliseconds.
    pub stale_after_ms: u64,
}

/// Polls of one target, oldest first.
#[derive(Clone, Debug)]
pub struct Window {
    rules: WindowRules,
    polls: VecDeque<Sample>,
    contradictions: u32,
    chance: Chance,
    /// The poll with which the counting began.
    since: Option<Sample>,
    last_arrival_ms: Option<u64>,
}

impl Window {
    /// A window that has seen nothing.
    pub fn new(rules: WindowRules) -> Self {
        Self {
            rules,
            polls: VecDeque::new(),
            contradictions: 0,
            chance: Chance::default(),
            since: None,
            last_arrival_ms: None,
        }
    }

    /// Other rules from now on; what was seen stays.
    pub fn set_rules(&mut self, rules: WindowRules) {
        self.rules = rules;
    }

    /// Takes a poll, or refuses it.
    ///
    /// # Errors
    /// The [`Fault`] for which the poll cannot be acted on. After a reset the next poll has a
    /// difference again.
    pub fn push(&mut self, now_ms: u64, poll: Result<Sample, Fault>) -> Result<(), Fault> {
        let sample = poll?;
        let limit_ms = self.rules.stale_after_ms;
        let age_ms = now_ms.saturating_sub(sample.at_ms);
        if age_ms > limit_ms {
            return Err(Fault::Stale { age_ms, limit_ms });
        }
        if sample.at_ms.saturating_sub(now_ms) > limit_ms {
            return Err(Fault::Contradictory(format!(
                "taken at {} ms, and it is {now_ms} ms",
                sample.at_ms
            )));
        }
        let Some(last) = self.polls.back() else {
            self.begin(sample);
            return Err(Fault::WarmingUp);
        };
        if last.source != sample.source {
            let detail = format!("{} became {}", last.source, sample.source);
            self.begin(sample);
            return Err(Fault::Reset(detail));
        }
        if sample.at_ms <= last.at_ms {
            // The same poll twice says nothing new; it turns stale if that goes on.
            let age_ms = now_ms.saturating_sub(last.at_ms);
            if age_ms > limit_ms {
                return Err(Fault::Stale { age_ms, limit_ms });
            }
            return if self.polls.len() > 1 { Ok(()) } else { Err(Fault::WarmingUp) };
        }
        if let Some(detail) = contradiction(last, &sample) {
            self.contradictions += 1;
            if self.contradictions < CONVINCED_AFTER {
                return Err(Fault::Contradictory(detail));
            }
            self.begin(sample);
            return Err(Fault::Reset(format!("{detail}, {CONVINCED_AFTER} times in a row")));
        }
        self.contradictions = 0;
        self.chance.learn(last, &sample);
        self.note_arrival(last.arrived < sample.arrived, &sample);
        self.polls.push_back(sample);
        self.forget_old();
        Ok(())
    }

    /// The newest look that is believed.
    pub fn newest(&self) -> Option<&Sample> {
        self.polls.back()
    }

    /// The two newest looks.
    pub fn newest_pair(&self) -> Option<(&Sample, &Sample)> {
        let before = self.polls.len().checked_sub(2)?;
        Some((&self.polls[before], self.polls.back()?))
    }

    /// When the first poll was taken, since a reset if there was one.
    pub fn since_ms(&self) -> Option<u64> {
        self.since.as_ref().map(|first| first.at_ms)
    }

    /// Messages that came since then.
    pub fn count(&self) -> u64 {
        self.since_first(arrived)
    }

    /// Messages that were finished since then.
    pub fn finished(&self) -> u64 {
        self.since_first(|sample| sample.completed)
    }

    /// Messages that were turned away since then.
    pub fn refused(&self) -> u64 {
        self.since_first(|sample| sample.refused.unwrap_or(0))
    }

    fn since_first(&self, count: impl Fn(&Sample) -> u64) -> u64 {
        let pair = self.since.as_ref().zip(self.newest());
        pair.map_or(0, |(first, newest)| count(newest).saturating_sub(count(first)))
    }

    /// When the last message came, as far as is known.
    pub fn last_arrival_ms(&self) -> Option<u64> {
        self.last_arrival_ms
    }

    /// Messages a second that came. A rise that chance does not explain counts before the window is
    /// full of it.
    pub fn arrival_rate(&self) -> Option<f64> {
        let whole = self.rate(self.rules.span_ms, arrived)?;
        Some(self.jump().unwrap_or(whole))
    }

    /// The newest rate, when chance does not explain how far it is above that of the window.
    fn jump(&self) -> Option<f64> {
        let whole = self.rate(self.rules.span_ms, arrived)?;
        let newest = self.rate(NEWEST_MS, arrived)?;
        let chance = SIGMAS * self.chance.deviation(whole, NEWEST_MS as f64 / 1_000.0);
        (newest > whole + chance).then_some(newest)
    }

    /// Messages a second that were finished.
    pub fn completion_rate(&self) -> Option<f64> {
        self.rate(self.rules.span_ms, |sample| sample.completed)
    }

    /// Milliseconds that instances spent on messages in each second, over the newest second or a
    /// little more. Not from one poll to the next: these may be close together, and all that a
    /// message took is counted when it is finished.
    pub fn busy_rate(&self) -> Option<f64> {
        let last = self.polls.back()?;
        let reaches_back = last.at_ms.saturating_sub(self.polls.front()?.at_ms) >= NEWEST_MS;
        if !reaches_back || self.polls.iter().any(|sample| sample.busy_ms.is_none()) {
            return None;
        }
        self.rate(NEWEST_MS, |sample| sample.busy_ms.unwrap_or(0))
    }

    /// How much the arrival rate grew over the window, in messages a second for each second; 0 when
    /// it did not, or not by more than chance explains, or came at once: a jump is no slope.
    pub fn arrival_growth(&self) -> f64 {
        let (Some(first), Some(last)) = (self.polls.front(), self.polls.back()) else { return 0.0 };
        let middle_ms = u64::midpoint(first.at_ms, last.at_ms);
        let Some(middle) = self.polls.iter().find(|sample| sample.at_ms >= middle_ms) else {
            return 0.0;
        };
        let (Some(early), Some(late)) =
            (between(first, middle, arrived), between(middle, last, arrived))
        else {
            return 0.0;
        };
        let half_s = (last.at_ms - first.at_ms) as f64 / 2_000.0;
        let chance = SIGMAS * self.chance.deviation(early, half_s / 2.0);
        if late - early > chance { ((late - early) / half_s).min(self.usual_slope()) } else { 0.0 }
    }

    /// How much the rate grew from second to second in most of the window's seconds, 0 or more: a
    /// jump is in one of them or two.
    fn usual_slope(&self) -> f64 {
        let mut apart: Vec<&Sample> = Vec::new();
        for sample in self.polls.iter().rev() {
            if apart
                .last()
                .is_none_or(|later| later.at_ms.saturating_sub(sample.at_ms) >= NEWEST_MS)
            {
                apart.push(sample);
            }
        }
        let rate = |pair: &[&Sample]| Some((between(pair[1], pair[0], arrived)?, pair[0].at_ms));
        let rates: Vec<(f64, u64)> = apart.windows(2).filter_map(rate).collect();
        let slope = |pair: &[(f64, u64)]| {
            (pair[0].0 - pair[1].0) * 1_000.0 / (pair[0].1 - pair[1].1) as f64
        };
        let mut slopes: Vec<f64> = rates.windows(2).map(slope).collect();
        slopes.sort_by(f64::total_cmp);
        slopes.len().checked_sub(1).map_or(0.0, |last| slopes[last / 2].max(0.0))
    }

    /// Messages a second that were turned away, where that is counted.
    pub fn refusal_rate(&self) -> Option<f64> {
        self.polls.iter().all(|sample| sample.refused.is_some()).then_some(())?;
        self.rate(self.rules.span_ms, |sample| sample.refused.unwrap_or(0))
    }

    fn rate(&self, span_ms: u64, count: impl Fn(&Sample) -> u64) -> Option<f64> {
        let last = self.polls.back()?;
        let since_ms = last.at_ms.saturating_sub(span_ms);
        let before = self.polls.iter().rev().skip(1).find(|sample| sample.at_ms <= since_ms);
        between(before.or(self.polls.front())?, last, count)
    }

    fn begin(&mut self, sample: Sample) {
        self.polls.clear();
        self.since = Some(sample.clone());
        self.contradictions = 0;
        self.chance.before = None;
        self.note_arrival(sample.backlog() > 0, &sample);
        self.polls.push_back(sample);
    }

    fn note_arrival(&mut self, came: bool, sample: &Sample) {
        let seen = came.then_some(sample.at_ms);
        self.last_arrival_ms = sample.last_arrival_ms.or(seen).or(self.last_arrival_ms);
    }

    /// Keeps one poll from before the span, so that rates reach over all of it.
    fn forget_old(&mut self) {
        let Some(last) = self.polls.back() else { return };
        let since_ms = last.at_ms.saturating_sub(self.rules.span_ms);
        while self.polls.len() > 2 && self.polls[1].at_ms <= since_ms {
            self.polls.pop_front();
        }
    }
}

/// How much the arrivals of one second differ from those of the next without meaning anything.
#[derive(Clone, Copy, Debug, Default)]
struct Chance {
    /// The variance of the arrivals of a second, from differences of neighbours, which a slow rise
    /// leaves alone.
    variance: f64,
    before: Option<f64>,
}

impl Chance {
    fn learn(&mut self, before: &Sample, after: &Sample) {
        let Some(rate) = between(before, after, arrived) else { return };
        let elapsed_s = (after.at_ms - before.at_ms) as f64 / 1_000.0;
        if let Some(last) = self.before.replace(rate) {
            let most = JUMP_SIGMAS * self.deviation(last, 1.0);
            let difference = (rate - last).abs().min(most);
            let seen = difference * difference / 2.0 * elapsed_s;
            let weight = 1.0 - (-elapsed_s / CHANCE_MEMORY_S).exp();
            self.variance += weight * (seen - self.variance);
        }
    }

    /// The standard deviation of a rate that is counted over so many seconds: that of a Poisson
    /// stream at the least.
    fn deviation(&self, rate: f64, seconds: f64) -> f64 {
        (self.variance.max(rate).max(1.0) / seconds).sqrt()
    }
}

fn arrived(sample: &Sample) -> u64 {
    sample.arrived
}

fn between(before: &Sample, after: &Sample, count: impl Fn(&Sample) -> u64) -> Option<f64> {
    let elapsed_ms = after.at_ms.checked_sub(before.at_ms).filter(|ms| *ms > 0)?;
    Some(count(after).saturating_sub(count(before)) as f64 * 1_000.0 / elapsed_ms as f64)
}

/// What of a poll cannot be true, one source's counters only ever growing.
fn contradiction(before: &Sample, after: &Sample) -> Option<String> {
    let fell = |what: &str, before: u64, after: u64| {
        (after < before).then(|| format!("{what} fell from {before} to {after}"))
    };
    fell("messages that ever came", before.arrived, after.arrived)
        .or_else(|| fell("messages ever finished", before.completed, after.completed))
        .or_else(|| fell("time ever spent", before.busy_ms?, after.busy_ms?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: WindowRules = WindowRules { span_ms: 5_000, stale_after_ms: 3_000 };

    fn poll(at_ms: u64, arrived: u64) -> Result<Sample, Fault> {
        Ok(Sample { at_ms, arrived, completed: arrived, waiting: Some(0), ..Sample::default() })
    }

    /// A window that looked once a second, `per_second` more messages each time.
    fn steady(per_second: u64, seconds: u64) -> Window {
        let mut window = Window::new(RULES);
        for second in 0..=seconds {
            window.push(second * 1_000, poll(second * 1_000, second * per_second)).ok();
        }
        window
    }

    #[test]
    fn rates_are_those_of_the_window_and_not_of_all_time() {
        let mut window = steady(100, 60);
        for second in 61..=65 {
            window.push(second * 1_000, poll(second * 1_000, 6_000)).unwrap();
        }
        assert_eq!(window.arrival_rate(), Some(0.0));
        assert_eq!(window.last_arrival_ms(), Some(60_000));
    }

    #[test]
    fn a_jump_counts_at_once_and_chance_does_not() {
        let mut window = steady(100, 10);
        window.push(11_000, poll(11_000, 1_120)).unwrap();
        assert_eq!(window.arrival_rate(), Some(104.0), "120 after 100 may be chance");
        window.push(12_000, poll(12_000, 2_120)).unwrap();
        assert_eq!(window.arrival_rate(), Some(1_000.0));
    }

    #[test]
    fn growth_is_that_of_a_ramp() {
        let mut window = Window::new(RULES);
        for second in 0..10 {
            let arrived = 500 * second * second;
            window.push(second * 1_000, poll(second * 1_000, arrived)).ok();
        }
        let growth = window.arrival_growth();
        assert!((800.0..1_200.0).contains(&growth), "{growth}");
        assert!(steady(500, 20).arrival_growth().abs() < f64::EPSILON);
    }

    #[test]
    fn a_jump_is_no_growth() {
        let mut window = steady(100, 10);
        let mut arrived = 1_000;
        for (second, came) in
            [(11, 600), (12, 1_000), (13, 1_000), (14, 1_000), (15, 1_000), (16, 1_000)]
        {
            arrived += came;
            window.push(second * 1_000, poll(second * 1_000, arrived)).unwrap();
            assert!(window.arrival_growth() < 1.0, "{second}: {}", window.arrival_growth());
        }
    }

    #[test]
    fn what_cannot_be_acted_on_is_refused_with_its_reason() {
        let mut window = steady(100, 10);
        let missing = Fault::Missing("no answer".into());
        assert_eq!(window.push(11_000, Err(missing.clone())), Err(missing));
        assert!(matches!(
            window.push(14_001, poll(11_000, 1_100)),
            Err(Fault::Stale { age_ms: 3_001, .. })
        ));
        assert!(matches!(window.push(12_000, poll(12_000, 5)), Err(Fault::Contradictory(_))));
        let other = Sample { source: "another".into(), ..poll(13_000, 5).unwrap() };
        assert!(matches!(window.push(13_000, Ok(other)), Err(Fault::Reset(_))));
        assert_eq!(window.arrival_rate(), None, "one poll has no rate");
    }

    #[test]
    fn a_contradiction_that_stays_becomes_the_truth() {
        let mut window = steady(100, 10);
        for second in 11..15 {
            let refused = window.push(second * 1_000, poll(second * 1_000, 5));
            assert!(matches!(refused, Err(Fault::Contradictory(_))), "{refused:?}");
        }
        assert!(matches!(window.push(15_000, poll(15_000, 5)), Err(Fault::Reset(_))));
        assert_eq!(window.push(16_000, poll(16_000, 105)), Ok(()));
        assert_eq!(window.arrival_rate(), Some(100.0));
    }

    #[test]
    fn a_poll_from_the_future_is_refused_and_blinds_nobody() {
        let mut window = steady(100, 10);
        assert!(matches!(window.push(11_000, poll(1 << 60, 1_100)), Err(Fault::Contradictory(_))));
        assert_eq!(window.push(12_000, poll(12_000, 1_200)), Ok(()));
        // One that runs ahead a little is taken, and not relied on for longer than any other.
        assert_eq!(window.push(13_000, poll(15_500, 1_300)), Ok(()));
        assert_eq!(window.push(18_000, poll(15_400, 1_300)), Ok(()));
        assert!(matches!(window.push(18_501, poll(15_501 - 1, 1_300)), Err(Fault::Stale { .. })));
    }

    #[test]
    fn the_same_poll_again_is_no_news_until_it_is_stale() {
        let mut window = steady(100, 10);
        assert_eq!(window.push(12_000, poll(10_000, 1_000)), Ok(()));
        assert!(matches!(window.push(14_000, poll(10_000, 1_000)), Err(Fault::Stale { .. })));
    }
}
