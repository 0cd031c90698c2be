//! The short form of `make prove-provisioner`. What is simulated is in the provisioner's own tests.

use natsway_proofs::{Size, Transport, provisioner};

#[tokio::test]
async fn killed_workers_leaders_and_brokers_cost_no_instance() {
    let size = Size {
        seed: 1,
        requests: 0,
        rounds: 1,
        connections: 0,
        transport: Transport::Broker,
        only: "kills".to_owned(),
    };
    let report = provisioner::prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), ["kills"], "it ran");
}

#[tokio::test]
async fn a_flash_crowd_is_met_and_sent_home_without_a_failed_request() {
    let size = Size {
        seed: 1,
        requests: 0,
        rounds: 1,
        connections: 0,
        transport: Transport::Broker,
        only: "flash_crowd".to_owned(),
    };
    let report = provisioner::prove(&size).await.expect("everything starts");
    // How soon is for the long form: a test asserts no speed.
    let broken: Vec<String> =
        report.broken().into_iter().filter(|broken| !broken.contains("scaled out after")).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert_eq!(report.scenarios(), ["flash_crowd"], "it ran");
}

#[tokio::test]
async fn a_frozen_worker_goes_and_the_healthy_ones_stay() {
    let size = Size {
        seed: 1,
        requests: 0,
        rounds: 1,
        connections: 0,
        transport: Transport::Broker,
        only: "frozen_workers".to_owned(),
    };
    let report = provisioner::prove(&size).await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
    assert_eq!(report.scenarios(), ["frozen_workers"], "it ran");
}
