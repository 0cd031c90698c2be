//! The short form of `make prove-cluster`: each promise once, with a small load.

use natsway_proofs::{Size, Transport, cluster};

/// One cluster at a time: each takes three brokers and a dozen processes.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn kept(scenario: &str) {
    let _turn = TURN.lock().await;
    let size = Size {
        seed: 1,
        requests: 1_000,
        rounds: 1,
        connections: 8,
        transport: Transport::Broker,
        only: scenario.to_owned(),
    };
    let report = cluster::prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), [scenario], "it ran");
}

#[tokio::test]
async fn a_cluster_that_forms_late_is_waited_for_and_nobody_is_ready_before() {
    kept("forming").await;
}

#[tokio::test]
async fn any_broker_may_be_killed_and_no_get_and_no_message_is_lost() {
    kept("broker_killed").await;
}

#[tokio::test]
async fn any_broker_may_freeze_and_no_get_and_no_message_is_lost() {
    kept("broker_frozen").await;
}

#[tokio::test]
async fn all_workers_restart_at_once_and_no_request_fails() {
    kept("workers_restart").await;
}
