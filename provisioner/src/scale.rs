//! What stands between the number of instances that is wanted and the one that is set: bounds,
//! spares, stabilisation, cooldown and steps. Pure: time is an argument.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The rules, all of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleRules {
    /// The fewest instances.
    pub min: u32,
    /// The most instances; never fewer than `min`, and 1 at the least.
    pub max: u32,
    /// Instances kept beyond what is wanted, while any is: all that helps against a jump that is
    /// over before an instance has started.
    pub warm_spares: u32,
    /// Scale out no further than was wanted all through this time, in milliseconds.
    pub up_window_ms: u64,
    /// Scale in no further than was wanted all through this time, in milliseconds.
    pub down_window_ms: u64,
    /// At most so much more at a time; `None` is no limit.
    pub up_step: Option<Step>,
    /// At most so much less at a time; `None` is no limit.
    pub down_step: Option<Step>,
    /// Do not scale in for so long after a change, in milliseconds.
    pub cooldown_ms: u64,
    /// Instances that were wanted again after they had gone stay next time for as long as that
    /// pause, and for so long at the most, in milliseconds. 0: they never do.
    pub hold_ms: u64,
    /// Fewer by no more than this share of the present number, in percent, are no reason to change.
    pub in_tolerance_percent: u32,
    /// With a minimum of 0: the last instance goes when nothing has come for so long, in
    /// milliseconds, and nothing waits or is in hand.
    pub zero_after_ms: u64,
}

/// How much the number may change within a period: the larger of both.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Step {
    /// So many instances.
    pub instances: u32,
    /// Percent of the number at the period's beginning, rounded up.
    pub percent: u32,
    /// The period, in milliseconds.
    pub period_ms: u64,
}

/// A rule that changed the number, for the explanation.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The rule.
    pub rule: String,
    /// The number before it.
    pub from: u32,
    /// The number after it.
    pub to: u32,
    /// Why.
    pub because: String,
}

/// What the rules need to know of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// How long nothing has come, in milliseconds.
    pub idle_ms: u64,
    /// Messages that have come and are not finished.
    pub backlog: u64,
}

/// The rules and what they remember.
#[derive(Clone, Debug)]
pub struct Limiter {
    rules: ScaleRules,
    /// What was wanted when, oldest first.
    wanted: VecDeque<(u64, u32)>,
    /// Changes that were made: when, and by how much.
    changes: VecDeque<(u64, i64)>,
    /// What was set last. Bringing back what was lost of it is no change.
    set: Option<u32>,
    /// Numbers that were wanted again after a pause.
    returns: Vec<Return>,
}

/// A number of instances that was wanted again after fewer had been for a while.
#[derive(Clone, Copy, Debug)]
struct Return {
    instances: u32,
    /// For how long they stay next time, in milliseconds.
    hold_ms: u64,
    /// When they were wanted again.
    at_ms: u64,
}

/// So much longer than the pause that was seen instances stay: the next one may be a little longer.
const HOLD_STRETCH: f64 = 1.25;

/// A return is forgotten when it has not been seen again for so many times what it has instances
/// held.
const HOLDS_REMEMBERED: u64 = 6;

/// The most returns that are remembered, the newest.
const MOST_RETURNS: usize = 32;

impl ScaleRules {
    /// Bounds and nothing else: what is wanted is set at once.
    pub const fn between(min: u32, max: u32) -> Self {
        Self {
            min,
            max,
            warm_spares: 0,
            up_window_ms: 0,
            down_window_ms: 0,
            up_step: None,
            down_step: None,
            cooldown_ms: 0,
            hold_ms: 0,
            in_tolerance_percent: 0,
            zero_after_ms: 0,
        }
    }

    /// The number within the bounds that is nearest to `instances`.
    pub fn bounded(&self, instances: u32) -> u32 {
        instances.min(self.max.max(1)).max(self.min)
    }
}

impl Limiter {
    /// A limiter that remembers nothing.
    pub fn new(rules: ScaleRules) -> Self {
        Self {
            rules,
            wanted: VecDeque::new(),
            changes: VecDeque::new(),
            set: None,
            returns: Vec::new(),
        }
    }

    /// Other rules from now on; what is remembered stays.
    pub fn set_rules(&mut self, rules: ScaleRules) {
        self.rules = rules;
    }

    /// The rules in force.
    pub fn rules(&self) -> &ScaleRules {
        &self.rules
    }

