//! The short form of `make prove-apps`: what needs little or nothing installed.

use std::io::Write;
use std::process::Command;

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

/// Whether pip reaches its package source, whatever became of a larger installation.
fn reaches_pypi() -> bool {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "idna", "--dest"];
    let asked = Command::new("python3").args(pip).arg(directory.path()).output();
    asked.is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn fastapi_answers_through_us_as_it_does_directly() {
    let report = match prove("fastapi").await {
        Err(error) if error.to_string() == "install fastapi" => {
            let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!is_ci || !reaches_pypi(), "FastAPI cannot be installed: {error:#}");
            // Past the capture of a test's output, which a test that passes does not show.
            let told = format!("SKIPPED: FastAPI cannot be installed here: {error:#}\n");
            return std::io::stderr().write_all(told.as_bytes()).expect("it is open");
        }
        proven => proven.expect("everything starts"),
    };
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}
