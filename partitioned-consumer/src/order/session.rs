//! The time in which this instance holds one pin.

use std::sync::Arc;
use std::time::Duration;

use super::ASK_FIRST;

#[cfg_attr(test, derive(Clone))]
pub(super) struct Session {
    pub(super) pin: Arc<str>,
    pub(super) lease_until: Duration,
    /// Messages may start: everything pending is in hand.
    pub(super) settled: bool,
    pub(super) next_consumer_seq: u64,
    /// How far the server said that the consumer had come; it may lag behind what came in, and
    /// never goes back by itself.
    pub(super) delivered_consumer_seq: u64,
    /// How many messages the server holds as pending, as last heard while not settled.
    pub(super) pending: usize,
    pub(super) question: Option<(u64, Duration)>,
    pub(super) ask_at: Duration,
    pub(super) ask_every: Duration,
}

impl Session {
    /// Starts nothing more until the server has said again where it stands.
    pub(super) fn unsettle(&mut self, now: Duration) {
        self.settled = false;
        self.ask_at = now;
        self.ask_every = ASK_FIRST;
        self.question = None;
    }
}
