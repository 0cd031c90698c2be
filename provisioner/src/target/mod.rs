//! One target at work: observe, decide, set.

mod known;
mod open;

use std::time::Duration;

use natsway_boot::Clock;
use tracing::{info, warn};

use self::known::Known;
use crate::backend::{self, Backend, BackendError, Instance};
use crate::config::TargetConfig;
use crate::controller::Controller;
use crate::decision::{Decision, Direction};
use crate::renewal::{Renewal, Step};
use crate::restarts::Restarts;
use crate::roll_call::{self, RollCall};
use crate::sample::{Fault, Fleet};
use crate::scale::Limit;
use crate::signal::Signal;

/// How long a backend may take for one poll or one change; what takes longer is tried again.
const BACKEND_WITHIN: Duration = Duration::from_secs(20);

/// Of so many instances one is stopped at a time because it does not answer; of fewer, one.
const SILENT_SHARE: usize = 4;

/// A signal, a controller and a backend.
pub struct ScaleTarget {
    name: String,
    signal: Box<dyn Signal>,
    controller: Controller,
    backend: Box<dyn Backend>,
    restarts: Restarts,
    roll: RollCall,
    /// Polls in a row without an answer after which an instance counts no more.
    silent_after: u32,
    /// The bounds, for renewals.
    bounds: (u32, u32),
    /// Whether one more was started than was decided on, in the place of one that is outdated.
    has_spare: bool,
    /// Now, in milliseconds since the Unix epoch.
    now: Box<dyn Fn() -> u64 + Send>,
    last_fleet: Fleet,
    is_frozen: bool,
    /// Those that count no more, as the log has said it.
    silent: Vec<String>,
    /// What was tried last and why it was not done, so that the log says it once.
    refused: Option<(u32, u32, String)>,
}

impl ScaleTarget {
    fn set_limits(&mut self, config: &TargetConfig) {
        let scale = config.rules().scale;
        (self.bounds, self.silent_after) = ((scale.min, scale.max), config.silent_after());
    }

    /// A target of parts of one's own. Nobody is missed, and nothing is renewed.
    pub fn new(controller: Controller, signal: Box<dyn Signal>, backend: Box<dyn Backend>) -> Self {
        let name = controller.target().to_owned();
        let clock = Clock::start();
        Self {
            name,
            signal,
            controller,
            backend,
            restarts: Restarts::default(),
            roll: RollCall::default(),
            silent_after: 0,
            bounds: (0, 0),
            has_spare: false,
            now: Box::new(move || crate::signal::now_ms(&clock)),
            last_fleet: Fleet::default(),
            is_frozen: false,
            silent: Vec::new(),
            refused: None,
        }
    }

    /// Takes other rules and policies.
    pub fn reload(&mut self, config: &TargetConfig) {
        self.controller.reload(config.rules(), config.policies());
        self.set_limits(config);
    }

    /// One poll: observes, decides, and sets what was decided. The decision says what was meant,
    /// and what stood in the way, which is tried again: starts ever more rarely, the rest at the
    /// next poll.
    pub async fn step(&mut self) -> Decision {
        let instances = match within(self.backend.instances()).await {
            Ok(instances) => instances,
            Err(error) => {
                let fault = Fault::Missing(format!("the backend does not say what runs: {error}"));
                let decision = self.controller.freeze(self.now_ms(), self.last_fleet, fault);
                self.note_freezing(&decision);
                return decision;
            }
        };
        self.note_restarts(&instances);
        let poll = self.signal.poll().await;
        let now_ms = self.now_ms();
        let answers = self.signal.answers();
        let is_asking = answers.is_some();
        let (standings, attendance) =
            self.roll.take(now_ms, &instances, answers, self.silent_after);
        let known = Known { instances, standings, attendance };
        let present = known.fleet();
        // The decision is about those that are meant to stay.
        let mut fleet = present;
        if self.has_spare {
            let counted = if fleet.starting > 0 { &mut fleet.starting } else { &mut fleet.ready };
            self.has_spare = *counted > 0;
            *counted = counted.saturating_sub(1);
        }
        self.last_fleet = fleet;
        let poll = match poll {
            Err(_) if is_asking && known.nobody_answers() => {
                Err(Fault::Silence { instances: fleet.silent })
            }
            poll => poll,
        };
        let mut decision = self.controller.decide(now_ms, fleet, poll);
        decision.attendance =
            (is_asking || !known.attendance.silent.is_empty()).then(|| known.attendance.clone());
        self.note_freezing(&decision);
        self.note_silence(&known);
        if decision.to != decision.from {
            self.carry_out(&mut decision, &known).await;
        } else if decision.frozen.is_none() {
            self.renew(&mut decision, &known, present).await;
        }
        self.stop_silent(&mut decision, &known).await;
        decision
    }

    /// Stops instances that count no more, while others answer or it is known that they are frozen.
    /// A few at a time, and none while their successors start: what makes many silent may pass.
    async fn stop_silent(&mut self, decision: &mut Decision, known: &Known) {
        if !self.backend.stops_whom_it_is_told() || known.fleet().starting > 0 {
            return;
        }
        let somebody = known.attendance.somebody_answers();
        let most = (known.instances.len() / SILENT_SHARE).max(1);
        let may_go = known.attendance.silent.iter().filter(|absent| somebody || absent.is_frozen);
        let silent: Vec<String> = may_go.take(most).map(|absent| absent.instance.clone()).collect();
        match within(backend::change(&mut *self.backend, 0, &silent)).await {
            Ok(()) => self.restarts.changed(silent.len() as u32, 0),
            Err(error) => {
                decision.obstacle.get_or_insert(error.to_string());
            }
        }
    }

