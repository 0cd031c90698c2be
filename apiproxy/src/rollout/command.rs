//! What operators do to rollouts: pure, one document in, the next one out, or why not.

use natsway_routes::document::RouteDocument;
use natsway_routes::rollout::{Criteria, Exposure, Phase, Rollout, Step, Strategy};

use super::analysis::Window;
use super::machine::{revert, switch};

/// What an operator wants.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The version that is to serve.
    pub to: String,
    /// How.
    pub strategy: Strategy,
    /// A canary's steps.
    pub steps: Vec<Step>,
    /// When it counts as worse.
    pub criteria: Criteria,
    /// A request that it must answer first.
    pub smoke: Option<String>,
    /// Whether the old version's workers are asked to leave.
    pub stop_old: bool,
    /// Whether it may begin where the new version has traffic already, and set the weights anew.
    pub take_over: bool,
}

/// Why a command changes nothing, as a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(String);

fn refused<T>(why: impl Into<String>) -> Result<T, CommandError> {
    Err(CommandError(why.into()))
}

/// Begins a rollout; `id` is new, `now_unix_ms` the operator's time.
///
/// # Errors
/// One is under way, or the route's versions do not allow it.
pub fn start(
    document: &RouteDocument,
    plan: Plan,
    id: String,
    now_unix_ms: u64,
) -> Result<RouteDocument, CommandError> {
    let next = begin(document, plan, id, now_unix_ms)?;
    if let Some(rollout) = next.rollout.as_ref().filter(|rollout| next.has_rule_for(&rollout.from))
    {
        let from = &rollout.from;
        return refused(format!(
            "a rule sends requests to {from} whatever its weight: remove it first"
        ));
    }
    let is_foreign = next.check(None).is_ok_and(|route| route.codec.is_for_any_client());
    if is_foreign && next.rollout.as_ref().is_some_and(|rollout| rollout.stop_old) {
        return refused(
            "backends of a native or args route cannot be asked to leave: stop them yourself at the end",
        );
    }
    Ok(next)
}

fn begin(
    document: &RouteDocument,
    plan: Plan,
    id: String,
    now_unix_ms: u64,
) -> Result<RouteDocument, CommandError> {
    if let Some(rollout) = active(document) {
        let Rollout { to, phase, .. } = rollout;
        return refused(format!("a rollout to {to} is {}: abort it first", phase.as_str()));
    }
    let Some((_, to_weight)) = document.weights().find(|(version, _)| *version == plan.to) else {
        let versions: Vec<&str> = document.weights().map(|(version, _)| version).collect();
        return refused(format!(
            "{:?} is no version of this route; it has {}",
            plan.to,
            versions.join(", ")
        ));
    };
    let others: Vec<&str> = document
        .weights()
        .filter(|(version, weight)| *weight > 0 && *version != plan.to)
        .map(|(v, _)| v)
        .collect();
    let from = match &others[..] {
        [from] => (*from).to_owned(),
        [] if to_weight > 0 => {
            return refused(format!("{} has all of the traffic already", plan.to));
        }
        [] => return refused("no version has traffic now: give one a weight first".to_owned()),
        several => {
            let several = several.join(", ");
            return refused(format!(
                "{several} share the traffic: give all but one of them the weight 0 first"
            ));
        }
    };
    if to_weight > 0 && !plan.take_over {
        let (to, name) = (&plan.to, &document.name);
        let from_weight = document
            .weights()
            .find(|(version, _)| *version == from)
            .map_or(0, |(_, weight)| weight);
        return refused(format!(
            "{to} has traffic already: weight {to_weight} beside {from_weight} of {from}. Give it \
             the weight 0 first (apiproxy routes get {name}, then put), or begin from there with \
             --take-over, which sets both weights anew"
        ));
    }
    let Plan { to, strategy, steps, criteria, smoke, stop_old, .. } = plan;
    let mut rollout = Rollout {
        id,
        from,
        to,
        strategy,
        steps,
        criteria,
        smoke,
        stop_old,
        phase: Phase::Checking,
        step: 0,
        paused: false,
        reason: None,
        control: None,
        exposure: Exposure::default(),
        behind: Vec::new(),
        history: Vec::new(),
    };
    rollout.note(now_unix_ms, format!("started, from {} to {}", rollout.from, rollout.to));
    let mut next = document.clone();
    next.rollout = Some(rollout);
    next.check(None).map(|_| next).map_err(|faults| CommandError(faults.to_string()))
}

