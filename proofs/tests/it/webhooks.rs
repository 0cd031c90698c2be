//! The short form of `make prove-webhooks`: a leader is killed under a small load.

use natsway_proofs::webhooks::{Size, prove};

#[tokio::test]
async fn every_webhook_that_was_answered_202_is_in_the_stream_once() {
    let size = Size {
        seed: 1,
        webhooks: 2_000,
        fault_interval: 2,
        faults: 2,
        connections: 8,
        only: String::new(),
    };
    let report = prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), ["brokers_broken"], "it ran");
}
