//! The invariant checker: what handlers did, judged against what groups promise.
//!
//! Per key never two handlers at once; per key in order among first successes; nothing lost; a
//! message that was handled twice needs a fault beside it that explains why. Frozen processes and
//! handlers that ignore cancellation are outside of the promise, and no run makes any.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One handler run. Times are nanoseconds since 1970 by the machine's one clock.
#[derive(Clone, Debug)]
struct Run {
    instance: String,
    key: String,
    number: u64,
    begun_ns: u64,
    /// When it ended, was dropped, or its process was killed.
    ended_ns: u64,
    /// When it refused its message, and went on.
    refused_ns: Option<u64>,
    succeeded: bool,
}

/// Everything that was written down about one run of chaos.
#[derive(Default)]
pub struct Ledger {
    runs: Vec<Run>,
    published: BTreeSet<(String, u64)>,
    faults_ns: Vec<RangeInclusive<u64>>,
}

/// The verdict; `broken` is empty when every promise was kept.
#[derive(Debug, Default, Serialize)]
pub struct LedgerReport {
    /// Messages published.
    pub published: usize,
    /// Handler runs that were begun.
    pub runs: usize,
    /// Successful runs of messages that had succeeded before.
    pub duplicates: usize,
    /// Duplicates with no fault near that explains them.
    pub unexplained_duplicates: usize,
    /// Pairs of runs of one key at the same time.
    pub overlaps: usize,
    /// First successes that came after a newer one of their key.
    pub disorders: usize,
    /// Messages that never succeeded.
    pub lost: usize,
    /// The first few broken promises, in words.
    pub broken: Vec<String>,
}

/// A fault explains a repeat when it ended no longer before the first success than this.
const FAULT_REACH_NS: u64 = 10_000_000_000;
const EXAMPLES: usize = 20;

impl Ledger {
    /// Notes what was published and stored.
    pub fn published(&mut self, key: impl Into<String>, number: u64) {
        self.published.insert((key.into(), number));
    }

    /// Notes from when until when something was broken that may make the broker deliver again.
    pub fn fault(&mut self, broken_ns: RangeInclusive<u64>) {
        self.faults_ns.push(broken_ns);
    }

    fn is_fault_within(&self, window: &RangeInclusive<u64>) -> bool {
        self.faults_ns
            .iter()
            .any(|broken| broken.start() <= window.end() && window.start() <= broken.end())
    }

    /// Reads a member's log; `killed_ns` is when its process was killed, if it was.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self, path: &Path, instance: &str, killed_ns: Option<u64>) -> Result<()> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("log {} cannot be read", path.display()))?;
        let mut open: BTreeMap<u64, Run> = BTreeMap::new();
        // A kill can cut the last line short.
        for line in text.lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let (Some(at), Some(id)) = (
                parts.get(1).and_then(|t| t.parse().ok()),
                parts.get(2).and_then(|t| t.parse().ok()),
            ) else {
                continue;
            };
            match (parts[0], parts.as_slice()) {
                ("B", [_, _, _, key, number, ..]) => {
                    let Ok(number) = number.parse() else { continue };
                    let (instance, key) = (instance.to_owned(), (*key).to_owned());
                    open.insert(
                        id,
                        Run {
                            instance,
                            key,
                            number,
                            begun_ns: at,
                            ended_ns: u64::MAX,
                            refused_ns: None,
                            succeeded: false,
                        },
                    );
                }
                ("S", _) => {
                    if let Some(run) = open.get_mut(&id) {
                        run.succeeded = true;
                    }
                }
                ("N", _) => {
                    if let Some(run) = open.get_mut(&id) {
                        run.refused_ns = Some(at);
                    }
                }
                ("E", _) => {
                    if let Some(mut run) = open.remove(&id) {
                        run.ended_ns = at;
                        self.runs.push(run);
                    }
                }
                _ => {}
            }
        }
        for mut run in open.into_values() {
            run.ended_ns = killed_ns.unwrap_or(run.ended_ns);
            self.runs.push(run);
        }
        Ok(())
    }

    /// Judges everything that was noted.
    pub fn judge(mut self) -> LedgerReport {
        self.runs.sort_by_key(|run| run.begun_ns);
        let mut verdict = LedgerReport {
            published: self.published.len(),
            runs: self.runs.len(),
            ..LedgerReport::default()
        };
        let mut by_key: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
        for run in &self.runs {
            by_key.entry(&run.key).or_default().push(run);
        }
        for runs in by_key.values() {
            self.judge_overlaps(runs, &mut verdict);
            self.judge_order(runs, &mut verdict);
        }
        let succeeded: BTreeSet<(String, u64)> =
            self.runs.iter().filter(|r| r.succeeded).map(|r| (r.key.clone(), r.number)).collect();
        for (key, number) in self.published.difference(&succeeded) {
            verdict.lost += 1;
            verdict.example(format!("{key} {number} was never handled"));
        }
        verdict
    }

    fn judge_overlaps(&self, runs: &[&Run], verdict: &mut LedgerReport) {
        let mut open: Vec<&Run> = Vec::new();
        for run in runs {
            open.retain(|before| run.begun_ns < before.ended_ns);
            if let Some(before) =
                open.iter().find(|before| run.begun_ns < self.protected_until(before, run))
            {
                verdict.overlaps += 1;
                verdict.example(format!(
                    "{}: {} began {} while {} was at {}",
                    run.key, run.instance, run.number, before.instance, before.number
                ));
            }
            open.push(run);
        }
    }

    /// Until when nobody may begin beside a handler. One that goes on after it has refused its
    /// message is protected by the pin alone, which a fault may take at once.
    fn protected_until(&self, before: &Run, by: &Run) -> u64 {
        let excuse =
            before.refused_ns.filter(|_| before.instance != by.instance).filter(|refused| {
                let window = refused.saturating_sub(FAULT_REACH_NS)..=by.begun_ns;
                self.is_fault_within(&window)
            });
        excuse.unwrap_or(before.ended_ns)
    }

    fn judge_order(&self, runs: &[&Run], verdict: &mut LedgerReport) {
        let mut newest = 0;
        let mut first: BTreeMap<u64, u64> = BTreeMap::new();
        for run in runs.iter().filter(|run| run.succeeded) {
            let Some(first_at) = first.get(&run.number) else {
                first.insert(run.number, run.begun_ns);
                if run.number < newest {
                    verdict.disorders += 1;
                    verdict.example(format!(
                        "{}: {} succeeded at {} after {newest}",
                        run.key, run.number, run.instance
                    ));
                }
                newest = newest.max(run.number);
                continue;
            };
            verdict.duplicates += 1;
            let window = first_at.saturating_sub(FAULT_REACH_NS)..=run.begun_ns;
            if !self.is_fault_within(&window) {
                verdict.unexplained_duplicates += 1;
                verdict.example(format!(
                    "{}: {} was handled again at {} without a fault",
                    run.key, run.number, run.instance
                ));
            }
        }
    }
}

