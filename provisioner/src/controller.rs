//! From a poll at a target to a decision: the whole core in one pure type.

use crate::decision::{Decision, PolicyAnswer};
use crate::policy::{Policy, View};
use crate::sample::{Fault, Fleet, Sample};
use crate::scale::{Limiter, ScaleRules, Traffic};
use crate::service_rate::ServiceRate;
use crate::startup::StartupEstimator;
use crate::window::{Window, WindowRules};

/// What a controller is told about its target.
#[derive(Clone, Debug, PartialEq)]
pub struct ControllerRules {
    /// How polls are kept and believed.
    pub window: WindowRules,
    /// How long an instance takes to start, in seconds, until one was seen to: growing arrivals are
    /// planned for so far ahead.
    pub lead_s: f64,
    /// Messages a second of one instance to begin with, if that is known.
    pub service_rate: Option<f64>,
    /// Messages that one instance handles at a time.
    pub concurrency: f64,
    /// Messages that one instance takes at a time, where the configuration says it; otherwise as
    /// instances say themselves.
    pub slots: Option<f64>,
    /// Messages that one instance fetches ahead.
    pub prefetch: u32,
    /// A load this close to what the present instances are for is no reason to change: 0.1 is 10 %.
    pub tolerance: f64,
    /// The limiting rules.
    pub scale: ScaleRules,
}

/// Decides about one target.
pub struct Controller {
    target: String,
    rules: ControllerRules,
    policies: Vec<Box<dyn Policy>>,
    window: Window,
    service_rate: ServiceRate,
    limiter: Limiter,
    decided: Option<u32>,
    last_ready: u32,
    starts: StartupEstimator,
    learned_until_ms: u64,
    /// Since when nothing has waited, while the rate of an instance is not known.
    quiet_since_ms: Option<u64>,
}

impl Controller {
    /// A controller that has seen nothing. At least one policy should be given; without any, it
    /// holds.
    pub fn new(
        target: impl Into<String>,
        rules: ControllerRules,
        policies: Vec<Box<dyn Policy>>,
    ) -> Self {
        Self {
            target: target.into(),
            window: Window::new(rules.window),
            service_rate: ServiceRate::starting_at(rules.service_rate),
            limiter: Limiter::new(rules.scale),
            rules,
            policies,
            decided: None,
            last_ready: 0,
            starts: StartupEstimator::default(),
            learned_until_ms: 0,
            quiet_since_ms: None,
        }
    }

    /// Other rules and policies from now on. What was seen and learned stays, so a reload is no
    /// restart.
    pub fn reload(&mut self, rules: ControllerRules, policies: Vec<Box<dyn Policy>>) {
        self.limiter.set_rules(rules.scale);
        self.window.set_rules(rules.window);
        self.policies = policies;
        self.rules = rules;
    }

    /// The target's name.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What the last decision set, if there was one.
    pub fn decided(&self) -> Option<u32> {
        self.decided
    }

    /// Decides how many instances there shall be.
    ///
    /// Within the bounds always. A poll that cannot be acted on changes nothing: what was decided
    /// last stays.
    pub fn decide(&mut self, now_ms: u64, fleet: Fleet, poll: Result<Sample, Fault>) -> Decision {
        let sample = poll.as_ref().ok().cloned();
        self.starts.observe(now_ms, fleet);
        let mut decision = match self.window.push(now_ms, poll) {
            Err(fault) => self.freeze(now_ms, fleet, fault),
            Ok(()) => self.act(now_ms, fleet),
        };
        decision.sample = sample;
        self.last_ready = fleet.ready;
        self.decided = Some(decision.to);
        decision
    }

    /// The decision when nothing can be decided.
    pub fn freeze(&self, now_ms: u64, fleet: Fleet, fault: Fault) -> Decision {
        let from = fleet.present();
        let scale = self.limiter.rules();
        let decided = scale.bounded(self.decided.unwrap_or(from));
        // Where nobody answers, whether others would is tried with the fewest that there may be.
        let to = match fault {
            Fault::Silence { .. } => scale.min.max(1).max(from).min(decided.max(1)),
            _ => decided,
        };
        Decision {
            target: self.target.clone(),
            at_ms: now_ms,
            from,
            to,
            fleet,
            frozen: Some(fault),
            view: None,
            attendance: None,
            renewal: None,
            answers: Vec::new(),
            wanted: None,
            limits: Vec::new(),
            obstacle: None,
            sample: None,
        }
    }