/// Holds a rollout where it is; it still goes back when the new version is worse.
///
/// # Errors
/// None is under way, or it is beyond holding.
pub fn pause(document: &RouteDocument, now_unix_ms: u64) -> Result<RouteDocument, CommandError> {
    match active(document) {
        Some(rollout) if rollout.paused => refused("it is paused already"),
        Some(Rollout { phase: Phase::Checking | Phase::Canary, .. }) => {
            set_paused(document, true, now_unix_ms)
        }
        Some(rollout) => {
            refused(format!("it is {}: that cannot be paused", rollout.phase.as_str()))
        }
        None => none_active(),
    }
}

/// Lets a paused rollout go on. Its step is watched anew.
///
/// # Errors
/// None is paused.
pub fn resume(document: &RouteDocument, now_unix_ms: u64) -> Result<RouteDocument, CommandError> {
    match active(document) {
        Some(rollout) if rollout.paused => set_paused(document, false, now_unix_ms),
        Some(_) => refused("it is not paused"),
        None => none_active(),
    }
}

/// Gives all traffic to the new version now, whatever is known of it.
///
/// # Errors
/// None is at a step from which it could be.
pub fn promote(document: &RouteDocument, now_unix_ms: u64) -> Result<RouteDocument, CommandError> {
    match active(document) {
        Some(Rollout { phase: Phase::Checking | Phase::Canary, .. }) => {
            let mut next =
                switch(document, "promoted by an operator", &Window::default(), now_unix_ms);
            if let Some(rollout) = &mut next.rollout {
                rollout.paused = false;
            }
            Ok(next)
        }
        Some(rollout) => refused(format!("it is {} already", rollout.phase.as_str())),
        None => none_active(),
    }
}

/// Takes a rollout back. One that is done is undone by another, which first checks that the old
/// version answers.
///
/// # Errors
/// There is none, or it is back already.
pub fn abort(
    document: &RouteDocument,
    id: String,
    now_unix_ms: u64,
) -> Result<RouteDocument, CommandError> {
    let Some(rollout) = &document.rollout else { return none_active() };
    match rollout.phase {
        Phase::Checking | Phase::Canary | Phase::Draining => Ok(revert(
            document,
            "aborted by an operator".to_owned(),
            &Window::default(),
            now_unix_ms,
        )),
        Phase::Stopping | Phase::Promoted => {
            let mut done = document.clone();
            let back = Plan {
                to: rollout.from.clone(),
                strategy: Strategy::BlueGreen,
                steps: Vec::new(),
                criteria: rollout.criteria.clone(),
                smoke: rollout.smoke.clone(),
                stop_old: false,
                // The operator wants the old version, however the weights are by now.
                take_over: true,
            };
            done.rollout = None;
            // A rule for the version that is left is no reason to stay: it goes on by itself.
            begin(&done, back, id, now_unix_ms)
        }
        Phase::Reverting | Phase::RolledBack | Phase::Refused => {
            refused(format!("it is {} already", rollout.phase.as_str()))
        }
    }
}

fn active(document: &RouteDocument) -> Option<&Rollout> {
    document.rollout.as_ref().filter(|rollout| rollout.phase.is_active())
}

fn none_active<T>() -> Result<T, CommandError> {
    refused("no rollout of this route is under way")
}

fn set_paused(
    document: &RouteDocument,
    paused: bool,
    now_unix_ms: u64,
) -> Result<RouteDocument, CommandError> {
    let mut next = document.clone();
    if let Some(rollout) = &mut next.rollout {
        rollout.paused = paused;
        rollout.note(now_unix_ms, if paused { "paused" } else { "resumed" });
    }
    Ok(next)
}
