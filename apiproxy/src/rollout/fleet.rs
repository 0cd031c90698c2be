//! Everybody who sends requests, by what they report: pure.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use natsway_routes::figures::Figures;
use natsway_routes::report::{Heard, Known, Parts, Report};

use super::analysis::Window;
use super::machine::Sender;

/// How long a sender that is not heard of any more counts as one that may come back.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How long the figures of a sender that is gone are kept: longer than a step is held.
const KEPT: Duration = Duration::from_secs(3_600);

/// By route and version.
type ByVersion = HashMap<(String, String), Figures>;

/// All senders that were heard of.
#[derive(Debug, Default)]
pub struct Fleet(BTreeMap<String, Member>);

#[derive(Debug)]
struct Member {
    name: String,
    heard: Instant,
    started: Instant,
    has_left: bool,
    /// Reports of which messages are missing.
    parts: Parts,
    /// What its reports say.
    known: Known,
    /// What it had counted when all of it was heard for the first time; what is newer than that counts from nothing.
    first: Option<ByVersion>,
}

/// The figures of two versions at the beginning of a stretch of time.
#[derive(Clone, Debug)]
pub struct Baseline {
    began: Instant,
    old: HashMap<String, Figures>,
    new: HashMap<String, Figures>,
}

impl Fleet {
    /// Takes a message of a report in; gives false when all of the sender's figures should be asked for, because a report
    /// was missed that this one goes by.
    pub fn hear(&mut self, message: Report, now: Instant) -> bool {
        let age = Duration::from_millis(message.age_ms);
        let member = self.0.entry(message.id.clone()).or_insert_with(|| Member {
            name: message.host.clone(),
            heard: now,
            started: now.checked_sub(age).unwrap_or(now),
            has_left: false,
            parts: Parts::default(),
            known: Known::default(),
            first: None,
        });
        member.heard = now;
        member.has_left |= message.leaving;
        // Not before its last message: what is out by older routes may be in any of them.
        let Some(report) = member.parts.take(message) else { return true };
        let heard = member.known.hear(report);
        if member.first.is_none() && member.known.is_whole() {
            member.first = Some(member.known.figures.clone());
        }
        heard != Heard::Missed
    }

    /// Drops those that are gone for long.
    pub fn forget(&mut self, now: Instant) {
        self.0.retain(|_, member| now.duration_since(member.heard) < KEPT);
    }

    /// All who send requests now or may again, and what each has out to a version; their revisions are those of `bucket`.
    pub fn senders(&self, bucket: u64, route: &str, version: &str, now: Instant) -> Vec<Sender> {
        let key = (route.to_owned(), version.to_owned());
        let sender = |(_, member): (&String, &Member)| {
            let silent = now.duration_since(member.heard);
            (!member.has_left && silent < FORGOTTEN).then(|| Sender {
                name: member.name.clone(),
                revision: member.known.revision_in(bucket),
                refuses: member.known.refused.iter().any(|refused| refused == route),
                silent,
                in_flight: member.known.figures.get(&key).map_or(0, |figures| figures.in_flight),
            })
        };
        self.0.iter().filter_map(sender).collect()
    }

    /// The beginning of a stretch of time in which two versions are watched.
    pub fn baseline(&self, route: &str, old: &str, new: &str, now: Instant) -> Baseline {
        let of = |version: &str| {
            let key = (route.to_owned(), version.to_owned());
            let whole = self.0.iter().filter(|(_, member)| member.first.is_some());
            whole
                .map(|(id, member)| (id.clone(), member.known.figures.get(&key).cloned().unwrap_or_default()))
                .collect()
        };
        Baseline { began: now, old: of(old), new: of(new) }
    }

