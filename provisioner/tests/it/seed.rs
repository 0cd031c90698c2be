//! The run of NATS by Example: same stream, same consumers, same rule.

#[path = "../../examples/auto_scaler/rehearsal.rs"]
mod rehearsal;

use std::time::Duration;

use natsway_testkit::TestBroker;
use rehearsal::{Plan, rehearse};

/// A machine that is busy sends slower; then the rule rightly wants others.
const IN_TIME: f64 = 0.03;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_run_goes_as_its_transcript_and_loses_nothing() {
    let broker = TestBroker::builder().jetstream().start().await;
    let outcome = rehearse(broker.connect().await, Plan::TRANSCRIPT, |line| println!("{line}"))
        .await
        .unwrap();
    assert_eq!((outcome.answered, outcome.processed, outcome.twice), (20_000, 20_000, 0));
    let by_one = outcome.trajectory.windows(2).all(|pair| pair[1] <= pair[0] + 1);
    assert!(
        by_one && outcome.trajectory.first() == Some(&0) && outcome.trajectory.last() == Some(&0),
        "{outcome:?}"
    );
    let planned = Plan::TRANSCRIPT.per_second.map(|rate| Duration::from_secs(10_000) / rate);
    let in_time = planned
        .iter()
        .zip(outcome.took)
        .all(|(planned, took)| took < planned.mul_f64(1.0 + IN_TIME));
    if in_time {
        assert_eq!(
            outcome.trajectory,
            [0, 1, 2, 3, 4, 5, 4, 3, 4, 3, 2, 1, 0],
            "0-5, 5-3, 3-4, 4-0"
        );
    }
}