impl LedgerReport {
    fn example(&mut self, text: String) {
        if self.broken.len() < EXAMPLES {
            self.broken.push(text);
        }
    }

    /// Whether every promise was kept.
    pub fn kept(&self) -> bool {
        self.broken.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first message of a key, twice, and the second.
    const TWICE: &str =
        "B 10 1 k 1\nS 12 1\nE 13 1\nB 14 2 k 1\nS 15 2\nE 16 2\nB 17 3 k 2\nS 18 3\nE 19 3\n";

    fn judge(logs: &[&str], killed: Option<u64>, faults: &[RangeInclusive<u64>]) -> LedgerReport {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        for (at, log) in logs.iter().enumerate() {
            let path = directory.path().join(at.to_string());
            std::fs::write(&path, log).unwrap();
            ledger.read(&path, &format!("i{at}"), killed).unwrap();
        }
        [1, 2].into_iter().for_each(|number| ledger.published("k", number));
        faults.iter().for_each(|broken| ledger.fault(broken.clone()));
        ledger.judge()
    }

    #[test]
    fn an_orderly_run_is_kept() {
        let verdict =
            judge(&["B 10 1 k 1\nS 12 1\nE 13 1\n", "B 14 1 k 2\nS 15 1\nE 16 1\n"], None, &[]);
        assert!(verdict.kept(), "{verdict:?}");
    }

    #[test]
    fn every_kind_of_breach_is_seen() {
        let overlap =
            judge(&["B 10 1 k 1\nS 12 1\nE 20 1\n", "B 14 1 k 2\nS 15 1\nE 16 1\n"], None, &[]);
        assert_eq!((overlap.overlaps, overlap.lost), (1, 0));
        let disorder =
            judge(&["B 10 1 k 2\nS 12 1\nE 13 1\nB 14 2 k 1\nS 15 2\nE 16 2\n"], None, &[]);
        assert_eq!((disorder.disorders, disorder.overlaps), (1, 0));
        let lost = judge(&["B 10 1 k 1\nS 12 1\nE 13 1\nB 14 2 k 2\nE 15 2\n"], None, &[]);
        assert_eq!(lost.lost, 1);
        assert_eq!(judge(&[TWICE], None, &[]).unexplained_duplicates, 1);
        let explained = judge(&[TWICE], None, &[12..=12]);
        assert_eq!((explained.duplicates, explained.kept()), (1, true));
    }

    #[test]
    fn a_fault_that_lasts_explains_what_comes_in_its_midst_and_nothing_before_it() {
        let unexplained = |broken| judge(&[TWICE], None, &[broken]).unexplained_duplicates;
        assert_eq!(unexplained(2..=20), 0);
        assert_eq!(unexplained(15..=20), 1);
    }

    #[test]
    fn a_handler_that_goes_on_after_its_refusal_is_protected_by_the_pin() {
        let refused = "B 10 1 k 1\nN 12 1\nE 20 1\n";
        let next = "B 14 1 k 1\nS 15 1\nE 16 1\nB 17 2 k 2\nS 18 2\nE 19 2\n";
        assert_eq!(judge(&[refused, next], None, &[]).overlaps, 2);
        assert!(judge(&[refused, next], None, &[13..=13]).kept());
        let same =
            "B 10 1 k 1\nN 12 1\nB 14 2 k 1\nS 15 2\nE 16 2\nE 17 1\nB 18 3 k 2\nS 19 3\nE 20 3\n";
        assert_eq!(judge(&[same], None, &[13..=13]).overlaps, 1);
    }

    #[test]
    fn a_killed_handler_ends_with_its_process() {
        let logs = ["B 10 1 k 1\n", "B 14 1 k 1\nS 15 1\nE 16 1\nB 17 2 k 2\nS 18 2\nE 19 2\n"];
        assert_eq!(judge(&logs, Some(12), &[]).overlaps, 0);
        assert_eq!(judge(&logs, Some(15), &[]).overlaps, 1);
    }
}
