//! What the comparison is to show, on seeds that no parameter was chosen on.

use natsway_provisioner::simulate::{TraceKind, compare, plot, table, verdict};

/// The parameters were chosen on seeds below 1000.
const HELD_OUT: [u64; 4] = [1_001, 1_002, 1_003, 1_004];

#[test]
fn the_aims_are_reached_on_held_out_seeds() {
    let standings = compare(&TraceKind::ALL, &HELD_OUT);
    let (verdict, table) = (verdict(&standings), table(&standings));
    assert_eq!(verdict.better_than_default.len(), 8, "{verdict:?}\n{table}");
    assert!(verdict.as_good_as_tuned.len() >= 6, "{verdict:?}\n{table}");
    assert!(verdict.unbeaten_by_grid.len() >= 6, "{verdict:?}\n{table}");
    assert!(verdict.reversals_per_step <= 2, "{verdict:?}\n{table}");
    let noise =
        standings.iter().rfind(|standing| standing.trace == TraceKind::Noise).expect("ours is the last");
    assert!(
        noise.reversals <= 4.0,
        "a load that hovers at a threshold makes nothing bounce for ten minutes: {noise:?}"
    );
    let picture = plot(&standings, HELD_OUT[0]);
    for kind in TraceKind::ALL {
        assert!(picture.contains(&format!(">{}</text>", kind.name())), "{kind:?} has a panel");
    }
}
