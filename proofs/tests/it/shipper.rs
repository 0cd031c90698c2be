//! The short proof: enough chaos to notice a break, little enough to run every time.

use std::time::Duration;

use natsway_proofs::shipper::chaos::{self, Plan};
use natsway_testkit::workspace_binary;

#[tokio::test(flavor = "multi_thread")]
async fn every_line_arrives_once_and_in_order_under_chaos() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan {
        seed,
        duration: Duration::from_secs(30),
        faults: 20,
        hosts: 8,
        lines: 80_000,
        overlapping: false,
        rotate: None,
        producer: workspace_binary("producer"),
        consumer: workspace_binary("consumer"),
        directory: directory.path().to_owned(),
    };
    let outcome = chaos::run(plan).await.unwrap();
    println!("{outcome:?}");
    assert!(outcome.kept, "{outcome:#?}");
    assert_eq!((outcome.lines_written, outcome.faults_total), (80_000, 20), "{outcome:#?}");
}
