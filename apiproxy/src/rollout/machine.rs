//! What a rollout does next: pure. Its state is in the route's document; what can be seen and how
//! long it has been so are arguments; what is to be done comes out. Whoever drives does it and asks
//! again.

use std::time::Duration;

use natsway_routes::document::RouteDocument;
use natsway_routes::rollout::{Phase, Rollout, Strategy};
use natsway_wire::frame::LEASE;

use super::analysis::{AnalysisResult, Window, control, judge};

/// A sender that has not been heard of for so long is silent: three reports.
const SILENT: Duration = Duration::from_secs(3);

/// How long a drain waits for silent senders. They may be gone; if one is only frozen, what it
/// still sends when it wakes is answered `moved` by the others, so that nothing is lost. Shorter
/// than the broker takes to drop a frozen client.
const SILENCE_LIMIT: Duration = Duration::from_secs(4);

/// The same where requests may go by tunnels. On those nobody answers `moved`, so a drain waits
/// until the lease of whoever has not heard of it has run out.
const LEASE_LIMIT: Duration = LEASE.saturating_add(SILENCE_LIMIT);

/// Who began to listen later than this may not have heard of everybody yet: a report's period and a
/// half.
const LISTEN: Duration = Duration::from_millis(1_500);

/// How long the new version may take to answer the check.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// How long workers may take to leave: beyond their own drain timeout.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// In so many looks on end the new version must be slower. A pause of one machine makes a cluster
/// of slow requests that is no evidence against a version, and it passes.
const SLOW_POLLS: u32 = 3;

/// What the driver sees.
#[derive(Debug, Default)]
pub struct Observation<'s> {
    /// How long it has seen the rollout in this phase and step.
    pub in_phase: Duration,
    /// What both versions did meanwhile.
    pub window: Window,
    /// Polls on end, this one included, in which the new version was slower.
    pub slow_polls: u32,
    /// How the last check ended, if one has.
    pub check: Option<&'s Result<String, String>>,
    /// For how long it has been listening to those who send requests.
    pub listened: Duration,
    /// Whether requests may go by tunnels, or might a while ago.
    pub uses_tunnels: bool,
    /// Everybody who sends requests.
    pub senders: &'s [Sender],
    /// The workers of the old version, once they were asked.
    pub workers: Option<Workers>,
}

/// What is known of the workers of a version that were asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// So many have answered.
    There(usize),
    /// None has answered in time, and the broker knows some, or cannot say: they may be frozen, or
    /// slow.
    Silent,
    /// The broker says that nobody listens there.
    Gone,
}

/// Somebody who sends requests, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// What people call it.
    pub name: String,
    /// The routes by which all of it goes; `None` until everything that it counts was heard.
    pub revision: Option<u64>,
    /// It goes by an earlier document of this route, because it refuses the newest.
    pub refuses: bool,
    /// Since when nothing was heard of it.
    pub silent: Duration,
    /// Its attempts with the version that is being left.
    pub in_flight: i64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// See whether the new version answers.
    Check,
    /// Ask all senders where they are.
    AskSenders,
    /// Ask the workers of the old version to leave, and count those that are there.
    AskToLeave,
    /// Write the document over the revision that it was decided on.
    Write(Box<RouteDocument>),
}

/// Judges a canary's window; `None` in other phases.
pub fn verdict(rollout: &Rollout, window: &Window) -> Option<AnalysisResult> {
    let before = rollout.control.as_ref().filter(|_| rollout.percent() == 100);
    (rollout.phase == Phase::Canary).then(|| judge(window, before, &rollout.criteria))
}

/// What to do about a document that is at `revision`.
pub fn next(
    document: &RouteDocument,
    revision: u64,
    observation: &Observation<'_>,
    now_unix_ms: u64,
) -> Option<Action> {
    let rollout = document.rollout.as_ref()?;
    let step = Step { document, rollout, now_unix_ms };
    match rollout.phase {
        Phase::Checking => step.checking(observation),
        Phase::Canary => step.canary(observation),
        Phase::Draining | Phase::Reverting => step.draining(revision, observation),
        Phase::Stopping => step.stopping(revision, observation),
        Phase::Promoted | Phase::RolledBack | Phase::Refused => None,
    }
}