    /// The number to set when there are `current` and `wanted` are wanted, and the rules that
    /// changed it.
    ///
    /// The result is within the bounds, always.
    pub fn limit(
        &mut self,
        now_ms: u64,
        current: u32,
        wanted: u32,
        traffic: Traffic,
    ) -> (u32, Vec<Limit>) {
        let mut proposal = Proposal { number: wanted, limits: Vec::new() };
        self.keep_the_last(traffic, &mut proposal);
        self.add_spares(&mut proposal);
        self.bound(&mut proposal);
        self.stabilise(now_ms, current, &mut proposal);
        self.hold(now_ms, current, &mut proposal);
        self.tolerate(current, &mut proposal);
        self.cool_down(now_ms, current, &mut proposal);
        self.step(now_ms, current, &mut proposal);
        self.bound(&mut proposal);
        self.note_change(now_ms, self.set.unwrap_or(current), proposal.number);
        self.set = Some(proposal.number);
        (proposal.number, proposal.limits)
    }

    fn keep_the_last(&self, traffic: Traffic, proposal: &mut Proposal) {
        let Traffic { idle_ms, backlog } = traffic;
        if proposal.number > 0 || self.rules.min > 0 {
            return;
        }
        if backlog > 0 {
            proposal.set("last instance", 1, || format!("{backlog} messages are not finished"));
        } else if idle_ms < self.rules.zero_after_ms {
            let after_ms = self.rules.zero_after_ms;
            proposal.set("last instance", 1, || {
                format!("idle for {idle_ms} ms, it goes after {after_ms} ms")
            });
        }
    }

    fn add_spares(&self, proposal: &mut Proposal) {
        let spares = self.rules.warm_spares;
        if proposal.number > 0 || self.rules.min > 0 {
            let with_spares = proposal.number.saturating_add(spares);
            proposal.set("warm spares", with_spares, || format!("{spares} kept ready"));
        }
    }

    fn bound(&self, proposal: &mut Proposal) {
        let ScaleRules { min, max, .. } = self.rules;
        proposal.set("bounds", self.rules.bounded(proposal.number), || format!("{min} to {max}"));
    }

    /// As Kubernetes does it: out to the least that was wanted within one window, in to the most
    /// within the other.
    fn stabilise(&mut self, now_ms: u64, current: u32, proposal: &mut Proposal) {
        let ScaleRules { up_window_ms, down_window_ms, .. } = self.rules;
        self.note_return(now_ms, current, proposal.number);
        self.wanted.push_back((now_ms, proposal.number));
        let longest_ms = up_window_ms.max(down_window_ms).max(self.rules.hold_ms);
        while self
            .wanted
            .front()
            .is_some_and(|(at_ms, _)| now_ms.saturating_sub(*at_ms) > longest_ms)
        {
            self.wanted.pop_front();
        }
        let least = self.wanted_within(now_ms, up_window_ms).min().unwrap_or(proposal.number);
        let most = self.wanted_within(now_ms, down_window_ms).max().unwrap_or(proposal.number);
        let stable = if current < least {
            least
        } else if current > most {
            most
        } else {
            current
        };
        if stable < proposal.number {
            proposal.set("stabilisation", stable, || {
                format!("not wanted for all of {up_window_ms} ms")
            });
        } else {
            proposal.set("stabilisation", stable, || {
                format!("{most} were wanted within {down_window_ms} ms")
            });
        }
    }

    /// What was wanted within the last so many milliseconds.
    fn wanted_within(&self, now_ms: u64, window_ms: u64) -> impl Iterator<Item = u32> {
        let is_within = move |at_ms: u64| now_ms.saturating_sub(at_ms) <= window_ms;
        self.wanted.iter().filter(move |(at_ms, _)| is_within(*at_ms)).map(|(_, number)| *number)
    }

    /// Notices that more are wanted than there are, and were before.
    fn note_return(&mut self, now_ms: u64, current: u32, wanted: u32) {
        let (base_ms, most_ms) = (self.rules.down_window_ms, self.rules.hold_ms);
        self.returns.retain(|of| now_ms.saturating_sub(of.at_ms) < of.hold_ms * HOLDS_REMEMBERED);
        let before = self.wanted.iter().rposition(|(_, number)| *number > current);
        let Some(before) = before.filter(|_| wanted > current) else { return };
        let pause_ms = now_ms.saturating_sub(self.wanted[before].0);
        let hold_ms = ((pause_ms as f64 * HOLD_STRETCH) as u64).min(most_ms);
        if hold_ms <= base_ms {
            return;
        }
        let most_before =
            self.wanted.range(..=before).map(|(_, number)| *number).max().unwrap_or(0);
        let new = Return { instances: wanted.min(most_before), hold_ms, at_ms: now_ms };
        self.returns.retain(|old| old.instances > new.instances || old.hold_ms > new.hold_ms);
        self.returns.push(new);
        if self.returns.len() > MOST_RETURNS {
            self.returns.remove(0);
        }
    }

