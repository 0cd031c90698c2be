//! What a client tells others of its calls, by which a version's drain waits for it.

use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use futures_util::StreamExt;
use natsway_routes::document::RouteDocument;
use natsway_routes::report::{self, Report, Role};
use natsway_routes::rollout::Phase;
use natsway_testkit::{Process, eventually, free_port, workspace_binary};
use natsway_wire::control::metrics_subject;
use tokio::sync::Semaphore;

use super::{DEADLINE, Stage, ask, goes_by, post};

const BLUE: &str = r#""path":"/t","target":[{"version":"blue","subject":"svc.test.blue"}]"#;
const GREEN: &str = r#""path":"/t","target":[{"version":"green","subject":"svc.test.green"}]"#;

/// Tries that are out to a version, and those that have ended.
fn of_version(report: &Report, version: &str) -> (i64, u64) {
    let of = report.versions.iter().find(|of| of.route == "test" && of.version == version);
    of.map_or((0, 0), |of| (of.metrics.in_flight, of.metrics.requests()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_the_version_called_can_wait_for_the_calls_that_are_out() {
    let stage = Stage::new(&[("test", BLUE)]).await;
    let go = Arc::new(Semaphore::new(0));
    let wait = Arc::clone(&go);
    let held = async move || {
        wait.acquire().await.map(|permit| permit.forget()).map_or("closed", |()| "done")
    };
    let _blue = stage.worker("svc.test.blue", Router::new().fallback(any(held))).await;
    let calls: Vec<_> =
        (0..3).map(|_| tokio::spawn(stage.client.send(post("http://test/", "x")))).collect();
    eventually(DEADLINE, async || {
        let metrics = of_version(&ask(&stage.nats).await, "blue");
        if metrics == (3, 0) { Ok(()) } else { Err(metrics) }
    })
    .await;

    // The client says by which routes it goes: from then on, what is out to blue only becomes less.
    let revision = stage.change("test", GREEN).await;
    let report = goes_by(&stage, revision).await;
    assert_eq!((report.role, of_version(&report, "blue")), (Role::Caller, (3, 0)));
    assert!(report.host.ends_with(" test") && !report.leaving, "{report:?}");

    go.add_permits(3);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    eventually(DEADLINE, async || {
        let metrics = of_version(&ask(&stage.nats).await, "blue");
        if metrics == (0, 3) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

/// Phases of a rollout, as long as it is driven.
async fn phase(stage: &Stage) -> Option<Phase> {
    let stored = stage.store.get("test").await.unwrap().unwrap();
    RouteDocument::from_json(&stored.bytes).unwrap().rollout.map(|rollout| rollout.phase)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_waits_for_what_a_client_has_out_to_the_version_that_it_leaves() {
    let program = tokio::task::spawn_blocking(|| workspace_binary("apiproxy")).await.unwrap();
    let both = r#""path":"/t","target":[{"version":"blue","subject":"svc.test.blue"},
        {"version":"green","subject":"svc.test.green","weight":0}]"#;
    let stage = Stage::new(&[("test", both)]).await;
    let go = Arc::new(Semaphore::new(0));
    let wait = Arc::clone(&go);
    let held = async move || {
        wait.acquire().await.map(|permit| permit.forget()).map_or("closed", |()| "done")
    };
    let blue = stage.worker("svc.test.blue", Router::new().fallback(any(held))).await;
    let _green = stage.naming_worker("svc.test.green").await;
    let call = tokio::spawn(stage.client.send(post("http://test/", "x")));
    eventually(DEADLINE, async || of_version(&ask(&stage.nats).await, "blue") == (1, 0)).await;

    let addresses = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let _gateway = Process::builder(&program)
        .args([
            "--nats-url",
            &stage.broker.url(),
            "--listen",
            &addresses[0],
            "--admin-listen",
            &addresses[1],
        ])
        .start();
    let start = ["rollout", "start", "test", "--to", "green", "--strategy", "blue-green"];
    let mut started =
        Process::builder(&program).args(start).args(["--nats-url", &stage.broker.url()]).start();
    assert!(started.wait_exit(DEADLINE).await.success(), "{}", started.stderr());
    let has_phase = async |expected| {
        eventually(DEADLINE, async || {
            let phase = phase(&stage).await;
            if phase == Some(expected) { Ok(()) } else { Err(phase) }
        })
        .await;
    };
    has_phase(Phase::Draining).await;
    // New calls go to green, which is there now; the old one holds the rollout, whatever is
    // reported meanwhile.
    super::eventually_says(&stage.client, "http://test/", "svc.test.green").await;
    tokio::time::sleep(3 * report::PERIOD).await;
    assert_eq!(phase(&stage).await, Some(Phase::Draining));

    go.add_permits(1);
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    has_phase(Phase::Promoted).await;
    // Which is what blue's workers may leave upon; nothing comes any more.
    let summary = blue.leave().await;
    assert_eq!((summary.requests, summary.unfinished), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_says_that_it_leaves_after_its_last_call() {
    for by_closing in [true, false] {
        let stage = Stage::new(&[("test", BLUE)]).await;
        let mut told = stage.nats.subscribe(metrics_subject("*", "*")).await.unwrap();
        let first = Report::read(&told.next().await.unwrap().payload).unwrap();
        assert!(!first.leaving && first.role == Role::Caller);
        if by_closing {
            stage.client.close().await;
        }
        // Otherwise the last clone is dropped.
        let Stage { client, broker: _broker, .. } = stage;
        drop(client);
        eventually(DEADLINE, async || {
            let report = Report::read(&told.next().await.unwrap().payload).unwrap();
            assert_eq!(report.id, first.id);
            report.leaving
        })
        .await;
    }
}
