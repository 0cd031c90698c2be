//! The short form of `make prove-apps`: what needs little or nothing installed.

use natsway_proofs::{Report, Size, Transport, apps};
use tokio::sync::Mutex;

/// One at a time: each is a load that would be the other one's fault.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn prove(scenario: &str) -> anyhow::Result<Report> {
    let size = Size {
        seed: 1,
        requests: 1_000,
        rounds: 1,
        connections: 8,
        transport: Transport::Broker,
        only: scenario.to_owned(),
    };
    let _alone = ALONE.lock().await;
    apps::prove(&size).await
}

#[tokio::test]
async fn apps_that_are_restarted_in_turn_cost_no_request() {
    let report = prove("restarted_in_turn").await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}

#[tokio::test]
async fn a_killed_app_costs_what_it_held_and_no_get() {
    let report = prove("app_killed").await.expect("everything starts");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}

#[tokio::test]
async fn fastapi_answers_through_us_as_it_does_directly() {
    let report = match prove("fastapi").await {
        Err(error) if error.to_string() == "install fastapi" => {
            return eprintln!("SKIPPED: FastAPI cannot be installed here: {error:#}");
        }
        proven => proven.expect("everything starts"),
    };
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}
