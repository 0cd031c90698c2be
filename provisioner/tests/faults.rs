//! A thousand random sequences of faults: bounds are never broken, and nothing is scaled on what cannot be believed.

use natsway_provisioner::controller::Controller;
use natsway_provisioner::decision::Course;
use natsway_provisioner::sample::{Fault, Fleet, Sample};
use natsway_provisioner::simulate::{Plant, TICK_MS, frozen_policies, frozen_rules};
use proptest::prelude::*;

/// Arrived, completed, when, waiting, time spent.
type Figures = (u64, u64, u64, Option<u64>, Option<u64>);

/// What happens in one second.
#[derive(Clone, Debug)]
enum Happening {
    /// So many messages come, and the look is true.
    Traffic(u32),
    /// The look is missing.
    Missing,
    /// The look is the one of the second before.
    Stuck,
    /// The counters began anew.
    Restarted,
    /// A follower answers that nothing waits.
    NothingWaits,
    /// Any figures at all.
    Nonsense(Box<Figures>),
    /// Instances die.
    Killed(u32),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        5 => (0_u32..3_000).prop_map(Happening::Traffic),
        1 => Just(Happening::Missing),
        1 => Just(Happening::Stuck),
        1 => Just(Happening::Restarted),
        1 => Just(Happening::NothingWaits),
        1 => any::<Figures>().prop_map(|figures| Happening::Nonsense(Box::new(figures))),
        1 => (1_u32..5).prop_map(Happening::Killed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_and_missing_data_changes_nothing(
        min in 0_u32..3,
        spares in 0_u32..3,
        happenings in prop::collection::vec(happening(), 5..60),
    ) {
        let rules = frozen_rules(min, spares);
        let (max, stale_after_ms) = (rules.scale.max, rules.window.stale_after_ms);
        let mut controller = Controller::new("faulty", rules, frozen_policies());
        let mut plant = Plant::new(min);
        let (mut generation, mut last) = (0, None);
        for (second, happening) in (0_u64..).zip(happenings) {
            let now_ms = second * 1_000;
            let mut traffic = 0;
            let truth = Sample { source: format!("plant {generation}"), ..plant.sample(now_ms) };
            let mut fleet = plant.fleet();
            let look = match happening {
                Happening::Traffic(messages) => {
                    traffic = messages;
                    Ok(truth)
                }
                Happening::Missing => Err(Fault::Missing("no answer".into())),
                Happening::Stuck => last.clone().unwrap_or(Ok(truth)),
                Happening::Restarted => {
                    generation += 1;
                    Ok(Sample { source: format!("plant {generation}"), ..truth })
                }
                Happening::NothingWaits => {
                    Ok(Sample { arrived: truth.completed, waiting: Some(0), in_hand: Some(0), ..truth })
                }
                Happening::Nonsense(figures) => {
                    let (arrived, completed, at_ms, waiting, busy_ms) = *figures;
                    Ok(Sample { at_ms, arrived, completed, waiting, busy_ms, ..truth })
                }
                Happening::Killed(instances) => {
                    fleet = Fleet { ready: fleet.ready.saturating_sub(instances), ..fleet };
                    Ok(truth)
                }
            };
            let before = controller.decided();
            let cannot_be_used = match &look {
                Err(_) => true,
                Ok(sample) => now_ms.saturating_sub(sample.at_ms) > stale_after_ms,
            };
            last = Some(look.clone());
            let decision = controller.decide(now_ms, fleet, look);
            prop_assert!((min..=max).contains(&decision.to), "{decision}");
            if cannot_be_used {
                prop_assert_eq!(decision.course(), Course::Frozen, "{}", &decision);
            }
            if decision.course() == Course::Frozen && let Some(before) = before {
                prop_assert_eq!(decision.to, before, "what was decided stays: {}", &decision);
            }
            plant.set(now_ms, decision.to);
            for tick in 0..10 {
                plant.tick(now_ms + tick * TICK_MS, traffic / 10);
            }
        }
    }
}
