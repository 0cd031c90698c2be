//! Everybody who sends requests, by what each reports of itself, and how much of that is believed.
//! Pure.
//!
//! A report says who it is from, and so could anybody. What the broker vouches for is the subject
//! that it came on, `natsway.metrics.<source>.<id>`: a source is given to a role by permissions, to
//! a team's account by the import that maps what comes out of it. So a sender is known by source
//! and id together, and none of one source can touch, hide or crowd out those of another. Within a
//! source an id is believed while it is consistent:
//!
//! - It began once, grows older, and numbers its reports as it does. What does not fit is not its
//!   own, and puts it in [doubt](Peer::is_doubted). Reports may come late or twice; a newer one is
//!   still the older in years.
//! - It counts up, and its revision of a bucket does not fall. What contradicts that is taken in,
//!   and puts it in doubt.
//! - It is gone when it has said so and is silent from then on.
//!
//! All of it is bounded by source: senders, and versions that they tell of.

mod peer;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use natsway_wire::control::{self, GATEWAY_SOURCE};

use self::peer::BEGINS_WITHIN;
pub use self::peer::{ByVersion, Peer};
use crate::report::{Report, Role};

/// Sources that are followed. In one account there are two, in a set-up of several one more for
/// each account.
const MOST_SOURCES: usize = 64;

/// A sender that is silent for so long gives way to a new one where there are too many.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(3);

/// How long it is told that there were too many.
const CROWDED_FOR: Duration = Duration::from_secs(60);

/// Bounds of what is kept of each source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Senders.
    pub senders: usize,
    /// Versions, summed over its senders: each takes some 3 KiB.
    pub versions: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self { senders: 256, versions: 8_192 }
    }
}

/// Why a report is not believed, or not as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFault {
    /// It is none, or says that it is from somebody who does not publish on the subject that it
    /// came on.
    Foreign,
    /// It contradicts what the sender said before.
    Contradiction,
    /// There are too many senders, or versions, of this source.
    Crowded,
}

impl ReportFault {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Foreign, Self::Contradiction, Self::Crowded];

    /// A label for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Contradiction => "contradiction",
            Self::Crowded => "crowded",
        }
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Whether the sender should be asked for all of its metrics: some are not known.
    pub is_incomplete: bool,
    /// What was wrong with it, if anything.
    pub fault: Option<ReportFault>,
}

/// The senders that were heard of, by source and id.
#[derive(Debug, Default)]
pub struct PeerRegistry {
    limits: PeerLimits,
    sources: BTreeMap<String, Source>,
}

#[derive(Debug, Default)]
struct Source {
    peers: BTreeMap<String, Peer>,
    /// Versions of all of them, those of reports that are not complete included.
    versions: usize,
    /// When a sender was last not taken in, or gave way, for want of room.
    crowded: Option<Instant>,
}

impl PeerRegistry {
    /// Knows nobody yet.
    pub fn new(limits: PeerLimits) -> Self {
        Self { limits, sources: BTreeMap::new() }
    }

    /// Takes in a message that came on `subject`.
    pub fn hear(&mut self, subject: &str, message: &[u8], now: Instant) -> Receipt {
        let not_believed = |fault| Receipt { is_incomplete: false, fault: Some(fault) };
        let Some((source, report)) = attributed(subject, message) else {
            return not_believed(ReportFault::Foreign);
        };
        if !self.sources.contains_key(source) && self.sources.len() >= MOST_SOURCES {
            return not_believed(ReportFault::Crowded);
        }
        self.sources.entry(source.to_owned()).or_default().hear(report, self.limits, now)
    }

    /// Forgets those that were silent for longer than `kept`.
    pub fn forget(&mut self, kept: Duration, now: Instant) {
        for source in self.sources.values_mut() {
            source.peers.retain(|_, peer| now.duration_since(peer.heard) < kept);
            source.versions = source.peers.values().map(Peer::versions).sum();
        }
        // A source that nobody is of makes room for another.
        let is_crowded =
            |of: &Source| of.crowded.is_some_and(|since| now.duration_since(since) < CROWDED_FOR);
        self.sources.retain(|_, of| !of.peers.is_empty() || is_crowded(of));
    }

