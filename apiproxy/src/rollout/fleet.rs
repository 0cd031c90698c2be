//! Everybody who sends requests, by what they report: pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use natsway_routes::metrics::AttemptMetrics;
use natsway_routes::peers::{Peer, PeerKey, PeerLimits, PeerRegistry, Receipt};

#[cfg(test)]
use natsway_routes::report::Report;
#[cfg(test)]
use natsway_wire::control::{GATEWAY_SOURCE, metrics_subject};

use super::analysis::Window;
use super::machine::Sender;

/// How long a sender that is not heard of any more counts as one that may come back.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How long the metrics of a sender that is gone are kept: longer than a step is held.
const KEPT: Duration = Duration::from_secs(3_600);

/// All senders that were heard of.
#[derive(Debug, Default)]
pub struct Fleet(PeerRegistry);

/// The metrics of two versions at the beginning of a stretch of time.
#[derive(Clone, Debug)]
pub struct Baseline {
    began: Instant,
    old: HashMap<String, AttemptMetrics>,
    new: HashMap<String, AttemptMetrics>,
}

impl Fleet {
    /// Nobody yet.
    pub fn new(limits: PeerLimits) -> Self {
        Self(PeerRegistry::new(limits))
    }

    /// Takes in a message that came on `subject`.
    pub fn hear(&mut self, subject: &str, message: &[u8], now: Instant) -> Receipt {
        self.0.hear(subject, message, now)
    }

    /// Takes in a message of a gateway; says whether nothing was missed.
    #[cfg(test)]
    pub(super) fn hear_gateway(&mut self, message: &Report, now: Instant) -> bool {
        let subject = metrics_subject(GATEWAY_SOURCE, &message.id);
        let text = serde_json::to_vec(message).expect("a report is plain values");
        let heard = self.hear(&subject, &text, now);
        assert_eq!(heard.fault, None, "{message:?}");
        !heard.is_incomplete
    }

    /// Drops those that are gone for long.
    pub fn forget(&mut self, now: Instant) {
        self.0.forget(KEPT, now);
    }

    /// All who send requests now or may again, and what each has out to a version; their revisions
    /// are those of `bucket`.
    pub fn senders(&self, bucket: u64, route: &str, version: &str, now: Instant) -> Vec<Sender> {
        let key = (route.to_owned(), version.to_owned());
        let sender = |(of, peer): (PeerKey<'_>, &Peer)| {
            let silent = now.duration_since(peer.heard());
            (!peer.is_gone(now) && silent < FORGOTTEN).then(|| Sender {
                name: match peer.is_doubted(now) {
                    true => format!("{} (reports of {of} contradict each other)", peer.name()),
                    false => peer.name().to_owned(),
                },
                revision: peer.revision(bucket, now),
                refuses: peer.refuses(route),
                silent,
                in_flight: peer.latest().get(&key).map_or(0, |metrics| metrics.in_flight),
            })
        };
        // Nobody knows what they send. They are as good as silent, which a drain waits for a while
        // and then names.
        let unknown = |(source, since): (&str, Instant)| Sender {
            name: format!("senders of {source:?} beyond those that are followed"),
            revision: None,
            refuses: false,
            silent: now.duration_since(since).max(FORGOTTEN),
            in_flight: 0,
        };
        self.0.peers().filter_map(sender).chain(self.0.crowded(now).map(unknown)).collect()
    }

    /// The beginning of a stretch of time in which two versions are watched.
    pub fn baseline(&self, route: &str, old: &str, new: &str, now: Instant) -> Baseline {
        let of = |version: &str| {
            let key = (route.to_owned(), version.to_owned());
            let whole = self.0.peers().filter(|(_, peer)| peer.first().is_some());
            whole
                .map(|(of, peer)| {
                    (of.to_string(), peer.latest().get(&key).cloned().unwrap_or_default())
                })
                .collect()
        };
        Baseline { began: now, old: of(old), new: of(new) }
    }

