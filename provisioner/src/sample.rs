//! What a signal says of a target at one moment, or why it says nothing.

use serde::{Deserialize, Serialize};

/// The counters of a target as they stood at one moment.
///
/// Times are milliseconds since an origin that whoever takes the samples has chosen: the Unix epoch
/// in a running provisioner, the start of the trace in a simulation.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Sample {
    /// When the counters stood so.
    pub at_ms: u64,
    /// Whose counters these are, say a consumer and when it was created; another text means that
    /// they began anew.
    pub source: String,
    /// Messages that ever came.
    pub arrived: u64,
    /// Messages that were ever finished.
    pub completed: u64,
    /// When the last message came, if the signal knows that better than by its samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_arrival_ms: Option<u64>,
    /// Messages that no instance has yet; `None` where nobody counts them, as for core requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Messages that instances hold and have not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_hand: Option<u64>,
    /// Unfinished messages that were delivered more than once. Reported, never scaled on: they mean
    /// a short acknowledgement wait or a message that no instance can handle, and more instances
    /// help neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redelivered: Option<u64>,
    /// Pull requests that wait for messages: spare capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_pulls: Option<u64>,
    /// Time that instances ever spent on messages, in milliseconds, all together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_ms: Option<u64>,
    /// Requests that were ever turned away for want of capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
    /// Messages that the instances that answered take at a time, all together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
}

impl Sample {
    /// Messages that have come and are not finished.
    pub fn backlog(&self) -> u64 {
        self.waiting.unwrap_or(0).saturating_add(self.in_hand.unwrap_or(0))
    }
}

/// Why a poll at a target cannot be acted on. Each of them freezes the decision.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "fault", content = "detail")]
pub enum Fault {
    /// Nothing came: no answer, no such consumer, no connection.
    #[error("missing: {0}")]
    Missing(String),
    /// What came is older than the signal may be.
    #[error("stale: {age_ms} ms old, {limit_ms} ms at the most")]
    Stale {
        /// Its age in milliseconds.
        age_ms: u64,
        /// The age from which it is stale, in milliseconds.
        limit_ms: u64,
    },
    /// The counters began anew, so there is no difference to go by yet.
    #[error("reset: {0}")]
    Reset(String),
    /// What came cannot be true beside what came before.
    #[error("contradictory: {0}")]
    Contradictory(String),
    /// The broker answers, and none of the instances does that answered before.
    #[error("silence: {instances} instances have ceased to answer, and nobody else does")]
    Silence {
        /// So many that count no more.
        instances: u32,
    },
    /// There is one poll only, and a rate needs two.
    #[error("warming up: one poll so far")]
    WarmingUp,
}

/// The instances of a target as its backend counts them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Fleet {
    /// Those that take messages.
    pub ready: u32,
    /// Those that were started and do not take messages yet.
    pub starting: u32,
    /// Those that were told to stop and finish what they hold.
    pub stopping: u32,
    /// Those that run and have not answered for so long that they count no more.
    #[serde(default)]
    pub silent: u32,
}

impl Fleet {
    /// Capacity that is there or on its way: starting instances count, so that nobody starts them
    /// twice.
    pub fn present(self) -> u32 {
        self.ready.saturating_add(self.starting)
    }
}
