//! Puts the messages of a report together: pure.

use std::collections::{BTreeSet, VecDeque};

use super::Report;

/// Reports of one sender that may be incomplete at a time: those told unasked and those that were
/// asked for come two ways.
const MOST_INCOMPLETE: usize = 4;

/// The reports of one sender of which messages are missing.
#[derive(Debug, Default)]
pub struct Parts(VecDeque<Incomplete>);

#[derive(Debug)]
struct Incomplete {
    report: Report,
    have: BTreeSet<u32>,
}

impl Parts {
    /// Versions in the reports of which messages are missing.
    pub fn versions(&self) -> usize {
        self.0.iter().map(|incomplete| incomplete.report.versions.len()).sum()
    }

    /// Takes a message in, whichever order they come in and however often; gives the report when it
    /// is the last that was missing. The oldest of too many is given up.
    pub fn take(&mut self, message: Report) -> Option<Report> {
        // An older release does not say which part it is.
        if message.parts <= 1 {
            return Some(message);
        }
        if message.part >= message.parts {
            return None;
        }
        let place = self.0.iter().position(|incomplete| incomplete.report.number == message.number);
        let Some(place) = place else {
            let have = BTreeSet::from([message.part]);
            self.0.truncate(MOST_INCOMPLETE - 1);
            self.0.push_front(Incomplete { report: message, have });
            return None;
        };
        let Incomplete { report, have } = &mut self.0[place];
        if message.parts != report.parts || !have.insert(message.part) {
            return None;
        }
        report.versions.extend(message.versions);
        report.rollouts.extend(message.rollouts);
        if have.len() < report.parts as usize {
            return None;
        }
        self.0.remove(place).map(|complete| Report { part: 0, more: false, ..complete.report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::AttemptMetrics;
    use crate::report::VersionMetrics;

    fn messages(number: u64, versions: usize) -> Vec<Report> {
        let of = |number| VersionMetrics {
            route: format!("r{number}"),
            version: "blue".to_owned(),
            metrics: AttemptMetrics::default(),
        };
        let versions = (0..versions).map(of).collect();
        let report = Report { id: "a".to_owned(), number, versions, ..Report::default() };
        report.messages().iter().map(|message| Report::read(message).unwrap()).collect()
    }

    #[test]
    fn a_report_is_there_with_the_last_of_its_messages_in_whichever_order() {
        let mut parts = Parts::default();
        let [first, second, third] = &messages(1, 300)[..] else { panic!("three messages") };
        assert_eq!(parts.take(third.clone()), None);
        assert_eq!(parts.take(first.clone()), None);
        assert_eq!(parts.take(first.clone()), None, "twice is once");
        let report = parts.take(second.clone()).unwrap();
        assert_eq!((report.number, report.versions.len()), (1, 300));
        assert_eq!(parts.take(second.clone()), None, "it begins anew");
    }

    #[test]
    fn reports_that_come_two_ways_do_not_mix_and_too_many_push_out_the_oldest() {
        let mut parts = Parts::default();
        let (one, other) = (messages(1, 200), messages(2, 200));
        assert_eq!(parts.take(one[0].clone()), None);
        assert_eq!(parts.take(other[1].clone()), None);
        assert_eq!(parts.take(one[1].clone()).unwrap().number, 1);
        assert_eq!(parts.take(other[0].clone()).unwrap().number, 2);
        for number in 3..100 {
            assert_eq!(parts.take(messages(number, 200)[0].clone()), None);
        }
        assert_eq!(parts.0.len(), MOST_INCOMPLETE);
        assert_eq!(parts.take(messages(3, 200)[1].clone()), None, "it was given up");
    }

    #[test]
    fn one_message_is_a_report() {
        let mut parts = Parts::default();
        assert_eq!(parts.take(messages(1, 1).remove(0)).unwrap().number, 1);
        let older = Report { id: "a".to_owned(), more: true, ..Report::default() };
        assert_eq!(parts.take(older.clone()), Some(older));
    }
}
