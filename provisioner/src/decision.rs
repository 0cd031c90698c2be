//! One decision with everything that it came from: an event, a log line and an explanation are made
//! of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::View;
use crate::roll_call::Attendance;
use crate::sample::{Fault, Fleet, Sample};
use crate::scale::Limit;

/// What was decided about a target, and why.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Decision {
    /// The target.
    #[serde(default)]
    pub target: String,
    /// When, in milliseconds since the origin (the Unix epoch in a running provisioner).
    pub at_ms: u64,
    /// Instances that there were, starting ones included.
    pub from: u32,
    /// Instances that there shall be.
    pub to: u32,
    /// The instances as the backend counts them.
    pub fleet: Fleet,
    /// Why nothing was decided, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Fault>,
    /// What was seen, when it could be believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
    /// Who answered, where the signal asks instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attendance: Option<Attendance>,
    /// What is done about instances that were started by other rules than those in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<String>,
    /// Each policy's answer.
    #[serde(default)]
    pub answers: Vec<PolicyAnswer>,
    /// The largest answer, before the rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u32>,
    /// The rules that changed it, in order.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// What stood in the way of doing it, if anything did: the backend's refusal, or a pause after
    /// instances that ended at once. It is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
    /// The poll itself, believed or not: what a replay goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

/// What one policy answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PolicyAnswer {
    /// The policy.
    pub policy: String,
    /// What it wants; `None` when it cannot tell.
    pub instances: Option<u32>,
    /// Why.
    pub because: String,
}

/// The kind of a decision.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// More instances.
    Out,
    /// Fewer instances.
    In,
    /// As many as there are.
    Hold,
    /// As many as were decided last, since what was seen cannot be acted on.
    Frozen,
}

impl Decision {
    /// What kind of decision this is. A frozen one may still start instances: those that were
    /// decided on and are gone, or that the minimum demands.
    pub fn direction(&self) -> Direction {
        match self.frozen {
            Some(_) => Direction::Frozen,
            None if self.to > self.from => Direction::Out,
            None if self.to < self.from => Direction::In,
            None => Direction::Hold,
        }
    }

    /// What an operator should look at: why it is frozen, and why it could not be done.
    pub fn trouble(&self) -> Option<String> {
        let frozen = self.frozen.as_ref().map(ToString::to_string);
        let trouble: Vec<String> = frozen.into_iter().chain(self.obstacle.clone()).collect();
        (!trouble.is_empty()).then(|| trouble.join("; "))
    }

    /// One line for a log.
    pub fn reason(&self) -> String {
        let silence = self.attendance.as_ref().and_then(Attendance::describe);
        let silence = silence.map(|silence| format!("; {silence}")).unwrap_or_default();
        if let Some(fault) = &self.frozen {
            return format!("{fault}{silence}");
        }
        let largest = self.answers.iter().filter(|answer| answer.instances == self.wanted);
        let asked: Vec<_> =
            largest.map(|answer| format!("{}: {}", answer.policy, answer.because)).collect();
        let asked =
            if asked.is_empty() { "no policy can tell".to_owned() } else { asked.join("; ") };
        let limited = self.limits.iter().fold(asked, |text, limit| {
            format!("{text}; {} {} -> {} ({})", limit.rule, limit.from, limit.to, limit.because)
        });
        limited + &silence
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Out => "out",
            Self::In => "in",
            Self::Hold => "hold",
            Self::Frozen => "frozen",
        })
    }
}

impl fmt::Display for Decision {
    /// The whole explanation, several lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fleet { ready, starting, stopping, silent } = self.fleet;
        writeln!(f, "{}: {} -> {} ({})", self.target, self.from, self.to, self.direction())?;
        let silent = if silent > 0 { format!(", {silent} silent") } else { String::new() };
        writeln!(
            f,
            "  instances      {ready} ready, {starting} starting, {stopping} stopping{silent}"
        )?;
        if let Some(attendance) = &self.attendance {
            let Attendance { answers, unmatched, .. } = attendance;
            let unmatched = match unmatched {
                0 => String::new(),
                _ => format!(
                    ", {unmatched} of them by none of these instances: their silence is not seen"
                ),
            };
            writeln!(f, "  answers        {answers}{unmatched}")?;
            if let Some(silence) = attendance.describe() {
                writeln!(f, "  silence        {silence}")?;
            }
        }
        if let Some(renewal) = &self.renewal {
            writeln!(f, "  renewal        {renewal}")?;
        }
        if let Some(obstacle) = &self.obstacle {
            writeln!(f, "  not done       {obstacle}")?;
        }
        if let Some(fault) = &self.frozen {
            return writeln!(f, "  frozen         {fault}");
        }
        if let Some(view) = &self.view {
            let learned = view
                .service_rate
                .map_or("not learned".to_owned(), |rate| format!("{rate:.1}/s each"));
            writeln!(
                f,
                "  arrivals       {:.1}/s, finished {:.1}/s",
                view.arrival_rate, view.completion_rate
            )?;
            writeln!(f, "  backlog        {} waiting, {} in hand", view.waiting, view.in_hand)?;
            writeln!(f, "  service rate   {learned}")?;
            if let Some(refused) = view.refusal_rate {
                writeln!(f, "  refused        {refused:.1}/s for want of capacity")?;
            }
            if let Some(capacity) = view.capacity {
                writeln!(f, "  capacity       {capacity} at a time")?;
            }
        }
        let redelivered = self.sample.as_ref().and_then(|sample| sample.redelivered);
        if let Some(redelivered) = redelivered.filter(|count| *count > 0) {
            writeln!(
                f,
                "  redelivered    {redelivered}: a message that fails, or an ack wait that is too \
                 short"
            )?;
        }
        for PolicyAnswer { policy, instances, because } in &self.answers {
            let instances = instances.map_or("-".to_owned(), |count| count.to_string());
            writeln!(f, "  {policy:<14} {instances:>3}  {because}")?;
        }
        for Limit { rule, from, to, because } in &self.limits {
            writeln!(f, "  {rule:<14} {from} -> {to}  {because}")?;
        }
        Ok(())
    }
}
