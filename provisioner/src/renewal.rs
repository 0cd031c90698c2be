//! Replaces instances that were started by other rules than those in force, one at a time. Pure.

/// What is known when the next step is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    /// Instances that were started by other rules, of those that are present.
    pub outdated: u32,
    /// Instances that are present, starting ones included.
    pub present: u32,
    /// Instances that start.
    pub starting: u32,
    /// As many as were decided on.
    pub wanted: u32,
    /// The fewest that there may be.
    pub min: u32,
    /// The most that there may be.
    pub max: u32,
    /// Whether one was started beyond `wanted`, in the place of one that is outdated.
    pub has_spare: bool,
    /// Whether nothing may be started now.
    pub is_paused: bool,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// None.
    Wait,
    /// One more is started, in the place of one that is stopped when it is ready.
    Start,
    /// One that is outdated is told to stop.
    Stop,
}

impl Renewal {
    /// The next step. Another is started first where the bounds leave room, or leave none in either
    /// direction: requests to nobody fail. Nothing is stopped while one starts, or while those that
    /// were started fail.
    pub fn next(self) -> Step {
        let Self { outdated, present, starting, wanted, min, max, has_spare, is_paused } = self;
        if outdated == 0 || starting > 0 || is_paused {
            return Step::Wait;
        }
        if has_spare {
            return if present > wanted { Step::Stop } else { Step::Wait };
        }
        if present != wanted {
            // Others are started or stopped first.
            return Step::Wait;
        }
        if present < max || present <= min { Step::Start } else { Step::Stop }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_are_renewed_within_the_bounds(min in 1_u32..6, more in 0_u32..5, place in 0_u32..5, slow in 0_u32..4) {
            let (max, wanted) = (min + more, min + place.min(more));
            let (mut outdated, mut fresh, mut starting, mut has_spare) = (wanted, 0, Vec::new(), false);
            for _ in 0..200 {
                starting.iter_mut().for_each(|left: &mut u32| *left = left.saturating_sub(1));
                fresh += starting.iter().filter(|left| **left == 0).count() as u32;
                starting.retain(|left| *left > 0);
                let present = outdated + fresh + starting.len() as u32;
                // As the decision does it: the spare one is not counted.
                let counted = present - u32::from(has_spare);
                if counted < wanted {
                    starting.push(slow + 1);
                    continue;
                }
                let known = Renewal {
                    outdated, present, starting: starting.len() as u32, wanted, min, max, has_spare, is_paused: false,
                };
                match known.next() {
                    Step::Wait => {}
                    Step::Start => { starting.push(slow + 1); has_spare = true; }
                    Step::Stop => { outdated -= 1; has_spare = false; }
                }
                let working = outdated + fresh;
                prop_assert!(working >= min, "{working} of {min}");
                let most = if min == max { max + 1 } else { max };
                prop_assert!(working + starting.len() as u32 <= most);
            }
            prop_assert_eq!((outdated, fresh, has_spare), (0, wanted, false));
        }
    }

    #[test]
    fn nothing_is_stopped_while_what_is_started_fails() {
        let known = Renewal {
            outdated: 3,
            present: 3,
            starting: 0,
            wanted: 3,
            min: 1,
            max: 3,
            has_spare: false,
            is_paused: true,
        };
        assert_eq!(known.next(), Step::Wait);
        assert_eq!(
            Renewal { is_paused: false, ..known }.next(),
            Step::Stop,
            "there is no room for another"
        );
        assert_eq!(Renewal { is_paused: false, max: 9, ..known }.next(), Step::Start);
    }
}
