//! What is known of a sender by the reports of it that have come: pure.

use std::collections::HashMap;

use super::Report;
use crate::metrics::AttemptMetrics;

/// By route and version.
type ByVersion = HashMap<(String, String), AttemptMetrics>;

/// A sender's state at its newest report that is known to be all there is to say.
#[derive(Debug, Default)]
pub struct SenderState {
    /// The number of that report; 0 when there was none.
    number: u64,
    /// There was one.
    is_whole: bool,
    /// The routes by which all of the sender goes.
    revision: u64,
    /// The bucket that this is a revision of.
    bucket: u64,
    /// Routes whose newest document it refuses.
    pub refused: Vec<String>,
    /// Its metrics of each version.
    pub metrics: ByVersion,
}

/// What came of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportOutcome {
    /// It is the newest, and everything is known.
    News,
    /// It came late or twice, and says nothing new.
    Old,
    /// It goes by a whole report that was missed: ask for one.
    Missed,
}

impl SenderState {
    /// Whether everything is known that the sender had to say at some moment.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The revision of that bucket by which all of the sender goes; `None` when that is not known.
    pub fn revision_in(&self, bucket: u64) -> Option<u64> {
        (self.is_whole && self.bucket == bucket).then_some(self.revision)
    }

    /// The number of the newest report; 0 when there was none, or none with a number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether a report that is newer contradicts what is known: what is counted does not fall, nor
    /// does the revision of one bucket.
    pub fn is_contradicted_by(&self, report: &Report) -> bool {
        let goes_back = report.bucket == self.bucket && report.revision < self.revision;
        let counts_down = |of: &super::VersionMetrics| {
            let before = self.metrics.get(&(of.route.clone(), of.version.clone()));
            before.is_some_and(|before| {
                of.metrics.requests() < before.requests() || of.metrics.errors < before.errors
            })
        };
        goes_back || report.versions.iter().any(counts_down)
    }

    /// Takes in a report, of which all messages are there.
    pub fn hear(&mut self, report: Report) -> ReportOutcome {
        if report.number == 0 {
            return self.hear_unnumbered(report);
        }
        if report.number <= self.number {
            return ReportOutcome::Old;
        }
        if !report.whole {
            // What it leaves out is as it was in the report of that number, or as it was said to be
            // since.
            if !self.is_whole || self.number < report.since {
                return ReportOutcome::Missed;
            }
        } else {
            self.metrics.clear();
        }
        self.number = report.number;
        self.is_whole = true;
        self.take(report);
        ReportOutcome::News
    }

    /// Takes in a report of an older release: one that is not whole may leave out what a lost one
    /// said, and says nothing.
    fn hear_unnumbered(&mut self, report: Report) -> ReportOutcome {
        if !report.whole {
            return ReportOutcome::Missed;
        }
        let is_older = report.bucket == self.bucket && report.revision < self.revision;
        if self.is_whole && is_older {
            return ReportOutcome::Old;
        }
        if report.more {
            self.metrics.extend(metrics(report));
            return ReportOutcome::News;
        }
        self.is_whole = true;
        self.take(report);
        ReportOutcome::News
    }

    fn take(&mut self, report: Report) {
        self.revision = report.revision;
        self.bucket = report.bucket;
        self.refused.clone_from(&report.refused);
        self.metrics.extend(metrics(report));
    }
}

fn metrics(report: Report) -> impl Iterator<Item = ((String, String), AttemptMetrics)> {
    report.versions.into_iter().map(|of| ((of.route, of.version), of.metrics))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Reporter, VersionMetrics};

    fn state(revision: u64, in_flight: i64) -> Report {
        let metrics = AttemptMetrics { in_flight, ..AttemptMetrics::default() };
        let versions =
            vec![VersionMetrics { route: "math".to_owned(), version: "blue".to_owned(), metrics }];
        Report { id: "a".to_owned(), revision, versions, ..Report::default() }
    }

    fn known(known: &SenderState) -> (u64, i64) {
        let key = ("math".to_owned(), "blue".to_owned());
        (known.revision, known.metrics.get(&key).map_or(0, |metrics| metrics.in_flight))
    }

    #[test]
    fn what_a_lost_report_said_is_in_the_next() {
        let (mut reporter, mut heard) = (Reporter::default(), SenderState::default());
        assert_eq!(heard.hear(reporter.due(state(7, 0))), ReportOutcome::News);
        // One goes out to blue, and the report of it is lost; then the routes change.
        reporter.due(state(7, 1));
        assert_eq!(heard.hear(reporter.due(state(8, 1))), ReportOutcome::News);
        assert_eq!(known(&heard), (8, 1));
    }

    #[test]
    fn who_has_missed_a_whole_report_takes_nothing_before_the_next() {
        let (mut reporter, mut heard) = (Reporter::default(), SenderState::default());
        reporter.due(state(7, 1));
        assert_eq!(heard.hear(reporter.due(state(8, 1))), ReportOutcome::Missed);
        assert!(!heard.is_whole());
        assert_eq!(heard.hear(reporter.whole(state(8, 1))), ReportOutcome::News);
        assert_eq!(known(&heard), (8, 1));
        assert_eq!(heard.hear(reporter.due(state(8, 0))), ReportOutcome::News);
        assert_eq!(known(&heard), (8, 0));
    }

    #[test]
    fn what_comes_late_or_twice_says_nothing() {
        let (mut reporter, mut heard) = (Reporter::default(), SenderState::default());
        let [first, second, third] = [1, 2, 3].map(|out| reporter.due(state(7, out)));
        for (report, expected) in [
            (&first, ReportOutcome::News),
            (&third, ReportOutcome::News),
            (&second, ReportOutcome::Old),
            (&first, ReportOutcome::Old),
            (&third, ReportOutcome::Old),
        ] {
            assert_eq!(heard.hear(report.clone()), expected);
        }
        assert_eq!(known(&heard), (7, 3));
    }

    #[test]
    fn a_whole_report_ends_what_it_does_not_name() {
        let (mut reporter, mut heard) = (Reporter::default(), SenderState::default());
        heard.hear(reporter.due(state(7, 1)));
        heard.hear(reporter.whole(Report { versions: Vec::new(), ..state(8, 0) }));
        assert_eq!(known(&heard), (8, 0));
    }

    #[test]
    fn of_an_older_release_only_whole_reports_count() {
        let mut heard = SenderState::default();
        assert_eq!(heard.hear(state(8, 1)), ReportOutcome::Missed);
        let whole = |revision, in_flight| Report { whole: true, ..state(revision, in_flight) };
        assert_eq!(heard.hear(whole(8, 1)), ReportOutcome::News);
        assert_eq!(heard.hear(whole(7, 0)), ReportOutcome::Old);
        assert_eq!(heard.hear(state(9, 0)), ReportOutcome::Missed);
        assert_eq!(known(&heard), (8, 1));
        let first = Report { more: true, ..whole(9, 2) };
        heard.hear(first);
        assert_eq!(known(&heard), (8, 2), "more is to come");
        heard.hear(Report { versions: Vec::new(), ..whole(9, 0) });
        assert_eq!(known(&heard), (9, 2));
    }
}
