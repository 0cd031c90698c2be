//! Whether a worker is there, by its answers to pings.

use std::time::{Duration, Instant};

use super::TICK;

/// Pings in a row without a sign of life after which a tunnel is stalled.
pub const PINGS_MISSED: u32 = 3;

/// A tick that comes later than this after its time says nothing: this thread or machine stood
/// still, and what came meanwhile is not read yet.
const LATE: Duration = Duration::from_millis(100);

/// What the worker's control thread said by the broker, when it was asked whether it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlAnswer {
    /// It does.
    Lives,
    /// Nothing came in time.
    Silent,
    /// Nobody listens there.
    Nobody,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    ticked: Option<Instant>,
    /// A ping is out, and nothing came after it.
    is_asked: bool,
    missed: u32,
    unanswered: u32,
}

impl Pulse {
    /// Takes note that a ping goes out. All that had come by then was heard.
    pub(super) fn tick(&mut self, now: Instant) {
        let is_punctual =
            self.ticked.is_some_and(|last| now.saturating_duration_since(last) <= TICK + LATE);
        if self.is_asked && is_punctual {
            self.missed = self.missed.saturating_add(1);
        }
        (self.is_asked, self.ticked) = (true, Some(now));
    }

    /// Takes note of any frame.
    pub(super) fn heard(&mut self) {
        (self.is_asked, self.missed, self.unanswered) = (false, 0, 0);
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.missed >= PINGS_MISSED
    }

    /// Takes note of what came of asking by the broker; returns whether the worker is lost. Where
    /// the tunnel is not stalled, it is not.
    pub(super) fn asked_by_broker(&mut self, answer: ControlAnswer) -> bool {
        match answer {
            _ if !self.is_stalled() => self.unanswered = 0,
            ControlAnswer::Lives => self.unanswered = 0,
            ControlAnswer::Silent => self.unanswered += 1,
            ControlAnswer::Nobody => self.unanswered = PINGS_MISSED,
        }
        self.unanswered >= PINGS_MISSED
    }
}