    /// What happened at all senders since the baseline, but at those in doubt.
    pub fn window(
        &self,
        route: &str,
        old: &str,
        new: &str,
        baseline: &Baseline,
        now: Instant,
    ) -> Window {
        let since = |version: &str, before: &HashMap<String, AttemptMetrics>| {
            let key = (route.to_owned(), version.to_owned());
            let mut sum = AttemptMetrics::default();
            for (of, peer) in self.0.peers().filter(|(_, peer)| !peer.is_doubted(now)) {
                let Some(latest) = peer.latest().get(&key) else { continue };
                let base = match (before.get(&of.to_string()), peer.first()) {
                    (Some(before), _) => before.clone(),
                    // It began later, so all of it counts.
                    (None, Some(_)) if peer.began() >= baseline.began => AttemptMetrics::default(),
                    // It was heard of later: what it had counted by then may be older.
                    (None, Some(first)) => first.get(&key).cloned().unwrap_or_default(),
                    (None, None) => continue,
                };
                sum += &latest.since(&base);
            }
            sum
        };
        Window { old: since(old, &baseline.old), new: since(new, &baseline.new) }
    }
}

#[cfg(test)]
mod tests {
    use natsway_routes::report::{Role, VersionMetrics};
    use natsway_wire::control::CALLER_SOURCE;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn report(id: &str, age_ms: u64, counted: u64) -> Report {
        let mut metrics =
            AttemptMetrics { errors: counted / 10, in_flight: 3, ..AttemptMetrics::default() };
        metrics.latency.add(1_000, counted);
        let version = |version: &str| VersionMetrics {
            route: "math".to_owned(),
            version: version.to_owned(),
            metrics: metrics.clone(),
        };
        let versions = vec![version("blue"), version("green")];
        Report { id: id.to_owned(), age_ms, whole: true, versions, ..Report::default() }
    }

    fn counted(fleet: &Fleet, baseline: &Baseline) -> u64 {
        let window = fleet.window("math", "blue", "green", baseline, baseline.began);
        assert_eq!(window.old.requests(), window.new.requests());
        window.new.requests()
    }