    /// What happened at all senders since the baseline.
    pub fn window(&self, route: &str, old: &str, new: &str, baseline: &Baseline) -> Window {
        let since = |version: &str, before: &HashMap<String, Figures>| {
            let key = (route.to_owned(), version.to_owned());
            let mut sum = Figures::default();
            for (id, member) in &self.0 {
                let Some(latest) = member.known.figures.get(&key) else { continue };
                let base = match (before.get(id), &member.first) {
                    (Some(before), _) => before.clone(),
                    // It began later, so all of it counts.
                    (None, Some(_)) if member.started >= baseline.began => Figures::default(),
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
    use natsway_routes::report::VersionFigures;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn report(id: &str, age_ms: u64, counted: u64) -> Report {
        let mut figures = Figures { errors: counted / 10, in_flight: 3, ..Figures::default() };
        figures.latency.add(1_000, counted);
        let version = |version: &str| VersionFigures {
            route: "math".to_owned(),
            version: version.to_owned(),
            figures: figures.clone(),
        };
        let versions = vec![version("blue"), version("green")];
        Report { id: id.to_owned(), age_ms, whole: true, versions, ..Report::default() }
    }

    fn counted(fleet: &Fleet, baseline: &Baseline) -> u64 {
        let window = fleet.window("math", "blue", "green", baseline);
        assert_eq!(window.old.requests(), window.new.requests());
        window.new.requests()
    }

    #[test]
    fn only_what_happened_since_the_baseline_counts_whoever_comes_or_goes() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        fleet.hear(report("old", 60_000, 100), start);
        let baseline = fleet.baseline("math", "blue", "green", start);
        assert_eq!(counted(&fleet, &baseline), 0);
        fleet.hear(report("old", 61_000, 130), start + SECOND);
        assert_eq!(counted(&fleet, &baseline), 30);
        // It started after the baseline: everything that it says is new.
        fleet.hear(report("new", 500, 7), start + SECOND);
        assert_eq!(counted(&fleet, &baseline), 37);
        // It started long before, but nobody had heard of it.
        fleet.hear(report("late", 90_000, 1_000), start + SECOND);
        assert_eq!(counted(&fleet, &baseline), 37);
        fleet.hear(report("late", 91_000, 1_005), start + 2 * SECOND);
        assert_eq!(counted(&fleet, &baseline), 42);
        // What those that leave have counted stays.
        fleet.hear(Report { leaving: true, ..report("old", 62_000, 140) }, start + 2 * SECOND);
        assert_eq!(counted(&fleet, &baseline), 52);
        assert_eq!(fleet.senders(0, "math", "blue", start + 2 * SECOND).len(), 2);
    }

    #[test]
    fn a_part_of_an_unknown_sender_s_figures_does_not_count() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        let baseline = fleet.baseline("math", "blue", "green", start);
        let part = Report { whole: false, ..report("a", 60_000, 100) };
        assert!(!fleet.hear(part, start), "ask for all of it");
        assert_eq!(counted(&fleet, &baseline), 0);
        assert!(fleet.hear(report("a", 60_000, 100), start));
        assert_eq!(counted(&fleet, &baseline), 0);
    }

    #[test]
    fn a_sender_that_is_silent_is_named_for_a_minute() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        fleet.hear(Report { revision: 7, ..report("a", 0, 1) }, start);
        let [sender] = &fleet.senders(0, "math", "blue", start + 9 * SECOND)[..] else { panic!("one") };
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
        let news = Report { revision: 8, whole: false, since: 1, versions: Vec::new(), ..numbered(2, 1) };
        assert!(!fleet.hear(news, start));
        assert_eq!(state(&fleet), (None, 0, false));
        fleet.hear(Report { revision: 8, ..numbered(4, 1) }, start);
        assert_eq!(state(&fleet), (Some(8), 3, false));
        fleet.hear(Report { revision: 7, ..numbered(3, 1) }, start);
        assert_eq!(state(&fleet), (Some(8), 3, false), "it is older than what was heard");
        let part = Report { revision: 9, parts: 2, versions: Vec::new(), ..numbered(5, 1) };
        assert!(fleet.hear(part, start));
        assert_eq!(state(&fleet), (Some(8), 3, false), "more is to come");
        fleet.hear(Report { revision: 9, refused: vec!["math".to_owned()], ..numbered(6, 1) }, start);
        assert_eq!(state(&fleet), (Some(9), 3, true));
    }

    /// A report of a release that numbers them.
    fn numbered(number: u64, counted: u64) -> Report {
        Report { number, parts: 1, ..report("a", 0, counted) }
    }

    #[test]
    fn revisions_of_a_bucket_that_was_made_anew_are_not_those_of_the_old_one() {
        let (mut fleet, start) = (Fleet::default(), Instant::now());
        let revision = |fleet: &Fleet, bucket| fleet.senders(bucket, "math", "blue", start)[0].revision;
        fleet.hear(Report { bucket: 1, revision: 57, ..report("a", 0, 1) }, start);
        assert_eq!((revision(&fleet, 1), revision(&fleet, 2)), (Some(57), None));
        fleet.hear(Report { bucket: 2, revision: 3, ..report("a", 0, 1) }, start);
        assert_eq!((revision(&fleet, 1), revision(&fleet, 2)), (None, Some(3)));
    }
}