    /// Keeps what was wanted again after such a pause as this one may become.
    fn hold(&self, now_ms: u64, current: u32, proposal: &mut Proposal) {
        let held = |of: &Return| {
            let most = self.wanted_within(now_ms, of.hold_ms).max().unwrap_or(0);
            (of.instances.min(most).min(current), of.hold_ms)
        };
        let Some((held, hold_ms)) = self.returns.iter().map(held).max() else { return };
        if held > proposal.number {
            proposal.set("hold", held, || {
                let pause_s = (hold_ms as f64 / HOLD_STRETCH / 1_000.0).round();
                format!(
                    "they were wanted again {pause_s} s after fewer had been; they stay for \
                         {hold_ms} ms"
                )
            });
        }
    }

    /// A few less are not worth a change.
    fn tolerate(&self, current: u32, proposal: &mut Proposal) {
        let percent = self.rules.in_tolerance_percent;
        let is_fewer = proposal.number < current && proposal.number > self.rules.min;
        let least = u64::from(current) * u64::from(100_u32.saturating_sub(percent));
        if is_fewer && u64::from(proposal.number) * 100 > least {
            proposal.set("tolerance", current, || {
                format!("fewer by less than {percent} % are no reason to change")
            });
        }
    }

    fn cool_down(&self, now_ms: u64, current: u32, proposal: &mut Proposal) {
        let Some((changed_ms, _)) = self.changes.back() else { return };
        let (ago_ms, cooldown_ms) = (now_ms.saturating_sub(*changed_ms), self.rules.cooldown_ms);
        if proposal.number < current && ago_ms < cooldown_ms {
            proposal.set("cooldown", current, || {
                format!("changed {ago_ms} ms ago, nothing is stopped before {cooldown_ms} ms")
            });
        }
    }

    fn step(&self, now_ms: u64, current: u32, proposal: &mut Proposal) {
        let (step, grows) = match proposal.number.cmp(&current) {
            std::cmp::Ordering::Greater => (self.rules.up_step, true),
            std::cmp::Ordering::Less => (self.rules.down_step, false),
            std::cmp::Ordering::Equal => return,
        };
        let Some(step) = step else { return };
        let period =
            self.changes.iter().filter(|(at_ms, _)| now_ms.saturating_sub(*at_ms) < step.period_ms);
        let changed: i64 = period.map(|(_, by)| *by).filter(|by| (*by > 0) == grows).sum();
        let before =
            self.set.map_or(current, |set| if grows { set.max(current) } else { set.min(current) });
        let begun_with = i64::from(before) - changed;
        let share = (begun_with.max(0) * i64::from(step.percent) + 99) / 100;
        let most = i64::from(step.instances).max(share);
        let furthest = if grows {
            i64::from(proposal.number).min((begun_with + most).max(i64::from(current)))
        } else {
            i64::from(proposal.number).max((begun_with - most).min(i64::from(current)))
        };
        let furthest = u32::try_from(furthest.max(0)).unwrap_or(u32::MAX);
        proposal
            .set("step", furthest, || format!("{most} at the most within {} ms", step.period_ms));
    }

    fn note_change(&mut self, now_ms: u64, before: u32, number: u32) {
        let by = i64::from(number) - i64::from(before);
        if by != 0 {
            self.changes.push_back((now_ms, by));
        }
        let longest_ms = [self.rules.up_step, self.rules.down_step]
            .into_iter()
            .flatten()
            .map(|step| step.period_ms)
            .fold(self.rules.cooldown_ms, u64::max);
        while self.changes.len() > 1
            && self
                .changes
                .front()
                .is_some_and(|(at_ms, _)| now_ms.saturating_sub(*at_ms) > longest_ms)
        {
            self.changes.pop_front();
        }
    }
}

/// A number on its way through the rules.
struct Proposal {
    number: u32,
    limits: Vec<Limit>,
}