/// Takes a rollout back, for whatever reason.
pub fn revert(
    document: &RouteDocument,
    reason: String,
    window: &Window,
    now_unix_ms: u64,
) -> RouteDocument {
    rewritten(document, now_unix_ms, |rollout| {
        expose(rollout, window);
        rollout.phase = Phase::Reverting;
        rollout.reason = Some(reason.clone());
        format!("back to {}: {reason}", rollout.from)
    })
}

/// Gives all traffic to the new version.
pub fn switch(
    document: &RouteDocument,
    why: &str,
    window: &Window,
    now_unix_ms: u64,
) -> RouteDocument {
    rewritten(document, now_unix_ms, |rollout| {
        expose(rollout, window);
        rollout.phase = Phase::Draining;
        format!("all traffic to {}: {why}", rollout.to)
    })
}

/// The document with its rollout changed and its weights as that has them.
fn rewritten(
    document: &RouteDocument,
    now_unix_ms: u64,
    change: impl FnOnce(&mut Rollout) -> String,
) -> RouteDocument {
    let mut next = document.clone();
    let Some(rollout) = &mut next.rollout else { return next };
    let what = change(rollout);
    rollout.note(now_unix_ms, what);
    let (from, to) = (rollout.from.clone(), rollout.to.clone());
    let percent = rollout.percent();
    // Without a step forward there is nothing to change: a check that fails leaves the weights
    // alone.
    if !matches!(rollout.phase, Phase::Checking | Phase::Refused) {
        next.set_weight(&to, percent);
        next.set_weight(&from, 100 - percent);
    }
    next
}

fn expose(rollout: &mut Rollout, window: &Window) {
    let exposure = &mut rollout.exposure;
    exposure.requests += window.old.requests() + window.new.requests();
    exposure.new_requests += window.new.requests();
    exposure.new_errors += window.new.errors;
}

/// One decision.
struct Step<'d> {
    document: &'d RouteDocument,
    rollout: &'d Rollout,
    now_unix_ms: u64,
}

