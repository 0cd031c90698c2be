//! What was counted of a group's losses. Pure.

use serde::{Deserialize, Serialize};

use super::observation::{Copied, Observation};

/// What a group lost before it could handle it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceLoss {
    /// Messages that the source stream dropped before they were copied.
    pub messages: u64,
    /// Whether `messages` is known to be just what the group lost. Where filters take a part of the
    /// stream, it counts others too, and may miss what was dropped between two observations. While
    /// a group copies what the source had when the group was made, and messages were missing in
    /// between then, it may be too low.
    pub exact: bool,
    /// The most messages that the group was ever behind with copying.
    pub largest_lag_messages: u64,
}

/// Missing messages that the source had lost before the group had to copy them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holes {
    /// As many were not taken off yet.
    pub(super) left: u64,
    /// As many were taken off what is missing.
    pub(super) used: u64,
    /// All of them are at or below this sequence of the source.
    pub(super) up_to: u64,
    /// Whether there may be fewer.
    pub(super) is_estimate: bool,
}

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(super) streams: String,
    /// Everything up to this copy is counted; before the first, the place in front of it.
    pub(super) copied: Option<Copied>,
    /// Missing messages of the source that were counted before their successor was copied, up to
    /// this sequence.
    #[serde(default)]
    pub(super) counted_to: u64,
    #[serde(default)]
    pub(super) lost: u64,
    #[serde(default)]
    pub(super) uncertain: u64,
    #[serde(default)]
    pub(super) holes: Holes,
    /// Whether something that was lost may have been taken for a hole, for good.
    #[serde(default)]
    pub(super) may_hide: bool,
    #[serde(default)]
    pub(super) largest_lag: u64,
    /// Whether messages waited to be copied at the last observation.
    #[serde(default)]
    pub(super) behind: bool,
}

impl Holes {
    /// This many, up to the source's last message of an observation.
    pub(crate) fn counted(holes: u64, observation: &Observation) -> Self {
        Self { left: holes, up_to: observation.source_last, ..Self::default() }
    }

    /// Those behind a sequence, of which only the number in the whole stream is known.
    pub(crate) fn at_most(behind: u64, observation: &Observation) -> Self {
        let left = observation.source_holes.min(observation.source_last.saturating_sub(behind));
        let is_estimate = left > 0 && behind >= observation.source_first;
        Self { left, up_to: observation.source_last, is_estimate, ..Self::default() }
    }

    /// Takes holes off what is missing, and returns the rest.
    fn take_off(&mut self, missing: u64) -> u64 {
        let holes = missing.min(self.left);
        self.left -= holes;
        self.used += holes;
        missing - holes
    }
}

impl Account {
    /// The account of a work queue whose next copy is that of `next`, behind which the source has
    /// these holes.
    pub(crate) fn beginning(observation: &Observation, next: u64, holes: Holes) -> Self {
        let copied = Some(Copied { queue: observation.queue_last, source: next.saturating_sub(1) });
        Self { streams: observation.streams.clone(), copied, holes, ..Self::default() }
    }

    /// As [`Account::beginning`], for a group that was told to go on elsewhere; what it lost before
    /// stays counted.
    pub(crate) fn moved(&self, observation: &Observation, next: u64, holes: Holes) -> Self {
        let Self { lost, uncertain, largest_lag, .. } = *self;
        let may_hide = self.may_hide || self.holes.used > 0;
        Self { lost, uncertain, largest_lag, may_hide, ..Self::beginning(observation, next, holes) }
    }

    /// Goes on behind a copy of which only the place is known.
    fn go_on_behind(&mut self, copied: Option<Copied>, observation: &Observation) {
        self.may_hide |= self.holes.used > 0;
        self.holes =
            copied.map_or_else(Holes::default, |copied| Holes::at_most(copied.source, observation));
        self.copied = copied;
        self.counted_to = 0;
    }

    /// Forgets the holes that are passed: as many are taken off as there were, where their number
    /// was known.
    fn pass_holes(&mut self, source: u64) {
        if source >= self.holes.up_to {
            self.may_hide |= self.holes.is_estimate && self.holes.used > 0;
            self.holes = Holes::default();
        }
    }

    /// Takes an observation into account.
    pub(crate) fn take(&mut self, observation: &Observation) {
        let known = self.copied.filter(|_| self.streams == observation.streams);
        let Some(before) = known else {
            // Nothing is known of the time before the first observation of these streams.
            self.streams.clone_from(&observation.streams);
            self.go_on_behind(observation.newest, observation);
            return;
        };
        let newest =
            observation.newest.filter(|newest| newest.queue > before.queue).unwrap_or(before);
        if newest.source < before.source {
            // Somebody had the group copy from further back.
            self.go_on_behind(Some(newest), observation);
            return;
        }
        if observation.takes_everything {
            let passed_over =
                (newest.source - before.source).saturating_sub(newest.queue - before.queue);
            let counted = self.counted_to.clamp(before.source, newest.source) - before.source;
            self.lost += self.holes.take_off(passed_over.saturating_sub(counted));
        }
        self.copied = Some(newest);
        // The newest copy is known for sure only where nothing was copied after it.
        if newest.queue == observation.queue_last {
            let missing_to = observation.source_first.saturating_sub(1);
            let missing = missing_to.saturating_sub(newest.source.max(self.counted_to));
            let stays_behind = observation.lag > 0 && self.behind;
            match observation.takes_everything {
                true => self.lost += self.holes.take_off(missing),
                false if stays_behind => self.uncertain += missing,
                false => {}
            }
            self.counted_to = self.counted_to.max(missing_to);
        }
        self.pass_holes(newest.source.max(self.counted_to));
        let behind = match observation.takes_everything {
            true if newest.queue == observation.queue_last => {
                observation.source_last.saturating_sub(newest.source)
            }
            _ => observation.lag,
        };
        self.largest_lag = self.largest_lag.max(behind);
        self.behind = observation.lag > 0;
    }

    pub(crate) fn loss(&self) -> SourceLoss {
        SourceLoss {
            messages: self.lost + self.uncertain,
            exact: self.uncertain == 0 && self.holes.used == 0 && !self.may_hide,
            largest_lag_messages: self.largest_lag,
        }
    }

    /// How many messages the source keeps, when it keeps fewer than the group was behind.
    pub(crate) fn keeps_too_few(&self, observation: &Observation) -> Option<u64> {
        observation.keeps_messages.filter(|kept| *kept < self.largest_lag)
    }
}