impl Proposal {
    fn set(&mut self, rule: &str, to: u32, because: impl FnOnce() -> String) {
        if to != self.number {
            self.limits.push(Limit {
                rule: rule.to_owned(),
                from: self.number,
                to,
                because: because(),
            });
            self.number = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FREE: ScaleRules = ScaleRules::between(0, 1_000);
    const BUSY: Traffic = Traffic { idle_ms: 0, backlog: 1 };
    const MINUTE_MS: u64 = 60_000;

    /// The numbers that come of what is wanted, a minute apart.
    fn proposal(rules: ScaleRules, mut current: u32, wanted: &[u32]) -> Vec<u32> {
        let mut limiter = Limiter::new(rules);
        let minutes = wanted.iter().zip(0..);
        let steps = minutes.map(|(wanted, minute)| {
            current = limiter.limit(minute * MINUTE_MS, current, *wanted, BUSY).0;
            current
        });
        steps.collect()
    }

    #[test]
    fn the_largest_of_the_window_holds_a_scale_in_as_in_kep_853() {
        let rules = ScaleRules { down_window_ms: 9 * MINUTE_MS, ..FREE };
        let numbers = proposal(rules, 10, &[10, 9, 8, 9, 9, 8, 9, 8, 9, 8, 7]);
        assert_eq!(numbers, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 9]);
    }

    #[test]
    fn the_least_of_the_window_holds_a_scale_out_as_in_kep_853() {
        let rules = ScaleRules { up_window_ms: 5 * MINUTE_MS, ..FREE };
        assert_eq!(proposal(rules, 2, &[2, 3, 19, 10, 3, 4, 7]), [2, 2, 2, 2, 2, 2, 3]);
    }

    #[test]
    fn steps_limit_both_directions() {
        let by = |instances, percent| Some(Step { instances, percent, period_ms: MINUTE_MS });
        let rules = ScaleRules { up_step: by(0, 900), ..FREE };
        assert_eq!(
            proposal(rules, 1, &[1_000, 1_000, 1_000]),
            [10, 100, 1_000],
            "KEP-853, story 1"
        );
        let rules = ScaleRules { up_step: by(1, 0), ..FREE };
        assert_eq!(proposal(rules, 1, &[9, 9, 9]), [2, 3, 4], "KEP-853, story 3");
        let rules = ScaleRules { down_step: by(4, 10), ..FREE };
        assert_eq!(
            proposal(rules, 80, &[1, 1, 1]),
            [72, 64, 57],
            "10 % rounded up, while that is more than 4"
        );
        assert_eq!(proposal(rules, 40, &[1, 1, 1]), [36, 32, 28], "then 4 at a time");
    }

    #[test]
    fn a_step_is_shared_by_all_changes_of_its_period() {
        let rules = ScaleRules {
            up_step: Some(Step { instances: 4, percent: 0, period_ms: 10_000 }),
            ..FREE
        };
        let mut limiter = Limiter::new(rules);
        assert_eq!(limiter.limit(0, 1, 4, BUSY).0, 4);
        assert_eq!(limiter.limit(5_000, 4, 9, BUSY).0, 5);
        assert_eq!(limiter.limit(10_000, 5, 9, BUSY).0, 8, "the first three are a period ago");
    }

    #[test]
    fn bringing_back_what_was_lost_is_no_step_and_no_change() {
        let step = Some(Step { instances: 1, percent: 0, period_ms: MINUTE_MS });
        let mut limiter =
            Limiter::new(ScaleRules { up_step: step, cooldown_ms: MINUTE_MS, ..FREE });
        assert_eq!(limiter.limit(0, 5, 5, BUSY).0, 5);
        for second in 1..100 {
            assert_eq!(
                limiter.limit(second * 1_000, 2, 5, BUSY).0,
                5,
                "they end as soon as they start"
            );
        }
        assert_eq!(limiter.limit(100_000, 2, 9, BUSY).0, 6, "one more than five");
        assert_eq!(limiter.changes.len(), 1);
    }

    #[test]
    fn what_was_wanted_again_after_a_pause_stays_as_long_next_time() {
        let rules = ScaleRules { down_window_ms: MINUTE_MS, hold_ms: 5 * MINUTE_MS, ..FREE };
        let wave = [8, 2, 2, 2, 8, 2, 2, 2, 8, 2, 2, 2, 2, 2, 2];
        assert_eq!(proposal(rules, 8, &wave), [8, 8, 2, 2, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 2]);
        let rules = ScaleRules { hold_ms: 2 * MINUTE_MS, ..rules };
        assert_eq!(
            proposal(rules, 8, &wave[..9]),
            [8, 8, 2, 2, 8, 8, 2, 2, 8],
            "a longer pause is none"
        );
        let rules = ScaleRules { hold_ms: 0, ..rules };
        assert_eq!(proposal(rules, 8, &wave[..9]), [8, 8, 2, 2, 8, 8, 2, 2, 8]);
    }

    #[test]
    fn only_as_many_are_held_as_came_back() {
        let rules = ScaleRules { down_window_ms: MINUTE_MS, hold_ms: 9 * MINUTE_MS, ..FREE };
        let wave = [20, 2, 2, 2, 5, 2, 2, 2, 2];
        assert_eq!(proposal(rules, 20, &wave), [20, 20, 2, 2, 5, 5, 5, 5, 5], "twenty came once");
    }

    #[test]
    fn what_was_seen_to_return_is_forgotten() {
        let rules = ScaleRules { down_window_ms: MINUTE_MS, hold_ms: 5 * MINUTE_MS, ..FREE };
        let mut limiter = Limiter::new(rules);
        let mut current = 8;
        for (minute, wanted) in [(0, 8), (1, 2), (2, 2), (4, 8), (5, 2), (60, 8), (61, 2), (63, 2)]
        {
            current = limiter.limit(minute * MINUTE_MS, current, wanted, BUSY).0;
        }
        assert_eq!(
            (current, limiter.returns.len()),
            (2, 0),
            "an hour later it is a burst like any other"
        );
    }

    #[test]
    fn a_few_less_are_no_reason_to_change() {
        let rules = ScaleRules { in_tolerance_percent: 10, min: 17, ..FREE };
        assert_eq!(proposal(rules, 20, &[19, 18, 19]), [20, 18, 19]);
        assert_eq!(
            proposal(rules, 18, &[17]),
            [17],
            "the least that there may be is none of these"
        );
    }

    #[test]
    fn nothing_is_stopped_right_after_a_change() {
        let rules = ScaleRules { cooldown_ms: 2 * MINUTE_MS, ..FREE };
        assert_eq!(proposal(rules, 1, &[5, 1, 1, 1]), [5, 5, 1, 1]);
    }

    #[test]
    fn the_last_instance_stays_while_there_is_or_may_be_work() {
        let rules = ScaleRules { zero_after_ms: 5_000, ..FREE };
        let number =
            |idle_ms, backlog| Limiter::new(rules).limit(0, 1, 0, Traffic { idle_ms, backlog }).0;
        assert_eq!(number(4_999, 0), 1);
        assert_eq!(number(60_000, 1), 1);
        assert_eq!(number(5_000, 0), 0);
    }

    #[test]
    fn spares_are_kept_while_anything_is() {
        let rules = ScaleRules { warm_spares: 2, max: 5, ..FREE };
        assert_eq!(proposal(rules, 1, &[2, 4]), [4, 5]);
        let idle = Traffic { idle_ms: 1, backlog: 0 };
        assert_eq!(Limiter::new(rules).limit(0, 0, 0, idle).0, 0);
    }

    proptest! {
        #[test]
        fn bounds_are_never_broken(
            min in 0_u32..20, more in 0_u32..50, spares in 0_u32..5,
            windows in (0_u64..20_000, 0_u64..20_000, 0_u64..20_000),
            steps in (prop::option::of((0_u32..5, 0_u32..300)), prop::option::of((0_u32..5, 0_u32..300))),
            proposal in prop::collection::vec((0_u64..5_000, any::<u32>(), 0_u32..100), 1..100),
        ) {
            let step = |step: Option<(u32, u32)>| {
                step.map(|(instances, percent)| Step { instances, percent, period_ms: 3_000 })
            };
            let rules = ScaleRules {
                min, max: min + more, warm_spares: spares,
                up_window_ms: windows.0, down_window_ms: windows.1, cooldown_ms: windows.2,
                up_step: step(steps.0), down_step: step(steps.1), zero_after_ms: 0,
                hold_ms: windows.0 * 3, in_tolerance_percent: spares * 10,
            };
            let mut limiter = Limiter::new(rules);
            let mut now_ms = 0;
            for (pause, wanted, current) in proposal {
                now_ms += pause;
                let (number, _) = limiter.limit(now_ms, current, wanted, BUSY);
                prop_assert!((rules.min..=rules.max.max(1)).contains(&number));
            }
        }
    }
}
