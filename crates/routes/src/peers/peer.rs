//! One sender: what its reports say, and whether they can be its own.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::metrics::AttemptMetrics;
use crate::report::{self, Parts, Report, SenderState, VERSIONS_PER_MESSAGE};

/// How far apart the beginnings may be that a sender's reports imply: how long a message may be
/// under way.
pub(super) const BEGINS_WITHIN: Duration = Duration::from_secs(10);

/// How long a sender is in doubt after what contradicts what it said before.
const DOUBT: Duration = Duration::from_secs(10);

/// How long a sender must be silent that has said that it is gone: two reports, should it not have
/// been its own word.
const GONE_AFTER: Duration = Duration::from_secs(2);

/// Characters of the name for people that are kept.
const NAME_CHARS: usize = 128;

/// The longest route or version name: what a route's document may have.
const VERSION_BYTES: usize = 64;

/// The most messages of one report.
const MOST_PARTS: usize = 64;

/// The most refused routes of one sender that are kept; one that refuses more is believed in no
/// revision.
const REFUSED_ROUTES: usize = 256;

/// Metrics by route and version.
pub type ByVersion = HashMap<(String, String), AttemptMetrics>;

/// One sender of requests.
#[derive(Debug)]
pub struct Peer {
    pub(super) name: String,
    pub(super) heard: Instant,
    /// When it began, as its first report implies.
    pub(super) began: Instant,
    pub(super) age: Duration,
    /// The number of the report of that age.
    pub(super) number: u64,
    pub(super) said_goodbye: bool,
    pub(super) doubted: Option<Instant>,
    /// Reports of which messages are missing.
    pub(super) parts: Parts,
    /// What its reports say.
    pub(super) known: SenderState,
    /// What it had counted when all of it was heard for the first time.
    pub(super) first: Option<ByVersion>,
    /// Some of its versions found no room.
    pub(super) is_cut: bool,
}

/// What became of a message that is the sender's own.
pub(super) struct Taken {
    pub(super) contradicts: bool,
    pub(super) has_missed: bool,
}

impl Peer {
    pub(super) fn new(message: &Report, age: Duration, now: Instant) -> Self {
        Self {
            name: message.host.chars().take(NAME_CHARS).collect(),
            heard: now,
            // A machine that runs for less long than that has nothing that began earlier.
            began: now.checked_sub(age).unwrap_or(now),
            age,
            number: message.number,
            said_goodbye: false,
            doubted: None,
            parts: Parts::default(),
            known: SenderState::default(),
            first: None,
            is_cut: false,
        }
    }

    /// Whether a message can be of the one that is known: it began at the same time, and says more
    /// the older it is.
    pub(super) fn is_consistent_with(&self, message: &Report, now: Instant) -> bool {
        let age = Duration::from_millis(message.age_ms);
        let expected = self.age + now.duration_since(self.heard);
        let began_then =
            age <= expected.saturating_add(BEGINS_WITHIN) && age + BEGINS_WITHIN >= expected;
        let is_in_order = match message.number.cmp(&self.number) {
            _ if message.number == 0 || self.number == 0 => message.number == self.number,
            Ordering::Less => age <= self.age,
            Ordering::Equal => age == self.age,
            Ordering::Greater => age >= self.age,
        };
        began_then && is_in_order
    }

    /// Takes in a message, of whose report there may be more; `room` is for versions that are not
    /// known yet.
    pub(super) fn take_in(
        &mut self,
        mut message: Report,
        age: Duration,
        room: usize,
        now: Instant,
    ) -> Taken {
        let is_newest =
            message.number > self.number || (message.number == self.number && age >= self.age);
        let mut contradicts = false;
        if is_newest {
            // Older ones may still come, from before it said so.
            contradicts = self.said_goodbye && !message.leaving;
            self.said_goodbye = message.leaving;
            (self.heard, self.age, self.number) = (now, age, message.number);
        }
        // What is kept takes no more room than it says: the parts of a report wait for each other.
        let refuses_too_many = message.refused.len() > REFUSED_ROUTES;
        message.refused.truncate(REFUSED_ROUTES);
        message.refused.retain(|route| route.len() <= VERSION_BYTES);
        message.refused.shrink_to_fit();
        message.rollouts = Vec::new();
        message.host = String::new();
        message
            .versions
            .retain(|of| of.route.len() <= VERSION_BYTES && of.version.len() <= VERSION_BYTES);
        message.versions.shrink_to_fit();
        if self.is_too_much(&message, room) {
            self.is_cut = true;
            return Taken { contradicts, has_missed: false };
        }
        let Some(report) = self.parts.take(message) else {
            return Taken { contradicts, has_missed: false };
        };
        if report.number > self.known.number() || report.number == 0 {
            contradicts |= self.known.is_contradicted_by(&report);
        }
        self.is_cut = (self.is_cut && !report.whole) || refuses_too_many;
        let heard = self.known.hear(report);
        if self.first.is_none() && self.known.is_whole() {
            self.first = Some(self.known.metrics.clone());
        }
        Taken { contradicts, has_missed: heard == report::ReportOutcome::Missed }
    }

    /// Whether what a message adds finds no room; counted as if nothing of it were known.
    fn is_too_much(&self, message: &Report, room: usize) -> bool {
        let is_known = |of: &&crate::report::VersionMetrics| {
            let key = (of.route.clone(), of.version.clone());
            message.parts <= 1 && self.known.metrics.contains_key(&key)
        };
        let added = message.versions.len() - message.versions.iter().filter(is_known).count();
        added > room
            || message.parts as usize > MOST_PARTS
            || message.versions.len() > VERSIONS_PER_MESSAGE
    }

    /// Versions that are kept of it.
    pub(super) fn versions(&self) -> usize {
        self.known.metrics.len() + self.parts.versions()
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it was heard last.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Whether it has said that it is gone, and was silent since.
    pub fn is_gone(&self, now: Instant) -> bool {
        self.said_goodbye && now.duration_since(self.heard) >= GONE_AFTER
    }

    /// Whether it contradicted itself lately, or somebody else spoke in its name: what it says is
    /// not acted on.
    pub fn is_doubted(&self, now: Instant) -> bool {
        self.doubted.is_some_and(|since| now.duration_since(since) < DOUBT)
    }

    /// The revision of `bucket` by which it goes: `None` until all that it counts is known, and
    /// while it is in doubt.
    pub fn revision(&self, bucket: u64, now: Instant) -> Option<u64> {
        self.known.revision_in(bucket).filter(|_| !self.is_cut && !self.is_doubted(now))
    }

    /// Whether it refuses the newest document of a route.
    pub fn refuses(&self, route: &str) -> bool {
        self.known.refused.iter().any(|refused| refused == route)
    }

    /// What it had counted of each version when all of it was heard for the first time; `None`
    /// before that.
    pub fn first(&self) -> Option<&ByVersion> {
        self.first.as_ref()
    }

    /// What it has counted of each version.
    pub fn latest(&self) -> &ByVersion {
        &self.known.metrics
    }
}
