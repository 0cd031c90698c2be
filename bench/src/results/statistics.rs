//! Medians, spreads and intervals of a handful of runs. Pure.

use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap: more changes the second digit of an interval no more.
const RESAMPLES: usize = 2_000;

/// The interval covers this part of the resamples.
const COVERED: f64 = 0.95;

/// What several runs of one thing gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// How many runs there were.
    pub runs: usize,
}

/// A figure with the interval that it lies in, as far as a few runs can tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

impl Spread {
    /// Of the runs' figures, in any order; nothing of no runs.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        Some(Self { median: median(&values), least, most, runs: values.len() })
    }

    /// Half of the distance from the least to the most, as a part of the median.
    pub fn half_range(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.most - self.least) / 2.0 / self.median.abs() }
    }

    /// Whether no run of one is among those of the other.
    pub fn apart(&self, other: &Self) -> bool {
        self.most < other.least || other.most < self.least
    }
}

impl Estimate {
    /// The median of ratios, each of two runs made in the same round, with the interval that 95 %
    /// of 2,000 bootstrap resamples of the rounds fall in (Efron 1979, the percentile method). Two
    /// or three rounds give little more than their range.
    ///
    /// The same ratios always give the same interval.
    pub fn of_ratios(ratios: &[f64]) -> Option<Self> {
        if ratios.is_empty() {
            return None;
        }
        let mut sorted = ratios.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut random = fastrand::Rng::with_seed(0x6e61_7473);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let mut drawn: Vec<f64> =
                    sorted.iter().map(|_| sorted[random.usize(..sorted.len())]).collect();
                drawn.sort_by(f64::total_cmp);
                median(&drawn)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        let tail = (1.0 - COVERED) / 2.0;
        let at = |part: f64| medians[((RESAMPLES - 1) as f64 * part).round() as usize];
        Some(Self { value: median(&sorted), low: at(tail), high: at(1.0 - tail) })
    }
}

/// Of values that are sorted, one at least.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median_and_its_ends() {
        let spread = Spread::of([110.0, 90.0, 100.0]).unwrap();
        assert_eq!(spread, Spread { median: 100.0, least: 90.0, most: 110.0, runs: 3 });
        assert_eq!(spread.half_range(), 0.1);
        assert_eq!(Spread::of([1.0, 3.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([0.0]).unwrap().half_range(), 0.0);
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn spreads_that_touch_are_not_apart() {
        let of = |least, most| Spread::of([least, most]).unwrap();
        assert!(of(1.0, 2.0).apart(&of(2.1, 3.0)));
        assert!(of(2.1, 3.0).apart(&of(1.0, 2.0)));
        assert!(!of(1.0, 2.0).apart(&of(2.0, 3.0)));
        assert!(!of(1.0, 9.0).apart(&of(2.0, 3.0)));
    }

    #[test]
    fn an_interval_holds_its_value_and_narrows_as_rounds_agree() {
        let wide = Estimate::of_ratios(&[0.4, 0.5, 0.6]).unwrap();
        let narrow = Estimate::of_ratios(&[0.49, 0.5, 0.51]).unwrap();
        for estimate in [wide, narrow] {
            assert!(
                estimate.low <= estimate.value && estimate.value <= estimate.high,
                "{estimate:?}"
            );
            assert_eq!(estimate.value, 0.5);
        }
        assert!(narrow.high - narrow.low < wide.high - wide.low);
        assert_eq!(
            wide,
            Estimate::of_ratios(&[0.6, 0.4, 0.5]).unwrap(),
            "the order of rounds is no matter"
        );
        assert!(Estimate::of_ratios(&[]).is_none());
    }

    #[test]
    fn an_interval_of_many_rounds_leaves_out_the_stray_one() {
        let mut ratios = vec![1.0; 30];
        ratios.push(9.0);
        assert_eq!(
            Estimate::of_ratios(&ratios).unwrap(),
            Estimate { value: 1.0, low: 1.0, high: 1.0 }
        );
    }
}
