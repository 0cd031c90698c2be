//! Who is believed, in doubt, gone, and crowded out.

use natsway_wire::control::{CALLER_SOURCE, metrics_subject, old_metrics_subject};
use proptest::prelude::*;

use super::*;
use crate::metrics::AttemptMetrics;
use crate::report::VersionMetrics;

const SECOND: Duration = Duration::from_secs(1);
const SMALL: PeerLimits = PeerLimits { senders: 8, versions: 16 };

struct Scene {
    registry: PeerRegistry,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { registry: PeerRegistry::new(SMALL), start: Instant::now() }
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
    let version = VersionMetrics { route: "math".to_owned(), version: "blue".to_owned(), metrics };
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
    let attributed =
        |source: &str| attributed(&metrics_subject(source, "a"), &caller.messages()[0]).is_some();
    assert_eq!([CALLER_SOURCE, "team-a", GATEWAY_SOURCE].map(attributed), [true, true, false]);
}

#[test]
fn a_caller_that_says_it_is_a_gateway_or_takes_its_id_changes_nothing_about_it() {
    let mut scene = Scene::new();
    scene.gateway(&counted("a", 1_000, 7, 1), 0);
    let forged = Report { leaving: true, ..counted("a", 1_001, 99, 50) };
    assert_eq!(scene.caller(&forged, 1), Some(ReportFault::Foreign));
    let later = scene.at(5_000);
    assert_eq!((scene.only().revision(0, later), scene.only().is_gone(later)), (Some(7), false));
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
    let many =
        (0..100).map(|number| VersionMetrics { version: format!("v{number}"), ..version.clone() });
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
