//! Random sequences of faults: bounds are never broken, and nothing is scaled on what cannot be
//! believed.

use fastrand::Rng;

use super::{Plant, TICK_MS, frozen_policies, frozen_rules};
use crate::controller::Controller;
use crate::decision::{Decision, Direction};
use crate::sample::{Fault, Fleet, Sample};

/// Seconds of the longest sequence.
const LONGEST_S: u64 = 60;

/// Runs one random sequence of traffic, of polls that are missing, stuck, begun anew, wrong or
/// nonsense, and of killed instances. Gives how many decisions were made and how many of them were
/// frozen.
///
/// # Errors
/// The promise that was broken, with the decision that broke it.
pub fn fault_sequence(seed: u64) -> Result<(u64, u64), String> {
    let mut rng = Rng::with_seed(seed);
    let rules = frozen_rules(rng.u32(0..3), rng.u32(0..3));
    let (min, max, stale_after_ms) =
        (rules.scale.min, rules.scale.max, rules.window.stale_after_ms);
    let mut controller = Controller::new("faulty", rules, frozen_policies());
    let mut plant = Plant::new(min);
    let (mut generation, mut last, mut traffic) = (0, None, 0);
    let (mut decisions, mut frozen) = (0, 0);
    for second in 0..rng.u64(5..LONGEST_S) {
        let now_ms = second * 1_000;
        let truth = Sample { source: format!("plant {generation}"), ..plant.sample(now_ms) };
        let mut fleet = plant.fleet();
        let poll = match rng.u32(0..11) {
            0 => Err(Fault::Missing("no answer".to_owned())),
            1 => last.clone().unwrap_or(Ok(truth)),
            2 => {
                generation += 1;
                Ok(Sample { source: format!("plant {generation}"), ..truth })
            }
            // A follower that lags says that nothing waits.
            3 => {
                Ok(Sample { arrived: truth.completed, waiting: Some(0), in_hand: Some(0), ..truth })
            }
            4 => Ok(nonsense(&mut rng, truth)),
            5 => {
                fleet = Fleet { ready: fleet.ready.saturating_sub(rng.u32(1..5)), ..fleet };
                Ok(truth)
            }
            _ => {
                traffic = rng.u32(0..3_000);
                Ok(truth)
            }
        };
        last = Some(poll.clone());
        let before = controller.decided();
        let is_stale = |sample: &Sample| now_ms.saturating_sub(sample.at_ms) > stale_after_ms;
        let cannot_be_used = poll.as_ref().map_or(true, is_stale);
        let decision = controller.decide(now_ms, fleet, poll);
        judge(&decision, before, cannot_be_used, min, max)
            .map_err(|broken| format!("seed {seed}: {broken}: {decision}"))?;
        decisions += 1;
        frozen += u64::from(decision.direction() == Direction::Frozen);
        plant.set(now_ms, decision.to);
        for tick in 0..10 {
            plant.tick(now_ms + tick * TICK_MS, traffic / 10);
        }
    }
    Ok((decisions, frozen))
}

fn judge(
    decision: &Decision,
    before: Option<u32>,
    cannot_be_used: bool,
    min: u32,
    max: u32,
) -> Result<(), &'static str> {
    if !(min..=max).contains(&decision.to) {
        return Err("out of bounds");
    }
    let is_frozen = decision.direction() == Direction::Frozen;
    if cannot_be_used && !is_frozen {
        return Err("decided on what cannot be used");
    }
    if is_frozen && before.is_some_and(|before| before != decision.to) {
        return Err("scaled on what cannot be used");
    }
    Ok(())
}

fn nonsense(rng: &mut Rng, truth: Sample) -> Sample {
    Sample {
        at_ms: rng.u64(..),
        arrived: rng.u64(..),
        completed: rng.u64(..),
        waiting: rng.bool().then(|| rng.u64(..)),
        busy_ms: rng.bool().then(|| rng.u64(..)),
        ..truth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_sequences_break_nothing_and_freeze_often() {
        let runs: Result<Vec<_>, String> = (0..1_000).map(fault_sequence).collect();
        let runs = runs.unwrap_or_else(|broken| panic!("{broken}"));
        let (decisions, frozen) =
            runs.into_iter().fold((0, 0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
        assert!(decisions > 20_000 && frozen > decisions / 10, "{frozen} of {decisions}");
    }
}