    /// Takes the next step in replacing instances that were started by other rules.
    async fn renew(&mut self, decision: &mut Decision, known: &Known, present: Fleet) {
        let outdated: Vec<String> = known.outdated();
        if outdated.is_empty() {
            self.has_spare = false;
            return;
        }
        let now_ms = self.now_ms();
        let next = Renewal {
            outdated: outdated.len() as u32,
            present: present.present(),
            starting: present.starting,
            wanted: decision.to,
            min: self.bounds.0,
            max: self.bounds.1,
            has_spare: self.has_spare,
            is_paused: self.restarts.pause(now_ms).is_some(),
        };
        decision.renewal = Some(format!(
            "{} of {} instances were started by another command or environment; they are replaced \
             one at a time",
            outdated.len(),
            present.present(),
        ));
        let done = match next.next() {
            Step::Wait => return,
            Step::Start => within(backend::change(&mut *self.backend, 1, &[])).await,
            Step::Stop => within(backend::change(&mut *self.backend, 0, &outdated[..1])).await,
        };
        match (done, next.next()) {
            (Ok(()), Step::Start) => {
                self.restarts.changed(0, 1);
                self.has_spare = true;
            }
            (Ok(()), _) => {
                info!(target_name = %self.name, left = outdated.len() - 1, "outdated instance told to stop");
                self.restarts.changed(1, 0);
                self.has_spare = false;
            }
            (Err(error), step) => {
                let error = error.to_string();
                decision.obstacle = Some(match step {
                    Step::Start => self.restarts.refused(now_ms).describe(now_ms, Some(&error)),
                    _ => error,
                });
            }
        }
    }

    /// Says once of each instance that it counts no more.
    fn note_silence(&mut self, known: &Known) {
        let silent: Vec<String> =
            known.attendance.silent.iter().map(|absent| absent.instance.clone()).collect();
        for instance in silent.iter().filter(|id| !self.silent.contains(id)) {
            warn!(target_name = %self.name, %instance, polls = self.silent_after, "does not answer, counts no more");
        }
        self.silent = silent;
    }

    /// Says once that nothing can be decided, and once that it can again.
    fn note_freezing(&mut self, decision: &Decision) {
        let is_frozen = decision.direction() == Direction::Frozen;
        match &decision.frozen {
            // Every beginning is so.
            Some(Fault::WarmingUp) => return,
            Some(fault) if !self.is_frozen => {
                warn!(target_name = %self.name, %fault, "nothing can be decided, as many as were \
                                                         decided on stay");
            }
            None if self.is_frozen => info!(target_name = %self.name, "decided again"),
            _ => {}
        }
        self.is_frozen = is_frozen;
    }

    fn note_restarts(&mut self, instances: &[Instance]) {
        let now_ms = self.now_ms();
        if let Some(failures) = self.restarts.observe(now_ms, instances) {
            warn!(target_name = %self.name, reason = %failures.describe(now_ms, None), "not started for now");
        }
    }

    /// Starts or stops instances, and notes what stood in the way.
    async fn carry_out(&mut self, decision: &mut Decision, known: &Known) {
        let Decision { from, to, .. } = *decision;
        let now_ms = self.now_ms();
        if let Some(failures) = self.restarts.pause(now_ms).filter(|_| to > from) {
            let error = self.refused.as_ref().map(|refused| refused.2.as_str());
            decision.obstacle = Some(failures.describe(now_ms, error));
            return;
        }
        let refused = self.refused.take();
        let is_news = refused
            .as_ref()
            .is_none_or(|(last_from, last_to, _)| (from, to) != (*last_from, *last_to));
        if is_news {
            let reason = decision.reason();
            info!(target_name = %self.name, from, to, direction = %decision.direction(), %reason, "scaling");
        }
        let spare = u32::from(self.has_spare);
        let stop = roll_call::surplus(&known.instances, &known.standings, to.saturating_add(spare));
        match within(backend::change(&mut *self.backend, to.saturating_sub(from), &stop)).await {
            Ok(()) => self.restarts.changed(from, to),
            Err(error) if error.is_floor() => {
                // As few as this backend can do is as few as there shall be.
                decision.limits.push(Limit {
                    rule: "backend".to_owned(),
                    from: to,
                    to: from,
                    because: error.to_string(),
                });
                self.refused = Some((from, to, error.to_string()));
                decision.to = from;
            }
            Err(error) => {
                let error = error.to_string();
                if refused.is_none_or(|(.., last)| last != error) {
                    warn!(target_name = %self.name, %error, "not scaled, it will be tried again");
                }
                self.refused = Some((from, to, error.clone()));
                decision.obstacle = Some(match to > from {
                    true => self.restarts.refused(now_ms).describe(now_ms, Some(&error)),
                    false => error,
                });
            }
        }
    }

    fn now_ms(&self) -> u64 {
        (self.now)()
    }
}

async fn within<T>(work: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
    match tokio::time::timeout(BACKEND_WITHIN, work).await {
        Ok(done) => done,
        Err(_) => Err(BackendError::new("backend", format!("not done within {BACKEND_WITHIN:?}"))),
    }
}

#[cfg(test)]
mod tests;
