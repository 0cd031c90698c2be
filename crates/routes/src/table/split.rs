//! The versions behind a route, and how traffic is split between them.

use natsway_wire::{QueueGroup, Subject};

/// One version of a service: a subject, its queue group, and its share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name that operators and metrics use, say `blue`.
    pub version: String,
    /// Where its workers listen.
    pub subject: Subject,
    /// The queue group that its workers form: what a gateway joins when it stands in for the last
    /// of them.
    pub queue_group: QueueGroup,
    /// Its share: 0 gets nothing, others in proportion. At most [`Split::MOST_WEIGHT`].
    pub weight: u32,
}

/// The versions of a route; by default none, which only a route has that asks no worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    targets: Vec<Target>,
    /// Running totals of the weights, as long as `targets`.
    cumulative: Vec<u32>,
}

/// Why a set of versions is not a split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A route without a version serves nothing.
    #[error("needs one target at least")]
    Empty,
    /// More than 64 versions.
    #[error("has more than {} targets", Split::MOST_TARGETS)]
    TooMany,
    /// A version is named twice.
    #[error("names version {0:?} twice")]
    DuplicateVersion(String),
    /// A weight is out of range.
    #[error("version {version:?}: weight {weight}: expected 0..={}", Split::MOST_WEIGHT)]
    Weight {
        /// The version.
        version: String,
        /// Its weight.
        weight: u32,
    },
}

impl Split {
    /// The largest weight of one version.
    pub const MOST_WEIGHT: u32 = 1_000_000;
    /// The most versions of one route.
    pub const MOST_TARGETS: usize = 64;

    /// Checks the versions and sums their weights.
    ///
    /// # Errors
    /// The first [`SplitError`].
    pub fn new(targets: Vec<Target>) -> Result<Self, SplitError> {
        if targets.is_empty() {
            return Err(SplitError::Empty);
        }
        if targets.len() > Self::MOST_TARGETS {
            return Err(SplitError::TooMany);
        }
        let mut cumulative = Vec::with_capacity(targets.len());
        let mut total = 0;
        for (index, target) in targets.iter().enumerate() {
            if targets[..index].iter().any(|other| other.version == target.version) {
                return Err(SplitError::DuplicateVersion(target.version.clone()));
            }
            if target.weight > Self::MOST_WEIGHT {
                return Err(SplitError::Weight {
                    version: target.version.clone(),
                    weight: target.weight,
                });
            }
            total += target.weight;
            cumulative.push(total);
        }
        Ok(Self { targets, cumulative })
    }

    /// All versions, those of weight 0 too.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The index of the version that a random number chooses; `None` when every weight is 0.
    pub fn pick(&self, random: u32) -> Option<usize> {
        let total = *self.cumulative.last()?;
        if total == 0 {
            return None;
        }
        // Scales the random number into 0..total without the bias or the cost of a remainder.
        let point = ((u64::from(random) * u64::from(total)) >> 32) as u32;
        self.cumulative.iter().position(|end| point < *end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(weights: &[u32]) -> Split {
        let target = |(index, weight): (usize, &u32)| Target {
            version: format!("v{index}"),
            subject: format!("svc.x.v{index}").parse().unwrap(),
            queue_group: QueueGroup::default(),
            weight: *weight,
        };
        Split::new(weights.iter().enumerate().map(target).collect()).unwrap()
    }

    #[test]
    fn all_zero_picks_nothing() {
        assert_eq!(split(&[0, 0]).pick(u32::MAX), None);
    }

    #[test]
    fn the_whole_range_of_random_numbers_splits_by_weight() {
        let split = split(&[1, 0, 2, 1]);
        let mut counts = [0; 4];
        for step in 0..4_000_u32 {
            // In the middle of each of 4,000 equal parts, so that rounding moves none across a
            // border.
            let part = u32::MAX / 4_000;
            counts[split.pick(step * part + part / 2).unwrap()] += 1;
        }
        assert_eq!(counts, [1_000, 0, 2_000, 1_000]);
    }

    proptest! {
        #[test]
        fn weight_zero_is_never_picked(weights in prop::collection::vec(0..5_u32, 1..8), random: u32) {
            let picked = split(&weights).pick(random);
            prop_assert_eq!(picked.is_none(), weights.iter().all(|weight| *weight == 0));
            if let Some(index) = picked {
                prop_assert!(weights[index] > 0);
            }
        }
    }
}
