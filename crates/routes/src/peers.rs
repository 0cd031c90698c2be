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

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use natsway_wire::control::{self, GATEWAY_SOURCE};

use crate::metrics::AttemptMetrics;
use crate::report::{self, Parts, Report, Role, SenderState, VERSIONS_PER_MESSAGE};

/// Sources that are followed. In one account there are two, in a set-up of several one more for
/// each account.
const MOST_SOURCES: usize = 64;

/// How far apart the beginnings may be that a sender's reports imply: how long a message may be
/// under way.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);

/// How long a sender is in doubt after what contradicts what it said before.
const DOUBT: Duration = Duration::from_secs(10);

/// How long a sender must be silent that has said that it is gone: two reports, should it not have
/// been its own word.
const GONE_AFTER: Duration = Duration::from_secs(2);

/// A sender that is silent for so long gives way to a new one where there are too many.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(3);

/// How long it is told that there were too many.
const CROWDED_FOR: Duration = Duration::from_secs(60);

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

/// Bounds of what is kept of each source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Senders.
    pub senders: usize,
    /// Versions, summed over its senders: each takes some 3 KiB.
    pub versions: usize,
}

impl Default for PeerLimits {
    fn default() -> PeerLimits {
        PeerLimits { senders: 256, versions: 8_192 }
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
    pub const ALL: [ReportFault; 3] =
        [ReportFault::Foreign, ReportFault::Contradiction, ReportFault::Crowded];

    /// A label for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ReportFault::Foreign => "foreign",
            ReportFault::Contradiction => "contradiction",
            ReportFault::Crowded => "crowded",
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

/// One sender of requests.
#[derive(Debug)]
pub struct Peer {
    name: String,
    heard: Instant,
    /// When it began, as its first report implies.
    began: Instant,
    age: Duration,
    /// The number of the report of that age.
    number: u64,
    said_goodbye: bool,
    doubted: Option<Instant>,
    /// Reports of which messages are missing.
    parts: Parts,
    /// What its reports say.
    known: SenderState,
    /// What it had counted when all of it was heard for the first time.
    first: Option<ByVersion>,
    /// Some of its versions found no room.
    is_cut: bool,
}

impl PeerRegistry {
    /// Knows nobody yet.
    pub fn new(limits: PeerLimits) -> PeerRegistry {
        PeerRegistry { limits, sources: BTreeMap::new() }
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

/// What became of a message that is the sender's own.
struct Taken {
    contradicts: bool,
    has_missed: bool,
}

impl Peer {
    fn new(message: &Report, age: Duration, now: Instant) -> Peer {
        Peer {
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
    fn is_consistent_with(&self, message: &Report, now: Instant) -> bool {
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
    fn take_in(&mut self, mut message: Report, age: Duration, room: usize, now: Instant) -> Taken {
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
    fn versions(&self) -> usize {
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

#[cfg(test)]
mod tests {
    use natsway_wire::control::{CALLER_SOURCE, metrics_subject, old_metrics_subject};
    use proptest::prelude::*;

    use super::*;
    use crate::report::VersionMetrics;

    const SECOND: Duration = Duration::from_secs(1);
    const SMALL: PeerLimits = PeerLimits { senders: 8, versions: 16 };

    struct Scene {
        registry: PeerRegistry,
        start: Instant,
    }

    impl Scene {
        fn new() -> Scene {
            Scene { registry: PeerRegistry::new(SMALL), start: Instant::now() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn hear(&mut self, subject: &str, report: &Report, ms: u64) -> Option<ReportFault> {
            let now = self.at(ms);
            self.registry.hear(subject, &report.messages()[0], now).fault
        }

        fn gateway(&mut self, report: &Report, ms: u64) -> Option<ReportFault> {
            self.hear(&metrics_subject(GATEWAY_SOURCE, &report.id), report, ms)
        }

        fn caller(&mut self, report: &Report, ms: u64) -> Option<ReportFault> {
            self.hear(&metrics_subject(CALLER_SOURCE, &report.id), report, ms)
        }

        fn only(&self) -> &Peer {
            let mut peers = self.registry.peers();
            let (Some((_, peer)), None) = (peers.next(), peers.next()) else { panic!("one") };
            peer
        }
    }

    fn counted(id: &str, age_ms: u64, revision: u64, errors: u64) -> Report {
        let mut metrics = AttemptMetrics { errors, ..AttemptMetrics::default() };
        metrics.latency.add(1_000, errors * 10);
        let version =
            VersionMetrics { route: "math".to_owned(), version: "blue".to_owned(), metrics };
        let id = id.to_owned();
        // Numbered by age: later ones have more to say.
        let number = age_ms.saturating_add(1);
        Report {
            id,
            age_ms,
            number,
            revision,
            whole: true,
            versions: vec![version],
            ..Report::default()
        }
    }

    fn of_caller(report: Report) -> Report {
        Report { role: Role::Caller, ..report }
    }

    #[test]
    fn a_report_counts_where_it_may_come_from() {
        let report = counted("a", 0, 7, 1);
        for (subject, is_its_own) in [
            (metrics_subject(GATEWAY_SOURCE, "a"), true),
            (metrics_subject(GATEWAY_SOURCE, "b"), false),
            (metrics_subject(CALLER_SOURCE, "a"), false),
            (metrics_subject("team-a", "a"), false),
            // Before there were sources.
            (old_metrics_subject("a"), true),
            (old_metrics_subject("b"), false),
            ("_INBOX_apiproxy.x".to_owned(), false),
        ] {
            let attributed = attributed(&subject, &report.messages()[0]).is_some();
            assert_eq!(attributed, is_its_own, "{subject}");
        }
        let caller = of_caller(report);
        let attributed = |source: &str| {
            attributed(&metrics_subject(source, "a"), &caller.messages()[0]).is_some()
        };
        assert_eq!([CALLER_SOURCE, "team-a", GATEWAY_SOURCE].map(attributed), [true, true, false]);
    }

    #[test]
    fn a_caller_that_says_it_is_a_gateway_or_takes_its_id_changes_nothing_about_it() {
        let mut scene = Scene::new();
        scene.gateway(&counted("a", 1_000, 7, 1), 0);
        let forged = Report { leaving: true, ..counted("a", 1_001, 99, 50) };
        assert_eq!(scene.caller(&forged, 1), Some(ReportFault::Foreign));
        let later = scene.at(5_000);
        assert_eq!(
            (scene.only().revision(0, later), scene.only().is_gone(later)),
            (Some(7), false)
        );
        // As a caller of the same id it is another one.
        assert_eq!(scene.caller(&of_caller(forged), 2), None);
        let gateways = scene.registry.peers().filter(|(key, _)| key.source == GATEWAY_SOURCE);
        let revisions: Vec<_> = gateways.map(|(_, peer)| peer.revision(0, later)).collect();
        assert_eq!(revisions, [Some(7)]);
    }

    #[test]
    fn who_speaks_in_another_s_name_puts_it_in_doubt_and_is_not_believed() {
        let mut scene = Scene::new();
        scene.caller(&of_caller(counted("a", 600_000, 7, 5)), 0);
        // It does not know for how long the other one has run.
        let forged = of_caller(Report { leaving: true, ..counted("a", 1_000, 99, 0) });
        assert_eq!(scene.caller(&forged, 100), Some(ReportFault::Contradiction));
        assert_eq!(
            scene.caller(&of_caller(counted("a", u64::MAX, 99, 0)), 200),
            Some(ReportFault::Contradiction)
        );
        assert_eq!(
            (scene.only().revision(0, scene.at(300)), scene.only().known.revision_in(0)),
            (None, Some(7))
        );
        assert!(!scene.only().is_gone(scene.at(9_000)));
        // It knows it well: then the next word of the true one shows it.
        let forged = of_caller(Report { leaving: true, ..counted("a", 601_000, 99, 9) });
        assert_eq!(scene.caller(&forged, 1_000), None);
        assert_eq!(scene.only().revision(0, scene.at(1_000)), None, "in doubt");
        assert_eq!(
            scene.caller(&of_caller(counted("a", 601_500, 7, 5)), 1_500),
            Some(ReportFault::Contradiction)
        );
        assert!(!scene.only().is_gone(scene.at(9_000)));
        assert_eq!(scene.only().revision(0, scene.at(1_500)), None);
        assert_eq!(scene.only().revision(0, scene.at(11_500)), Some(7), "and it is believed again");
    }

    #[test]
    fn an_older_report_changes_nothing() {
        let mut scene = Scene::new();
        scene.gateway(&counted("a", 2_000, 8, 3), 0);
        let late = Report { leaving: true, ..counted("a", 1_000, 7, 2) };
        for _ in 0..2 {
            assert_eq!(scene.gateway(&late, 10), None);
        }
        assert_eq!(scene.only().revision(0, scene.at(10)), Some(8));
        assert!(!scene.only().is_gone(scene.at(9_000)));
        // It cannot have said more when it was younger, nor less when it was older.
        for (age_ms, number) in [(1_000, 9_000), (3_000, 5)] {
            let forged = Report { number, ..counted("a", age_ms, 99, 3) };
            assert_eq!(scene.gateway(&forged, 20), Some(ReportFault::Contradiction), "{number}");
        }
        assert_eq!(scene.only().revision(0, scene.at(20)), None);
    }

    #[test]
    fn a_sender_is_gone_two_reports_after_it_said_so() {
        let mut scene = Scene::new();
        scene.gateway(&Report { leaving: true, ..counted("a", 0, 7, 1) }, 0);
        assert!(!scene.only().is_gone(scene.at(1_999)) && scene.only().is_gone(scene.at(2_000)));
    }

    #[test]
    fn one_that_was_suspended_begins_anew_in_doubt() {
        let mut scene = Scene::new();
        scene.gateway(&counted("a", 0, 7, 1), 0);
        let woken = counted("a", 1_000, 8, 2);
        assert_eq!(scene.gateway(&woken, 60_000), Some(ReportFault::Contradiction));
        assert_eq!(scene.only().revision(0, scene.at(60_000)), None);
        assert_eq!(scene.gateway(&counted("a", 11_000, 8, 2), 70_000), None);
        assert_eq!(scene.only().revision(0, scene.at(70_000)), Some(8));
    }

    #[test]
    fn a_flood_of_ids_crowds_out_nobody_of_another_source_and_nobody_who_speaks() {
        let mut scene = Scene::new();
        scene.gateway(&counted("gateway", 0, 7, 1), 0);
        scene.caller(&of_caller(counted("true", 0, 7, 1)), 0);
        let mut refused = 0;
        for number in 0..10_000_u64 {
            let ms = number / 2;
            let forged = of_caller(counted(&format!("forged{number}"), 0, 0, 0));
            refused += usize::from(scene.caller(&forged, ms) == Some(ReportFault::Crowded));
            if number % 1_000 == 0 {
                scene.gateway(&counted("gateway", ms, 7, 1), ms);
                scene.caller(&of_caller(counted("true", ms, 7, 1)), ms);
            }
        }
        assert!(refused > 9_000, "{refused}");
        assert_eq!(scene.registry.peers().count(), 1 + SMALL.senders);
        let stays = |source: &str, id: &str| {
            scene.registry.peers().any(|(key, _)| key == PeerKey { source, id })
        };
        assert!(stays(GATEWAY_SOURCE, "gateway") && stays(CALLER_SOURCE, "true"));
        let crowded: Vec<_> =
            scene.registry.crowded(scene.at(5_000)).map(|(source, _)| source).collect();
        assert_eq!(crowded, [CALLER_SOURCE], "and it is told");
        for number in 0..2 * MOST_SOURCES {
            let subject = metrics_subject(&format!("source{number}"), "x");
            scene.hear(&subject, &of_caller(counted("x", 0, 0, 0)), 5_000);
        }
        assert_eq!(scene.registry.sources.len(), MOST_SOURCES);
    }

    #[test]
    fn versions_are_bounded_and_who_has_more_is_not_known_whole() {
        let mut scene = Scene::new();
        let mut report = of_caller(counted("a", 0, 7, 1));
        let version = report.versions[0].clone();
        let many = (0..100)
            .map(|number| VersionMetrics { version: format!("v{number}"), ..version.clone() });
        report.versions = many.collect();
        assert_eq!(scene.caller(&report, 0), Some(ReportFault::Crowded));
        assert_eq!((scene.only().latest().len(), scene.only().revision(0, scene.at(0))), (0, None));
        // Not by many messages of one report either, nor by many reports of which one is missing.
        for number in 1..100_u64 {
            let age_ms = number;
            let versions = report.versions[..5].to_vec();
            let part = Report {
                number,
                age_ms,
                parts: 9,
                part: number as u32 % 8,
                versions,
                ..report.clone()
            };
            let text = serde_json::to_vec(&part).unwrap();
            scene.registry.hear(&metrics_subject(CALLER_SOURCE, "a"), &text, scene.at(number));
            assert!(scene.registry.sources[CALLER_SOURCE].versions <= SMALL.versions);
        }
        // Those of another source have theirs.
        scene.gateway(&counted("b", 0, 7, 1), 0);
        scene.registry.forget(SECOND, scene.at(2_000));
        assert!(scene.registry.sources.values().all(|source| source.versions == 0));
    }

    proptest! {
        /// Whatever is said, in whatever order: what is kept is bounded, and nobody but a gateway
        /// is one.
        #[test]
        fn what_is_kept_is_bounded_whatever_is_said(
            said in prop::collection::vec(
                (0..4_u8, 0..30_u8, 0..20_000_u64, 0..3_000_u64, 0..5_u64, any::<bool>(), 0..20_usize), 1..200),
        ) {
            let mut scene = Scene::new();
            let mut ms = 0;
            for (source, id, age_ms, pause_ms, revision, leaving, versions) in said {
                ms += pause_ms;
                let mut report = Report { leaving, ..counted(&format!("id{id}"), age_ms, revision, revision) };
                report.role = if source == 0 { Role::Gateway } else { Role::Caller };
                let version = report.versions[0].clone();
                report.versions = (0..versions)
                    .map(|number| VersionMetrics { version: format!("v{number}"), ..version.clone() })
                    .collect();
                let subject = match source {
                    0 => metrics_subject(GATEWAY_SOURCE, &report.id),
                    1 => old_metrics_subject(&report.id),
                    number => metrics_subject(&format!("team-{number}"), &report.id),
                };
                scene.hear(&subject, &report, ms);
                for source in scene.registry.sources.values() {
                    prop_assert!(source.peers.len() <= SMALL.senders && source.versions <= SMALL.versions);
                    let counted = source.peers.values().map(Peer::versions).sum::<usize>();
                    prop_assert_eq!(source.versions, counted);
                }
            }
        }
    }
}
