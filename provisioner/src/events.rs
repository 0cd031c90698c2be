//! What a provisioner tells, and where: subjects below `natsway.provisioner.`, JSON.
//!
//! | subject | message |
//! |---|---|
//! | `decision.<target>` | each [`Decision`] of the leader, as it is made |
//! | `status` | a question: each leader answers with its [`Status`], in several messages when it has many targets |
//! | `busy`, `quiet` | at each poll of QueueWatch's analysers: the targets that need more and fewer instances, [`Queues`] |

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::Client;
use async_nats::connection::State;
use natsway_wire::CONTROL_PREFIX;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::decision::{Decision, Direction};
use crate::policy::{Directive, chain};

/// The most targets of one message, so that it stays well below what a broker takes.
const TARGETS_OF_A_MESSAGE: usize = 100;

/// What a leader answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// The leader.
    pub leader: String,
    /// The lease that it holds; `None` when it leads without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Since when it leads, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The last decision about each target, by name.
    pub targets: Vec<Decision>,
    /// How many decisions of each kind there were about each of them.
    #[serde(default)]
    pub decisions: BTreeMap<String, Counts>,
}

/// How many decisions about a target were of each kind, since its leader began to lead or the
/// target was opened.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Counts {
    /// To have more instances.
    pub out: u64,
    /// To have fewer.
    pub r#in: u64,
    /// To leave it as it is.
    pub hold: u64,
    /// Not to act on what was seen.
    pub frozen: u64,
}

/// The targets for which an analyser fired.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Queues {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Target and analyser.
    pub queues: BTreeMap<String, String>,
}

/// The last decision about each target and how many there were, shared by all who work and answer.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, (Decision, Counts)>>>);

impl Status {
    /// The same in parts that a broker takes.
    pub fn messages(mut self) -> Vec<Self> {
        let targets = std::mem::take(&mut self.targets);
        if targets.is_empty() {
            return vec![self];
        }
        let mut decisions = std::mem::take(&mut self.decisions);
        let part = |targets: &[Decision]| {
            let of_these = targets.iter().filter_map(|about| decisions.remove_entry(&about.target));
            Self { targets: targets.to_vec(), decisions: of_these.collect(), ..self.clone() }
        };
        targets.chunks(TARGETS_OF_A_MESSAGE).map(part).collect()
    }

    /// Puts the parts of each leader together, in order of their leases.
    pub fn whole(messages: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut leaders: BTreeMap<(Option<String>, String), Self> = BTreeMap::new();
        for mut message in messages {
            let targets = std::mem::take(&mut message.targets);
            let decisions = std::mem::take(&mut message.decisions);
            let key = (message.lease.clone(), message.leader.clone());
            let whole = leaders.entry(key).or_insert(message);
            whole.targets.extend(targets);
            whole.decisions.extend(decisions);
        }
        leaders.into_values().collect()
    }
}

impl Counts {
    fn count(&mut self, direction: Direction) {
        *match direction {
            Direction::Out => &mut self.out,
            Direction::In => &mut self.r#in,
            Direction::Hold => &mut self.hold,
            Direction::Frozen => &mut self.frozen,
        } += 1;
    }
}

/// The subject of decisions about `target`; `*` is all of them.
pub fn decision_subject(target: &str) -> String {
    format!("{CONTROL_PREFIX}.provisioner.decision.{target}")
}

/// The subject on which leaders are asked for their [`Status`].
pub fn status_subject() -> String {
    format!("{CONTROL_PREFIX}.provisioner.status")
}

/// The subject of the targets that need more instances, or fewer.
pub fn queues_subject(are_busy: bool) -> String {
    format!("{CONTROL_PREFIX}.provisioner.{}", if are_busy { "busy" } else { "quiet" })
}

impl Board {
    /// Puts a decision in the place of the one before, and counts it.
    pub fn put(&self, decision: Decision) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts =
            board.get(&decision.target).map_or_else(Counts::default, |(_, counts)| *counts);
        counts.count(decision.direction());
        board.insert(decision.target.clone(), (decision, counts));
    }

    /// Forgets a target.
    pub fn remove(&self, target: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
    }

    /// All of them, by name.
    pub fn decisions(&self) -> Vec<Decision> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.values().map(|(decision, _)| decision.clone()).collect()
    }

    /// How many there were, by name.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.iter().map(|(target, (_, counts))| (target.clone(), *counts)).collect()
    }

    /// The targets whose analysers ordered more instances, or fewer.
    pub fn queues(&self, at_ms: u64, are_busy: bool) -> Queues {
        let chain = chain();
        let ordered = if are_busy { Directive::ScaleOut } else { Directive::ScaleIn };
        let fired = self.decisions().into_iter().filter_map(|decision| {
            let answer =
                decision.answers.into_iter().find(|answer| answer.policy == "analysers")?;
            let analyser = chain.iter().find(|analyser| analyser.name() == answer.because)?;
            (analyser.directive() == Some(ordered)).then_some((decision.target, answer.because))
        });
        Queues { at_ms, queues: fired.collect() }
    }
}

/// Publishes a message unless the broker is away: later it would be no news.
pub async fn publish(client: &Client, subject: String, message: &impl Serialize) {
    if client.connection_state() != State::Connected {
        return;
    }
    let message = serde_json::to_vec(message).expect("plain values are always JSON");
    if let Err(error) = client.publish(subject, message.into()).await {
        debug!(%error, "event not published");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Controller;
    use crate::sample::{Fault, Fleet};
    use crate::simulate::{frozen_policies, frozen_rules};

    #[test]
    fn many_targets_are_told_in_parts_and_read_as_one() {
        let decision = |number: usize| {
            let controller =
                Controller::new(format!("t{number:04}"), frozen_rules(1, 0), frozen_policies());
            controller.freeze(0, Fleet::default(), Fault::WarmingUp)
        };
        let targets: Vec<Decision> = (0..250).map(decision).collect();
        let board = Board::default();
        for target in targets.iter().chain(&targets[..1]) {
            board.put(target.clone());
        }
        let counted = board.counts();
        assert_eq!((counted.len(), counted["t0000"].frozen, counted["t0001"].frozen), (250, 2, 1));
        assert_eq!(counted["t0000"], Counts { frozen: 2, ..Counts::default() });
        let of = |leader: &str, lease: Option<&str>| Status {
            leader: leader.to_owned(),
            lease: lease.map(str::to_owned),
            since_ms: 7,
            targets: targets.clone(),
            decisions: counted.clone(),
        };
        let (one, other) = (of("a", Some("shop")), of("b", None));
        let mut messages = one.clone().messages();
        assert_eq!(messages.len(), 3);
        messages.extend(other.clone().messages());
        assert_eq!(Status::whole(messages), [other, one]);
        let nothing = Status { targets: Vec::new(), decisions: BTreeMap::new(), ..of("c", None) };
        assert_eq!(nothing.clone().messages(), [nothing]);
    }
}
