//! An instance of a target: what a backend says of it.

use serde::Serialize;

/// An instance as its backend sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// Unique within the backend.
    pub id: String,
    /// Whether it works.
    pub state: InstanceState,
    /// When it was started, in milliseconds since the Unix epoch, or any other number that grows:
    /// the newest is stopped first.
    pub since_ms: u64,
    /// Whether it is known to do nothing, though it runs: a process that was stopped, a container
    /// that is paused.
    pub is_frozen: bool,
    /// Whether it was started by other rules than those in force: another command, another
    /// environment.
    pub is_outdated: bool,
}

/// Whether an instance works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Started, and does not take messages yet.
    Starting,
    /// Takes messages.
    Ready,
    /// Takes none, and finishes what it holds.
    Stopping,
}

impl Instance {
    /// An instance of which nothing else is known.
    pub fn new(id: impl Into<String>, state: InstanceState, since_ms: u64) -> Self {
        Self { id: id.into(), state, since_ms, is_frozen: false, is_outdated: false }
    }
}