impl Step<'_> {
    fn write(&self, change: impl FnOnce(&mut Rollout) -> String) -> Option<Action> {
        Some(Action::Write(Box::new(rewritten(self.document, self.now_unix_ms, change))))
    }

    fn checking(&self, observation: &Observation<'_>) -> Option<Action> {
        match observation.check {
            None => Some(Action::Check),
            Some(Ok(_)) if self.rollout.paused => None,
            Some(Ok(what)) => self.write(|rollout| match rollout.strategy {
                Strategy::BlueGreen => {
                    rollout.phase = Phase::Draining;
                    format!("{what}; all traffic to {}", rollout.to)
                }
                Strategy::Canary => {
                    rollout.phase = Phase::Canary;
                    format!("{what}; {} % to {}", rollout.percent(), rollout.to)
                }
            }),
            Some(Err(_)) if observation.in_phase < CHECK_LIMIT => Some(Action::Check),
            Some(Err(reason)) => self.write(|rollout| {
                rollout.phase = Phase::Refused;
                rollout.reason = Some(reason.clone());
                format!("{} does not answer: {reason}", rollout.to)
            }),
        }
    }

    fn canary(&self, observation: &Observation<'_>) -> Option<Action> {
        let (hold, patience) =
            (self.rollout.steps[self.rollout.step].hold, self.rollout.criteria.patience);
        let is_held = observation.in_phase >= hold;
        let is_over = observation.in_phase >= hold + patience;
        match verdict(self.rollout, &observation.window)? {
            worse @ AnalysisResult::MoreErrors(_) => self.back(worse.to_string(), observation),
            slower @ AnalysisResult::Slower(_) if observation.slow_polls >= SLOW_POLLS => {
                self.back(slower.to_string(), observation)
            }
            AnalysisResult::Sound if is_held && !self.rollout.paused => {
                Some(self.forward(observation))
            }
            doubt @ (AnalysisResult::TooFew { .. }
            | AnalysisResult::Doubtful(_)
            | AnalysisResult::Slower(_))
                if is_over && !self.rollout.paused =>
            {
                self.back(format!("{doubt}, for {:?}", hold + patience), observation)
            }
            _ => None,
        }
    }

    fn back(&self, reason: String, observation: &Observation<'_>) -> Option<Action> {
        Some(Action::Write(Box::new(revert(
            self.document,
            reason,
            &observation.window,
            self.now_unix_ms,
        ))))
    }

    fn forward(&self, observation: &Observation<'_>) -> Action {
        let next = self.rollout.step + 1;
        if next == self.rollout.steps.len() {
            let switched = switch(
                self.document,
                "every step was sound",
                &observation.window,
                self.now_unix_ms,
            );
            return Action::Write(Box::new(switched));
        }
        let stepped = rewritten(self.document, self.now_unix_ms, |rollout| {
            expose(rollout, &observation.window);
            rollout.control = Some(control(&observation.window.old, rollout.control.as_ref()));
            rollout.step = next;
            format!("{} % to {}", rollout.percent(), rollout.to)
        });
        Action::Write(Box::new(stepped))
    }

    /// Waits until everybody goes by the new weights and nothing is out to the version that is
    /// being left.
    fn draining(&self, revision: u64, observation: &Observation<'_>) -> Option<Action> {
        if self.must_wait(revision, observation) || may_hold_leases(observation) {
            return Some(Action::AskSenders);
        }
        let undone = observation.senders.iter().filter(|sender| !self.is_done(sender, revision));
        let behind: Vec<String> = undone.filter_map(|sender| behind(sender, revision)).collect();
        self.write(|rollout| {
            rollout.behind = behind;
            let left = rollout.retired().unwrap_or_default().to_owned();
            let is_ruled = self.is_ruled();
            rollout.phase = match rollout.phase {
                Phase::Reverting => Phase::RolledBack,
                _ if rollout.stop_old => Phase::Stopping,
                _ => Phase::Promoted,
            };
            match rollout.behind.len() {
                _ if is_ruled => {
                    format!(
                        "the weights send nothing to {left} any more, but a rule does: keep it \
                             running"
                    )
                }
                0 => format!("nothing is in flight to {left} any more: it may be stopped"),
                count => format!(
                    "nothing is in flight to {left} any more, but {count} silent may wake: see \
                     behind"
                ),
            }
        })
    }

    /// It goes by these routes or newer ones, and nothing that went by older ones is out.
    fn is_done(&self, sender: &Sender, revision: u64) -> bool {
        // Where a rule goes on sending requests something is always out.
        let has_none_out = sender.in_flight <= 0 || self.is_ruled();
        !sender.refuses && sender.revision.is_some_and(|its| its >= revision) && has_none_out
    }

    /// Whether a rule still sends requests to the version that was left.
    fn is_ruled(&self) -> bool {
        self.rollout.retired().is_some_and(|left| self.document.has_rule_for(left))
    }

    /// Whether somebody may still send to the version that is being left: whoever lives and is not
    /// done, and for a while whoever is silent. Who has not listened for long does not know.
    fn must_wait(&self, revision: u64, observation: &Observation<'_>) -> bool {
        let mut undone =
            observation.senders.iter().filter(|sender| !self.is_done(sender, revision)).peekable();
        let silence_limit = match observation.uses_tunnels && !self.has_drained() {
            true => LEASE_LIMIT,
            false => SILENCE_LIMIT,
        };
        observation.senders.is_empty()
            || observation.listened < LISTEN
            || (undone.peek().is_some() && observation.in_phase < silence_limit)
            || undone.any(|sender| sender.silent < SILENT)
    }

    /// Whether a drain was complete: who was silent has no lease any more.
    fn has_drained(&self) -> bool {
        self.rollout.phase == Phase::Stopping
    }

    /// Has the old workers leave, once everybody knows that they may: from then on every gateway
    /// stands in for them.
    fn stopping(&self, revision: u64, observation: &Observation<'_>) -> Option<Action> {
        let is_over = observation.in_phase >= STOP_LIMIT;
        let from = &self.rollout.from;
        let what = match observation.workers {
            None if self.must_wait(revision, observation) => return Some(Action::AskSenders),
            Some(Workers::Gone) => format!("the workers of {from} have left"),
            Some(Workers::There(count)) if is_over => {
                format!("{count} workers of {from} were asked to leave and did not")
            }
            Some(Workers::Silent) if is_over => {
                format!(
                    "the workers of {from} were asked to leave and say nothing: they may still be \
                     there"
                )
            }
            _ => return Some(Action::AskToLeave),
        };
        self.write(|rollout| {
            rollout.phase = Phase::Promoted;
            what
        })
    }
}