    fn act(&mut self, now_ms: u64, fleet: Fleet) -> Decision {
        self.learn(fleet);
        let view = self.view(now_ms, fleet);
        let from = fleet.present();
        let mut answers = Vec::with_capacity(self.policies.len());
        for policy in &mut self.policies {
            let answer = policy.desire(&view);
            let instances = answer.instances(from, self.rules.tolerance);
            answers.push(PolicyAnswer {
                policy: policy.name().to_owned(),
                instances,
                because: answer.because,
            });
        }
        let wanted = answers.iter().filter_map(|answer| answer.instances).max();
        let (to, limits) = match wanted {
            Some(wanted) => {
                let traffic = Traffic { idle_ms: view.idle_ms(), backlog: view.backlog() };
                self.limiter.limit(now_ms, from, wanted, traffic)
            }
            None => (self.probe_capacity(now_ms, from, &view), Vec::new()),
        };
        Decision {
            target: self.target.clone(),
            at_ms: now_ms,
            from,
            to,
            fleet,
            frozen: None,
            view: Some(view),
            attendance: None,
            renewal: None,
            answers,
            wanted,
            limits,
            obstacle: None,
            sample: None,
        }
    }

    /// What to do when no policy can tell. The rate of an instance is learned from one that is
    /// busy; so there is one when there is work, and where nothing waits one goes now and then,
    /// until something does.
    fn probe_capacity(&mut self, now_ms: u64, from: u32, view: &View) -> u32 {
        let scale = *self.limiter.rules();
        let least = scale.min.max(u32::from(view.backlog() > 0 || view.arrival_rate > 0.0));
        let with_spares = if least > 0 { least.saturating_add(scale.warm_spares) } else { 0 };
        let decided = self.decided.unwrap_or(from);
        let nothing_waits = self.window.newest().is_some_and(|sample| sample.waiting == Some(0));
        let quiet_since_ms = *self.quiet_since_ms.get_or_insert(now_ms);
        let mut to = decided;
        if !nothing_waits {
            self.quiet_since_ms = None;
        } else if now_ms.saturating_sub(quiet_since_ms) > scale.down_window_ms {
            self.quiet_since_ms = None;
            to = decided.saturating_sub(1);
        }
        scale.bounded(to.max(with_spares))
    }

    fn learn(&mut self, fleet: Fleet) {
        let Some((before, after)) = self.window.newest_pair() else { return };
        if after.at_ms > self.learned_until_ms {
            self.learned_until_ms = after.at_ms;
            // Those that became ready in between had not the whole time.
            let ready = if self.last_ready == fleet.ready { fleet.ready } else { 0 };
            self.service_rate.learn(before, after, ready, self.rules.concurrency);
        }
    }

    fn view(&self, now_ms: u64, fleet: Fleet) -> View {
        let window = &self.window;
        let newest = window.newest();
        let start_s = self.starts.start_s(self.rules.lead_s);
        let (waiting, in_hand) = self.unfinished(fleet);
        let arrival_rate = window.arrival_rate().unwrap_or(0.0) + window.arrival_growth() * start_s;
        View {
            now_ms,
            fleet,
            arrival_rate,
            completion_rate: window.completion_rate().unwrap_or(0.0),
            waiting,
            in_hand,
            waiting_pulls: newest.and_then(|sample| sample.waiting_pulls),
            service_rate: self.service_rate.per_second(),
            utilisation: self.utilisation(fleet),
            refusal_rate: window.refusal_rate(),
            capacity: self.capacity(fleet),
            finished: window.finished(),
            refused: window.refused(),
            prefetch: self.rules.prefetch,
            start_s,
            started_s: self.starts.started_s(now_ms),
            count: window.count(),
            since_ms: window.since_ms().unwrap_or(now_ms),
            last_arrival_ms: window.last_arrival_ms(),
        }
    }

    /// Messages that the instances take at a time: as many as the configuration says, or else as
    /// they say themselves.
    fn capacity(&self, fleet: Fleet) -> Option<u64> {
        let said = self.rules.slots.map(|slots| (f64::from(fleet.ready) * slots) as u64);
        said.or_else(|| self.window.newest()?.capacity)
    }

