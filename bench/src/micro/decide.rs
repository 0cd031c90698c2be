//! Decisions that are made for each message, and for each look of the autoscaler.

use std::hint::black_box;

use natsway_partitioned_consumer::{Membership, partition_of_key, partitions_of};
use natsway_provisioner::controller::Controller;
use natsway_provisioner::sample::{Fleet, Sample};
use natsway_provisioner::simulate::{frozen_policies, frozen_rules};

use super::{Micro, Operation};

/// The autoscaler's whole step: a look, the policies, the limits.
fn policy_step() -> Operation {
    let mut controller = Controller::new("bench", frozen_rules(1, 0), frozen_policies());
    let fleet = Fleet { ready: 10, ..Fleet::default() };
    let mut look = Sample { source: "bench".to_owned(), ..Sample::default() };
    Box::new(move || {
        look.at_ms += 1_000;
        look.arrived += 900;
        look.completed += 890;
        look.waiting = Some(look.arrived - look.completed);
        let decision = controller.decide(look.at_ms, fleet, Ok(black_box(look.clone())));
        black_box(decision.to);
    })
}

pub(super) fn all() -> Vec<Micro> {
    vec![
        Micro::new("groups/partition of a key", || {
            Box::new(|| {
                black_box(partition_of_key(black_box(["customer-4711", "order-42"]), 1_024));
            })
        }),
        Micro::new("groups/partitions of a member/1024 of 16", || {
            let names: Vec<String> = (0..16).map(|number| format!("member-{number:02}")).collect();
            let membership = Membership::balanced(names);
            Box::new(move || {
                drop(black_box(partitions_of(1_024, black_box(&membership), "member-07")))
            })
        }),
        Micro::new("autoscaler/policy step", policy_step),
    ]
}
