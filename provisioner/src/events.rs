//! What a provisioner tells, and where: subjects below `natsway.provisioner.`, JSON.
//!
//! | subject | message |
//! |---|---|
//! | `decision.<target>` | each [`Decision`] of the leader, as it is made |
//! | `status` | a question: the leader answers with a [`Status`] |
//! | `busy`, `quiet` | at each poll of QueueWatch's analysers: the targets that need more and fewer instances, [`Queues`] |

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::Client;
use async_nats::connection::State;
use natsway_wire::CONTROL_PREFIX;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::decision::Decision;

/// What the leader answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// The leader.
    pub leader: String,
    /// Since when it leads, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The last decision about each target, by name.
    pub targets: Vec<Decision>,
}

/// The targets for which an analyser fired.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Queues {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Target and analyser.
    pub queues: BTreeMap<String, String>,
}

/// The last decision about each target, shared by all who work and answer.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, Decision>>>);

/// The subject of decisions about `target`; `*` is all of them.
pub fn decision_subject(target: &str) -> String {
    format!("{CONTROL_PREFIX}.provisioner.decision.{target}")
}

/// The subject on which the leader is asked for its [`Status`].
pub fn status_subject() -> String {
    format!("{CONTROL_PREFIX}.provisioner.status")
}

/// The subject of the targets that need more instances, or fewer.
pub fn queues_subject(are_busy: bool) -> String {
    format!("{CONTROL_PREFIX}.provisioner.{}", if are_busy { "busy" } else { "quiet" })
}

impl Board {
    /// Puts a decision in the place of the one before.
    pub fn put(&self, decision: Decision) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.insert(decision.target.clone(), decision);
    }

    /// Forgets a target.
    pub fn remove(&self, target: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
    }

    /// All of them, by name.
    pub fn decisions(&self) -> Vec<Decision> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The targets whose analysers ordered more instances, or fewer.
    pub fn queues(&self, at_ms: u64, are_busy: bool) -> Queues {
        let fired = self.decisions().into_iter().filter_map(|decision| {
            let answer = decision.answers.into_iter().find(|answer| answer.policy == "analysers")?;
            let has_fired = match answer.because.as_str() {
                "ConsumerUtilisationTooLow"
                | "ConsumptionRateIncreased"
                | "DispatchRateDecreased"
                | "QueueLengthIncreased" => are_busy,
                "ConsumptionRateDecreased" => !are_busy,
                _ => false,
            };
            has_fired.then_some((decision.target, answer.because))
        });
        Queues { at_ms, queues: fired.collect() }
    }
}

/// Publishes a message unless the broker is away: later it would be no news.
pub async fn tell(client: &Client, subject: String, message: &impl Serialize) {
    if client.connection_state() != State::Connected {
        return;
    }
    let message = serde_json::to_vec(message).expect("plain values are always JSON");
    if let Err(error) = client.publish(subject, message.into()).await {
        debug!(%error, "event not published");
    }
}
