//! Two runs of the benchmark side by side: what changed by more than the runs scatter. Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::statistics::Spread;
use super::{Cell, Results, Sample};

/// Smaller changes are noise on a shared machine, however well three runs agree.
const NOISE: f64 = 0.05;

/// Instructions are the same in each run: what is left is the allocator's and the hasher's chance.
const INSTRUCTION_NOISE: f64 = 0.02;

/// A figure that two results have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which cell, or which operation.
    pub what: String,
    /// Which figure of it.
    pub figure: &'static str,
    /// The old median.
    pub old: f64,
    /// The new median.
    pub new: f64,
    /// What to make of it.
    pub verdict: ChangeKind,
}

/// What to make of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Beyond the spread, for the better.
    Better,
    /// Beyond the spread, for the worse.
    Worse,
    /// Within the spread, or too small to tell.
    Same,
}

#[derive(Clone, Copy)]
enum Wanted {
    More,
    Less,
}

type Figure = (&'static str, Wanted, fn(&Sample) -> Option<f64>);

const FIGURES: [Figure; 4] = [
    ("requests/s", Wanted::More, |sample| Some(sample.per_second)),
    ("p99 ms", Wanted::Less, |sample| sample.latency("p99")),
    ("CPU µs/request", Wanted::Less, |sample| Some(sample.total_cpu_us())),
    ("errors", Wanted::Less, |sample| Some(sample.errors as f64)),
];

/// Every figure that both have, in the old one's order. `relative` compares requests per second as
/// parts of the scenario's baseline, for results of machines or days that differ.
pub fn compare(old: &Results, new: &Results, relative: bool) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut seen = BTreeSet::new();
    for cell in old.samples.iter().map(Cell::of).filter(|cell| seen.insert(*cell)) {
        if relative {
            changes.extend(of_baseline(old, new, cell));
            continue;
        }
        for (name, wanted, figure) in FIGURES {
            let spreads = old.spread(cell, figure).zip(new.spread(cell, figure));
            changes.extend(spreads.map(|(old, new)| change(cell, name, wanted, old, new)));
        }
    }
    for (operation, &count) in &old.instructions {
        let Some(&now) = new.instructions.get(operation) else { continue };
        let verdict = judge(Wanted::Less, count, now, INSTRUCTION_NOISE);
        changes.push(Change {
            what: operation.clone(),
            figure: "instructions",
            old: count,
            new: now,
            verdict,
        });
    }
    changes
}

fn of_baseline(old: &Results, new: &Results, cell: Cell<'_>) -> Option<Change> {
    let baseline = &old.scenario(cell.scenario)?.baseline;
    if cell.contender == baseline.as_str() {
        return None;
    }
    let to = Cell { contender: baseline, ..cell };
    let (before, after) = old.ratio(cell, to).zip(new.ratio(cell, to))?;
    let spread = |estimate: super::Estimate| Spread {
        median: estimate.value,
        least: estimate.low,
        most: estimate.high,
        runs: 0,
    };
    Some(change(cell, "of the baseline", Wanted::More, spread(before), spread(after)))
}

fn change(
    cell: Cell<'_>,
    figure: &'static str,
    wanted: Wanted,
    old: Spread,
    new: Spread,
) -> Change {
    let verdict = if old.apart(&new) {
        judge(wanted, old.median, new.median, NOISE)
    } else {
        ChangeKind::Same
    };
    Change { what: cell.to_string(), figure, old: old.median, new: new.median, verdict }
}

fn judge(wanted: Wanted, old: f64, new: f64, noise: f64) -> ChangeKind {
    let more = new > old * (1.0 + noise);
    let less = new < old * (1.0 - noise);
    match (wanted, more, less) {
        (_, false, false) => ChangeKind::Same,
        (Wanted::More, true, _) | (Wanted::Less, _, true) => ChangeKind::Better,
        _ => ChangeKind::Worse,
    }
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.scenario, self.contender, self.load)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, figure, old, new, verdict } = self;
        let percent = if *old == 0.0 {
            "new".to_owned()
        } else {
            format!("{:+.1} %", (new / old - 1.0) * 100.0)
        };
        let word = match verdict {
            ChangeKind::Better => "better",
            ChangeKind::Worse => "WORSE",
            ChangeKind::Same => "same",
        };
        write!(f, "{word:6} {what:44} {figure:16} {old:>11.2} -> {new:>11.2}  {percent:>9}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{results, sample};
    use super::*;

    fn of_rates(rates: [f64; 3]) -> Results {
        let rounds = rates.iter().zip(0..);
        results(rounds.map(|(rate, round)| sample("natsway", "c64", round, *rate)).collect())
    }

    fn rate_verdict(old: [f64; 3], new: [f64; 3]) -> ChangeKind {
        let changes = compare(&of_rates(old), &of_rates(new), false);
        changes.iter().find(|change| change.figure == "requests/s").unwrap().verdict
    }

    #[test]
    fn only_a_change_beyond_the_spread_counts() {
        assert_eq!(rate_verdict([100.0, 101.0, 102.0], [90.0, 91.0, 92.0]), ChangeKind::Worse);
        assert_eq!(rate_verdict([90.0, 91.0, 92.0], [100.0, 101.0, 102.0]), ChangeKind::Better);
        assert_eq!(
            rate_verdict([80.0, 101.0, 102.0], [90.0, 91.0, 92.0]),
            ChangeKind::Same,
            "runs overlap"
        );
        assert_eq!(
            rate_verdict([100.0, 100.0, 100.0], [97.0, 97.0, 97.0]),
            ChangeKind::Same,
            "3 % is noise"
        );
    }

    #[test]
    fn instructions_show_a_regression_of_five_percent() {
        let with = |count| {
            let mut results = results(Vec::new());
            results.instructions.insert("envelope/encode".to_owned(), count);
            results
        };
        let verdict = |old, new| compare(&with(old), &with(new), false)[0].verdict;
        assert_eq!(verdict(1_000.0, 1_050.0), ChangeKind::Worse);
        assert_eq!(verdict(1_000.0, 1_010.0), ChangeKind::Same);
        assert_eq!(verdict(1_000.0, 900.0), ChangeKind::Better);
    }

    #[test]
    fn an_error_where_there_was_none_is_worse() {
        let old = of_rates([100.0, 100.0, 100.0]);
        let mut new = old.clone();
        new.samples.iter_mut().for_each(|sample| sample.errors = 1);
        let changes = compare(&old, &new, false);
        let errors = changes.iter().find(|change| change.figure == "errors").unwrap();
        assert_eq!(errors.verdict, ChangeKind::Worse);
        assert!(errors.to_string().starts_with("WORSE  peers/natsway/c64"), "{errors}");
    }

    #[test]
    fn what_only_one_has_is_left_out() {
        let old = of_rates([100.0, 100.0, 100.0]);
        let new = results(vec![sample("nginx", "c64", 0, 5.0)]);
        assert!(compare(&old, &new, false).is_empty());
    }
}