    /// Messages that wait, and those that instances hold. Where nobody counts those that wait, they
    /// are what is out beyond what the instances take at a time.
    fn unfinished(&self, fleet: Fleet) -> (u64, u64) {
        let Some(sample) = self.window.newest() else { return (0, 0) };
        let in_hand = sample.in_hand.unwrap_or(0);
        if let Some(waiting) = sample.waiting {
            return (waiting, in_hand);
        }
        let held = self.capacity(fleet).map_or(in_hand, |capacity| in_hand.min(capacity));
        (in_hand - held, held)
    }

    fn utilisation(&self, fleet: Fleet) -> Option<f64> {
        let busy_ms_per_second = self.window.busy_rate()?;
        let capacity_ms_per_second = f64::from(fleet.ready) * self.rules.concurrency * 1_000.0;
        (capacity_ms_per_second > 0.0)
            .then(|| (busy_ms_per_second / capacity_ms_per_second).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Answer, Lag, Rate, Utilisation};
    use crate::scale::Step;

    pub(crate) fn rules() -> ControllerRules {
        ControllerRules {
            window: WindowRules { span_ms: 5_000, stale_after_ms: 5_000 },
            lead_s: 0.0,
            service_rate: Some(100.0),
            concurrency: 1.0,
            slots: None,
            prefetch: 0,
            tolerance: 0.0,
            scale: ScaleRules::between(1, 10),
        }
    }

    fn controller() -> Controller {
        Controller::new("orders", rules(), vec![Box::new(Rate { target_utilisation: 1.0 })])
    }

    fn fleet(ready: u32) -> Fleet {
        Fleet { ready, ..Fleet::default() }
    }

    fn poll(second: u64, per_second: u64) -> Result<Sample, Fault> {
        let (arrived, completed) = (second * per_second, second * 90);
        Ok(Sample {
            at_ms: second * 1_000,
            arrived,
            completed,
            waiting: Some(0),
            ..Sample::default()
        })
    }

    #[test]
    fn one_message_between_two_polls_in_a_row_is_no_full_utilisation() {
        let policies: Vec<Box<dyn Policy>> =
            vec![Box::new(Utilisation { target_utilisation: 0.8 })];
        let mut controller = Controller::new("orders", rules(), policies);
        let poll = |at_ms, busy_ms| {
            Ok(Sample { at_ms, busy_ms: Some(busy_ms), waiting: Some(0), ..Sample::default() })
        };
        for quarter in 0..8 {
            let decision =
                controller.decide(quarter * 250, fleet(1), poll(quarter * 250, quarter * 10));
            assert_eq!(decision.to, 1, "{decision}");
        }
        // An instance ended, so it is polled again at once; what a message took is counted when it
        // is finished.
        let decision = controller.decide(1_772, fleet(1), poll(1_772, 95));
        assert_eq!(decision.to, 1, "{decision}");
    }

    #[test]
    fn the_first_poll_changes_nothing_and_the_second_decides() {
        let mut controller = controller();
        let first = controller.decide(0, fleet(1), poll(0, 450));
        assert_eq!((first.to, first.frozen), (1, Some(Fault::WarmingUp)));
        let second = controller.decide(1_000, fleet(1), poll(1, 450));
        assert_eq!((second.to, second.direction()), (5, crate::decision::Direction::Out));
    }

    #[test]
    fn missing_data_holds_what_was_decided_even_when_instances_die() {
        let mut controller = controller();
        controller.decide(0, fleet(1), poll(0, 450));
        controller.decide(1_000, fleet(1), poll(1, 450));
        let frozen = controller.decide(2_000, fleet(3), Err(Fault::Missing("no answer".into())));
        assert_eq!(
            (frozen.from, frozen.to),
            (3, 5),
            "five were decided on, and two of them are gone"
        );
        assert!(frozen.to_string().contains("frozen         missing: no answer"), "{frozen}");
    }

    #[test]
    fn where_nobody_answers_the_fewest_are_started_beside_them_and_no_more() {
        let mut controller = controller();
        controller.decide(0, fleet(1), poll(0, 450));
        assert_eq!(controller.decide(1_000, fleet(1), poll(1, 450)).to, 5);
        let silence = || Err(Fault::Silence { instances: 5 });
        let silent = Fleet { silent: 5, ..Fleet::default() };
        assert_eq!(controller.decide(2_000, silent, silence()).to, 1);
        let relieved = controller.decide(3_000, Fleet { starting: 1, ..silent }, silence());
        assert_eq!((relieved.from, relieved.to), (1, 1));
        assert!(relieved.reason().contains("5 instances have ceased to answer"), "{relieved}");
    }

    #[test]
    fn bounds_need_no_data() {
        let frozen = controller().decide(0, fleet(0), Err(Fault::Missing("nothing".into())));
        assert_eq!(frozen.to, 1);
    }

    #[test]
    fn the_largest_answer_wins_and_the_explanation_names_it() {
        let mut rules = rules();
        rules.scale.up_step = Some(Step { instances: 2, percent: 0, period_ms: 1_000 });
        let lag = Lag { target_utilisation: 1.0, drain_s: 1.0 };
        let policies: Vec<Box<dyn Policy>> =
            vec![Box::new(Rate { target_utilisation: 1.0 }), Box::new(lag)];
        let mut controller = Controller::new("orders", rules, policies);
        let with_lag = |second| {
            poll(second, 100).map(|sample| Sample {
                waiting: Some(500),
                completed: second * 100,
                ..sample
            })
        };
        controller.decide(0, fleet(1), with_lag(0));
        let decision = controller.decide(1_000, fleet(1), with_lag(1));
        assert_eq!((decision.wanted, decision.to), (Some(6), 3));
        let text = decision.to_string();
        assert!(text.contains("orders: 1 -> 3 (out)"), "{text}");
        assert!(text.contains("step           6 -> 3  2 at the most within 1000 ms"), "{text}");
        assert!(
            decision.reason().starts_with("lag: 1.0 to carry 100.0/s"),
            "{}",
            decision.reason()
        );
    }

    #[test]
    fn an_unlearned_rate_is_learned_from_one_instance() {
        let unlearned = ControllerRules { service_rate: None, ..rules() };
        let mut controller =
            Controller::new("orders", unlearned, vec![Box::new(Rate { target_utilisation: 1.0 })]);
        let behind = |second: u64| {
            let waiting = Some(200 * second + 1);
            Ok(Sample {
                arrived: second * 300,
                completed: second * 100,
                waiting,
                at_ms: second * 1_000,
                ..Sample::default()
            })
        };
        controller.decide(0, fleet(1), behind(0));
        controller.decide(1_000, fleet(1), behind(1));
        assert_eq!(controller.decide(2_000, fleet(1), behind(2)).to, 3);
    }

    #[test]
    fn too_many_to_learn_from_go_one_by_one() {
        let mut rules = ControllerRules { service_rate: None, ..rules() };
        rules.scale.down_window_ms = 3_000;
        let mut controller =
            Controller::new("orders", rules, vec![Box::new(Rate { target_utilisation: 1.0 })]);
        let trajectory: Vec<u32> =
            (0..10).map(|s| controller.decide(s * 1_000, fleet(5), poll(s, 90)).to).collect();
        assert_eq!(trajectory, [5, 5, 5, 5, 5, 4, 4, 4, 4, 4]);
    }

    #[test]
    fn spares_do_not_add_up_while_nobody_can_tell() {
        let mut rules = ControllerRules { service_rate: None, ..rules() };
        rules.scale.warm_spares = 2;
        let mut controller =
            Controller::new("orders", rules, vec![Box::new(Rate { target_utilisation: 1.0 })]);
        let mut instances = 1;
        for second in 0..10 {
            instances = controller.decide(second * 1_000, fleet(instances), poll(second, 90)).to;
        }
        assert_eq!(instances, 3);
    }

    #[test]
    fn a_reload_keeps_what_was_learned_and_decided() {
        struct Nobody;
        impl Policy for Nobody {
            fn name(&self) -> &'static str {
                "nobody"
            }
            fn desire(&mut self, _: &View) -> Answer {
                Answer::none("never")
            }
        }
        let mut controller = controller();
        controller.decide(0, fleet(1), poll(0, 450));
        controller.decide(1_000, fleet(1), poll(1, 450));
        controller.reload(rules(), vec![Box::new(Nobody)]);
        assert_eq!(controller.decide(2_000, fleet(5), poll(2, 450)).to, 5);
    }
}