    /// All senders, each with a key of its own.
    pub fn peers(&self) -> impl Iterator<Item = (PeerKey<'_>, &Peer)> {
        self.sources.iter().flat_map(|(source, of)| {
            of.peers.iter().map(move |(id, peer)| (PeerKey { source, id }, peer))
        })
    }

    /// The sources that had more senders lately than are followed, and since when somebody was not
    /// followed.
    pub fn crowded(&self, now: Instant) -> impl Iterator<Item = (&str, Instant)> {
        self.sources.iter().filter_map(move |(source, of)| {
            let since = of.crowded.filter(|since| now.duration_since(*since) < CROWDED_FOR)?;
            Some((source.as_str(), since))
        })
    }
}

/// What tells a sender from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerKey<'r> {
    /// Its source, which the broker vouches for; empty for one of before there were sources.
    pub source: &'r str,
    /// Its id, unique within that.
    pub id: &'r str,
}

impl std::fmt::Display for PeerKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.source, self.id)
    }
}

/// The source of a report, and the report, where it is one of whoever publishes on `subject`.
pub fn attributed<'s>(subject: &'s str, message: &[u8]) -> Option<(&'s str, Report)> {
    let (source, id) = control::metrics_sender(subject)?;
    let report = Report::read(message)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_id = report.id == id && id.len() <= 64 && id.bytes().all(plain);
    // Before there were sources everybody published on the same subjects.
    let may_be = source.is_empty() || (report.role == Role::Gateway) == (source == GATEWAY_SOURCE);
    (is_id && may_be).then_some((source, report))
}

impl Source {
    fn hear(&mut self, message: Report, limits: PeerLimits, now: Instant) -> Receipt {
        let age = Duration::from_millis(message.age_ms);
        let mut fault = None;
        let known = self.peers.get_mut(&message.id);
        let is_new = match known {
            None => true,
            Some(peer) if peer.is_consistent_with(&message, now) => false,
            // One of two is not what it says, and nobody can tell which; the one that was first is
            // kept, in doubt.
            Some(peer) if now.duration_since(peer.heard) < BEGINS_WITHIN => {
                peer.doubted = Some(now);
                return Receipt { is_incomplete: false, fault: Some(ReportFault::Contradiction) };
            }
            // Its clock stood still, or it is another one: nothing that was known of it holds.
            Some(_) => {
                fault = Some(ReportFault::Contradiction);
                true
            }
        };
        if is_new {
            self.remove(&message.id);
            if !self.has_room(limits.senders, now) {
                self.crowded = Some(now);
                return Receipt { is_incomplete: false, fault: Some(ReportFault::Crowded) };
            }
            let mut peer = Peer::new(&message, age, now);
            peer.doubted = fault.map(|_| now);
            self.peers.insert(message.id.clone(), peer);
        }
        let peer = self.peers.get_mut(&message.id).expect("it was just put there");
        let before = peer.versions();
        let room = limits.versions.saturating_sub(self.versions);
        let taken = peer.take_in(message, age, room, now);
        self.versions = self.versions + peer.versions() - before;
        if taken.contradicts {
            peer.doubted = Some(now);
            fault = Some(ReportFault::Contradiction);
        } else if peer.is_cut {
            fault = fault.or(Some(ReportFault::Crowded));
        }
        Receipt { is_incomplete: taken.has_missed, fault }
    }

    fn remove(&mut self, id: &str) {
        if let Some(peer) = self.peers.remove(id) {
            self.versions -= peer.versions();
        }
    }

    /// Whether one more may be followed. Whoever is gone gives way, and then whoever is silent for
    /// longest.
    fn has_room(&mut self, most: usize, now: Instant) -> bool {
        if self.peers.len() < most {
            return true;
        }
        let silent_longest = self
            .peers
            .iter()
            .filter(|(_, peer)| now.duration_since(peer.heard) >= GIVES_WAY_AFTER)
            .min_by_key(|(_, peer)| (!peer.is_gone(now), peer.heard));
        let Some((id, peer)) = silent_longest else { return false };
        if !peer.is_gone(now) {
            self.crowded = Some(now);
        }
        let id = id.clone();
        self.remove(&id);
        true
    }
}

#[cfg(test)]
mod tests;