/// Whether somebody of whom nothing was heard may still go by tunnels by older routes: it was cut
/// off before whoever drives began to listen.
fn may_hold_leases(observation: &Observation<'_>) -> bool {
    observation.uses_tunnels && observation.listened.max(observation.in_phase) < LEASE_LIMIT
}

/// What to tell of a sender that is silent or goes by older routes than those of `revision`, or has
/// tries out by them.
pub fn behind(sender: &Sender, revision: u64) -> Option<String> {
    let Sender { name, revision: its, refuses, silent, in_flight } = sender;
    // It went silent, or is about to say more, before all that it has out was known, or before it
    // had read any routes.
    let its = its.filter(|its| *its > 0);
    if *silent >= SILENT {
        let seconds = silent.as_secs();
        let last = match its {
            Some(its) => format!("then at revision {its} with {in_flight} in flight"),
            None => "and had not told by which routes it goes".to_owned(),
        };
        return Some(format!("{name}: not heard of for {seconds} s, {last}"));
    }
    if *refuses {
        return Some(format!(
            "{name}: refuses the route's document and goes by an earlier one; its log says why"
        ));
    }
    match its {
        Some(its) => (its < revision).then(|| format!("{name}: at revision {its} of {revision}")),
        None => Some(format!("{name}: has not told yet by which routes it goes")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::{self, Plan};
    use super::*;

    const REVISION: u64 = 7;

    fn started() -> RouteDocument {
        let json = r#"{"name":"math","path":"/","target":[
            {"version":"blue","subject":"svc.math.blue","weight":100},
            {"version":"green","subject":"svc.math.green","weight":0}]}"#;
        let document = RouteDocument::from_json(json.as_bytes()).unwrap();
        let plan = Plan {
            to: "green".to_owned(),
            strategy: Strategy::BlueGreen,
            steps: Vec::new(),
            criteria: Default::default(),
            smoke: None,
            stop_old: false,
            take_over: false,
        };
        command::start(&document, plan, "r".to_owned(), 0).unwrap()
    }

    fn sender(name: &str, revision: u64, silent_s: u64, in_flight: i64) -> Sender {
        let (revision, silent) = (Some(revision), Duration::from_secs(silent_s));
        Sender { name: name.to_owned(), revision, refuses: false, silent, in_flight }
    }

    fn drain(senders: &[Sender], in_phase_s: u64) -> Option<Action> {
        let draining = switch(&started(), "now", &Window::default(), 0);
        next(
            &draining,
            REVISION,
            &Observation { in_phase: Duration::from_secs(in_phase_s), ..heard(senders) },
            0,
        )
    }

    /// What somebody sees who has listened to these for long.
    fn heard(senders: &[Sender]) -> Observation<'_> {
        Observation { listened: LISTEN, senders, ..Observation::default() }
    }

    fn written(action: Option<Action>) -> RouteDocument {
        match action {
            Some(Action::Write(document)) => *document,
            other => panic!("it writes: {other:?}"),
        }
    }

    #[test]
    fn a_drain_waits_for_everybody_who_lives_however_long() {
        let done = sender("done", REVISION, 0, 0);
        let refuses = Sender { refuses: true, ..sender("refuses the document", REVISION, 0, 0) };
        let unknown = Sender { revision: None, ..sender("told a part", REVISION, 0, 0) };
        let older = sender("older routes", REVISION - 1, 0, 0);
        for undone in [older, sender("one out", REVISION, 0, 1), refuses, unknown] {
            assert_eq!(drain(&[done.clone(), undone], 3_600), Some(Action::AskSenders));
        }
        assert_eq!(drain(&[], 3_600), Some(Action::AskSenders), "who hears nobody knows nothing");
        let promoted = written(drain(&[done], 0)).rollout.unwrap();
        assert_eq!((promoted.phase, promoted.behind.len()), (Phase::Promoted, 0));
    }

    #[test]
    fn a_drain_names_those_who_are_silent_and_goes_on() {
        let silent = sender("frozen", REVISION - 1, 9, 3);
        let senders = [sender("done", REVISION, 0, 0), silent];
        assert_eq!(drain(&senders, 1), Some(Action::AskSenders), "it may still come");
        let promoted = written(drain(&senders, 5)).rollout.unwrap();
        assert_eq!(promoted.phase, Phase::Promoted);
        assert!(
            promoted.behind[0].starts_with("frozen: not heard of for 9 s"),
            "{:?}",
            promoted.behind
        );
        // Silent, but it had said all that was to be known.
        let senders = [sender("gone", REVISION, 9, 0)];
        assert!(written(drain(&senders, 0)).rollout.unwrap().behind.is_empty());
    }

    #[test]
    fn where_requests_go_by_tunnels_a_drain_waits_for_the_leases_of_the_silent() {
        let draining = switch(&started(), "now", &Window::default(), 0);
        let poll = |senders: &[Sender], in_phase, listened| {
            let observation =
                Observation { in_phase, listened, uses_tunnels: true, ..heard(senders) };
            next(&draining, REVISION, &observation, 0)
        };
        let second = Duration::from_secs(1);
        let silent = [sender("done", REVISION, 0, 0), sender("cut off", REVISION - 1, 9, 3)];
        let before = LEASE_LIMIT - second / 10;
        assert_eq!(poll(&silent, before, 60 * second), Some(Action::AskSenders));
        let promoted = written(poll(&silent, LEASE_LIMIT, 60 * second)).rollout.unwrap();
        assert!(promoted.behind[0].starts_with("cut off: not heard of for 9 s"), "{promoted:?}");
        // Somebody may be there whom it has never heard.
        let done = [sender("done", REVISION, 0, 0)];
        assert_eq!(poll(&done, before, before), Some(Action::AskSenders));
        for (in_phase, listened) in [(second, LEASE_LIMIT), (LEASE_LIMIT, 2 * second)] {
            let promoted = written(poll(&done, in_phase, listened)).rollout.unwrap();
            assert_eq!(promoted.phase, Phase::Promoted);
        }
        // They had their time before the old workers are asked to leave.
        let mut stopping = draining.clone();
        stopping.rollout.as_mut().unwrap().phase = Phase::Stopping;
        let observation =
            Observation { in_phase: SILENCE_LIMIT, uses_tunnels: true, ..heard(&silent) };
        assert_eq!(next(&stopping, REVISION, &observation, 0), Some(Action::AskToLeave));
    }

    #[test]
    fn who_never_told_its_routes_is_not_said_to_go_by_some() {
        for revision in [None, Some(0)] {
            let unknown = |silent_s| Sender { revision, ..sender("young", 0, silent_s, 0) };
            let silent = behind(&unknown(9), REVISION).unwrap();
            assert_eq!(
                silent,
                "young: not heard of for 9 s, and had not told by which routes it goes"
            );
            let lives = behind(&unknown(0), REVISION).unwrap();
            assert_eq!(lives, "young: has not told yet by which routes it goes");
        }
        assert_eq!(
            behind(&sender("older", 6, 0, 0), REVISION).unwrap(),
            "older: at revision 6 of 7"
        );
        assert_eq!(behind(&sender("current", REVISION, 0, 0), REVISION), None);
    }

    #[test]
    fn a_version_that_a_rule_still_sends_to_is_left_when_the_weights_are() {
        let json =
            started().to_json().replacen('{', r#"{"rule":[{"header":"x","version":"green"}],"#, 1);
        let ruled = RouteDocument::from_json(json.as_bytes()).unwrap();
        let back = revert(&ruled, "worse".to_owned(), &Window::default(), 0);
        let poll =
            |revision| next(&back, REVISION, &heard(&[sender("gateway", revision, 0, 5)]), 0);
        assert_eq!(poll(REVISION - 1), Some(Action::AskSenders));
        let rollout = written(poll(REVISION)).rollout.unwrap();
        assert_eq!(rollout.phase, Phase::RolledBack);
        assert!(rollout.history.last().unwrap().what.ends_with("a rule does: keep it running"));

        // After a promotion too there is a way back, whatever rules there are.
        let mut promoted = switch(&ruled, "sound", &Window::default(), 0);
        promoted.rollout.as_mut().unwrap().phase = Phase::Promoted;
        let undone = command::abort(&promoted, "back".to_owned(), 0).unwrap();
        assert_eq!(undone.rollout.unwrap().to, "blue");
    }

    #[test]
    fn who_took_over_just_now_listens_before_a_drain_is_complete() {
        let draining = switch(&started(), "now", &Window::default(), 0);
        let senders = [sender("the only one heard of so far", REVISION, 0, 0)];
        let observation = Observation { in_phase: LISTEN, listened: LISTEN / 2, ..heard(&senders) };
        assert_eq!(next(&draining, REVISION, &observation, 0), Some(Action::AskSenders));
    }

    #[test]
    fn old_workers_are_asked_to_leave_when_everybody_knows_that_they_may() {
        let mut stopping = switch(&started(), "now", &Window::default(), 0);
        stopping.rollout.as_mut().unwrap().phase = Phase::Stopping;
        let poll = |revision, workers| {
            let senders = [sender("gateway", revision, 0, 0)];
            next(&stopping, REVISION, &Observation { workers, ..heard(&senders) }, 0)
        };
        assert_eq!(poll(REVISION - 1, None), Some(Action::AskSenders));
        assert_eq!(poll(REVISION, None), Some(Action::AskToLeave));
        assert_eq!(poll(REVISION, Some(Workers::There(1))), Some(Action::AskToLeave));
        let promoted = written(poll(REVISION, Some(Workers::Gone))).rollout.unwrap();
        assert_eq!(promoted.phase, Phase::Promoted);
        assert_eq!(promoted.history.last().unwrap().what, "the workers of blue have left");
    }

    #[test]
    fn silence_is_not_taken_for_workers_that_have_left() {
        let mut stopping = switch(&started(), "now", &Window::default(), 0);
        stopping.rollout.as_mut().unwrap().phase = Phase::Stopping;
        let senders = [sender("gateway", REVISION, 0, 0)];
        let poll = |in_phase| {
            let observation =
                Observation { workers: Some(Workers::Silent), in_phase, ..heard(&senders) };
            next(&stopping, REVISION, &observation, 0)
        };
        assert_eq!(poll(STOP_LIMIT / 2), Some(Action::AskToLeave));
        let promoted = written(poll(STOP_LIMIT)).rollout.unwrap();
        let last = &promoted.history.last().unwrap().what;
        assert!(last.ends_with("they may still be there"), "{last}");
    }

    #[test]
    fn a_version_that_does_not_answer_changes_no_weight() {
        let failed = Err("nobody is there".to_owned());
        let poll = |seconds| {
            let in_phase = Duration::from_secs(seconds);
            next(
                &started(),
                REVISION,
                &Observation { in_phase, check: Some(&failed), ..Observation::default() },
                0,
            )
        };
        assert_eq!(poll(1), Some(Action::Check), "it is asked again");
        let refused = written(poll(11));
        assert_eq!(refused.weights().collect::<Vec<_>>(), [("blue", 100), ("green", 0)]);
        let rollout = refused.rollout.unwrap();
        assert_eq!(
            (rollout.phase, rollout.reason.as_deref()),
            (Phase::Refused, Some("nobody is there"))
        );
    }
}
