//! What each report of a sender has to say: pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Report, VersionMetrics};
use crate::metrics::AttemptMetrics;

/// Every so many periods all metrics are told, for those who have missed some.
const WHOLE_EVERY: u32 = 10;

/// By route and version.
type Name = (String, String);

/// Numbers one sender's reports, and leaves out what has not changed since the last whole one that
/// was told unasked.
///
/// A report that is lost takes nothing with it: the next one says all of it again.
#[derive(Debug, Default)]
pub struct Reporter {
    number: u64,
    round: u32,
    /// The number of that whole report.
    since: u64,
    /// What it said.
    said: HashMap<Name, AttemptMetrics>,
    /// What has changed since, also where it is as it was again.
    changed: HashSet<Name>,
}

impl Reporter {
    /// Makes the report that is told unasked, of all that there is to say.
    pub fn due(&mut self, report: Report) -> Report {
        let is_whole = self.round.is_multiple_of(WHOLE_EVERY);
        self.round = self.round.wrapping_add(1);
        if is_whole {
            let whole = self.whole(report);
            self.since = whole.number;
            self.said = metrics(&whole.versions).collect();
            self.changed.clear();
            return whole;
        }
        let now: BTreeMap<Name, AttemptMetrics> = metrics(&report.versions).collect();
        let is_new =
            |(name, metrics): &(&Name, &AttemptMetrics)| self.said.get(*name) != Some(*metrics);
        let new: Vec<Name> = now.iter().filter(is_new).map(|(name, _)| name.clone()).collect();
        // A version of which nothing is left, because its only try never went out, has metrics of
        // nothing.
        let gone: Vec<Name> =
            self.said.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
        self.changed.extend(new.into_iter().chain(gone));
        let version = |(route, version): &Name| VersionMetrics {
            route: route.clone(),
            version: version.clone(),
            metrics: now.get(&(route.clone(), version.clone())).cloned().unwrap_or_default(),
        };
        let versions = self.changed.iter().map(version).collect();
        self.number += 1;
        Report { number: self.number, since: self.since, whole: false, versions, ..report }
    }

    /// Makes the report for one who asked, or the last one: all that there is to say.
    pub fn whole(&mut self, report: Report) -> Report {
        self.number += 1;
        Report { number: self.number, since: 0, whole: true, ..report }
    }
}

fn metrics(versions: &[VersionMetrics]) -> impl Iterator<Item = (Name, AttemptMetrics)> {
    versions.iter().map(|of| ((of.route.clone(), of.version.clone()), of.metrics.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(in_flight: &[(&str, i64)]) -> Report {
        let version = |(route, in_flight): &(&str, i64)| VersionMetrics {
            route: (*route).to_owned(),
            version: "blue".to_owned(),
            metrics: AttemptMetrics { in_flight: *in_flight, ..AttemptMetrics::default() },
        };
        Report {
            id: "a".to_owned(),
            versions: in_flight.iter().map(version).collect(),
            ..Report::default()
        }
    }

    fn said(report: &Report) -> Vec<(&str, i64)> {
        let mut said: Vec<_> =
            report.versions.iter().map(|of| (of.route.as_str(), of.metrics.in_flight)).collect();
        said.sort_unstable();
        said
    }

    #[test]
    fn what_has_changed_is_said_until_the_next_whole_report() {
        let mut reporter = Reporter::default();
        let first = reporter.due(report(&[("r0", 0), ("r1", 0)]));
        assert_eq!(
            (first.number, first.whole, said(&first)),
            (1, true, vec![("r0", 0), ("r1", 0)])
        );
        let second = reporter.due(report(&[("r0", 0), ("r1", 1)]));
        assert_eq!((second.number, second.since, said(&second)), (2, 1, vec![("r1", 1)]));
        // Whoever has missed the second one learns it from the third, and that it is over from the
        // fourth.
        let third = reporter.due(report(&[("r0", 0), ("r1", 1)]));
        assert_eq!((third.since, said(&third)), (1, vec![("r1", 1)]));
        assert_eq!(said(&reporter.due(report(&[("r0", 0), ("r1", 0)]))), [("r1", 0)]);
        for _ in 4..10 {
            reporter.due(report(&[]));
        }
        let eleventh = reporter.due(report(&[("r0", 5)]));
        assert_eq!((eleventh.number, eleventh.whole, said(&eleventh)), (11, true, vec![("r0", 5)]));
        assert_eq!(reporter.due(report(&[("r0", 5)])).since, 11);
    }

    #[test]
    fn a_version_that_is_gone_is_said_to_have_nothing() {
        let mut reporter = Reporter::default();
        reporter.due(report(&[("r0", 1)]));
        assert_eq!(said(&reporter.due(report(&[]))), [("r0", 0)]);
    }

    #[test]
    fn who_asks_is_told_everything_and_others_do_not_miss_it() {
        let mut reporter = Reporter::default();
        reporter.due(report(&[("r0", 0)]));
        let asked = reporter.whole(report(&[("r0", 7)]));
        assert_eq!((asked.number, asked.whole), (2, true));
        let told = reporter.due(report(&[("r0", 7)]));
        assert_eq!((told.number, told.since, said(&told)), (3, 1, vec![("r0", 7)]));
    }
}