    #[test]
    fn only_what_happened_since_the_baseline_counts_whoever_comes_or_goes() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        fleet.hear_gateway(&report("old", 60_000, 100), start);
        let baseline = fleet.baseline("math", "blue", "green", start);
        assert_eq!(counted(&fleet, &baseline), 0);
        fleet.hear_gateway(&report("old", 61_000, 130), start + SECOND);
        assert_eq!(counted(&fleet, &baseline), 30);
        // It started after the baseline: everything that it says is new.
        fleet.hear_gateway(&report("new", 500, 7), start + SECOND);
        assert_eq!(counted(&fleet, &baseline), 37);
        // It started long before, but nobody had heard of it.
        fleet.hear_gateway(&report("late", 90_000, 1_000), start + SECOND);
        assert_eq!(counted(&fleet, &baseline), 37);
        fleet.hear_gateway(&report("late", 91_000, 1_005), start + 2 * SECOND);
        assert_eq!(counted(&fleet, &baseline), 42);
        // What those that leave have counted stays.
        fleet.hear_gateway(
            &Report { leaving: true, ..report("old", 62_000, 140) },
            start + 2 * SECOND,
        );
        assert_eq!(counted(&fleet, &baseline), 52);
        // They are gone when nothing more came of them.
        assert_eq!(fleet.senders(0, "math", "blue", start + 2 * SECOND).len(), 3);
        assert_eq!(fleet.senders(0, "math", "blue", start + 4 * SECOND).len(), 2);
    }

    #[test]
    fn a_part_of_an_unknown_sender_s_figures_does_not_count() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        let baseline = fleet.baseline("math", "blue", "green", start);
        let part = Report { whole: false, ..report("a", 60_000, 100) };
        assert!(!fleet.hear_gateway(&part, start), "ask for all of it");
        assert_eq!(counted(&fleet, &baseline), 0);
        assert!(fleet.hear_gateway(&report("a", 60_000, 100), start));
        assert_eq!(counted(&fleet, &baseline), 0);
    }

    #[test]
    fn a_sender_that_is_silent_is_named_for_a_minute() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        fleet.hear_gateway(&Report { revision: 7, ..report("a", 0, 1) }, start);
        let [sender] = &fleet.senders(0, "math", "blue", start + 9 * SECOND)[..] else {
            panic!("one")
        };
        assert_eq!((sender.silent, sender.revision, sender.in_flight), (9 * SECOND, Some(7), 3));
        assert!(fleet.senders(0, "math", "blue", start + FORGOTTEN).is_empty());
    }

    #[test]
    fn a_sender_goes_by_new_routes_only_when_all_that_it_has_out_is_known() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        let state = |fleet: &Fleet| {
            let [sender] = &fleet.senders(0, "math", "blue", start)[..] else { panic!("one") };
            (sender.revision, sender.in_flight, sender.refuses)
        };
        // Only what changed was heard of: a request that is out for long is not among it.
        let news =
            Report { revision: 8, whole: false, since: 1, versions: Vec::new(), ..numbered(2, 1) };
        assert!(!fleet.hear_gateway(&news, start));
        assert_eq!(state(&fleet), (None, 0, false));
        fleet.hear_gateway(&Report { revision: 8, ..numbered(4, 1) }, start);
        assert_eq!(state(&fleet), (Some(8), 3, false));
        fleet.hear_gateway(&Report { revision: 7, ..numbered(3, 1) }, start);
        assert_eq!(state(&fleet), (Some(8), 3, false), "it is older than what was heard");
        let part = Report { revision: 9, parts: 2, versions: Vec::new(), ..numbered(5, 1) };
        assert!(fleet.hear_gateway(&part, start));
        assert_eq!(state(&fleet), (Some(8), 3, false), "more is to come");
        fleet.hear_gateway(
            &Report { revision: 9, refused: vec!["math".to_owned()], ..numbered(6, 1) },
            start,
        );
        assert_eq!(state(&fleet), (Some(9), 3, true));
    }

    /// A report of a release that numbers them.
    fn numbered(number: u64, counted: u64) -> Report {
        Report { number, parts: 1, ..report("a", 0, counted) }
    }

    #[test]
    fn revisions_of_a_bucket_that_was_made_anew_are_not_those_of_the_old_one() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        let revision =
            |fleet: &Fleet, bucket| fleet.senders(bucket, "math", "blue", start)[0].revision;
        fleet.hear_gateway(&Report { bucket: 1, revision: 57, ..report("a", 0, 1) }, start);
        assert_eq!((revision(&fleet, 1), revision(&fleet, 2)), (Some(57), None));
        fleet.hear_gateway(&Report { bucket: 2, revision: 3, ..report("a", 0, 1) }, start);
        assert_eq!((revision(&fleet, 1), revision(&fleet, 2)), (None, Some(3)));
    }

    fn hear_of(fleet: &mut Fleet, source: &str, report: &Report, now: Instant) -> Receipt {
        fleet.hear(&metrics_subject(source, &report.id), &report.messages()[0], now)
    }

    /// What a caller does that would have a drain end, or a canary be judged, by what a gateway
    /// never said.
    #[test]
    fn a_caller_s_word_changes_nothing_about_a_gateway() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        fleet.hear_gateway(&Report { revision: 7, ..report("gateway", 60_000, 100) }, start);
        let baseline = fleet.baseline("math", "blue", "green", start);
        let forged = Report { revision: 99, leaving: true, ..report("gateway", 60_001, 100_000) };
        for role in [Role::Gateway, Role::Caller] {
            hear_of(&mut fleet, CALLER_SOURCE, &Report { role, ..forged.clone() }, start);
        }
        let later = start + 3 * SECOND;
        let senders = fleet.senders(0, "math", "blue", later);
        let gateways: Vec<_> = senders.iter().filter(|sender| sender.revision == Some(7)).collect();
        assert_eq!(
            (gateways.len(), gateways[0].in_flight),
            (1, 3),
            "it is still waited for: {senders:?}"
        );
        assert_eq!(
            counted(&fleet, &baseline),
            0,
            "a caller that is not known yet has counted nothing since"
        );
    }

    #[test]
    fn senders_that_are_too_many_are_named() {
        let (mut fleet, start) =
            (Fleet::new(PeerLimits { senders: 4, versions: 64 }), Instant::now());
        fleet.hear_gateway(&report("gateway", 0, 1), start);
        for number in 0..1_000 {
            let report = Report { role: Role::Caller, ..report(&format!("c{number}"), 0, 1) };
            hear_of(&mut fleet, CALLER_SOURCE, &report, start);
        }
        let senders = fleet.senders(0, "math", "blue", start);
        assert_eq!(senders.len(), 1 + 4 + 1);
        let beyond = senders.last().unwrap();
        assert_eq!((beyond.revision, beyond.silent >= FORGOTTEN), (None, true));
        assert!(beyond.name.contains("caller"), "{}", beyond.name);
    }
}
