//! How an app is started and checked, and what is told when that fails.

use std::collections::HashSet;
use std::time::Duration;

use natsway_testkit::{Process, eventually};
use nix::unistd::Pid;
use tokio::net::TcpListener;

use super::stand::{PATIENCE, Stand, app, lives, start};
use crate::stage::SUBJECT;

/// A sidecar without a broker, for an app that never becomes healthy.
fn lonely(arguments: &[&str]) -> Process {
    Process::builder(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", "nats://127.0.0.1:1"])
        .args(arguments)
        .env("NATSWAY_LOG", "info")
        .start()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_not_started_before_another_programs_port() {
    let mut stand = Stand::start("").await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let prepared = stand.sidecar(&[]);
    let mut process = Process::builder(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", &stand.broker.url(), "--subject", SUBJECT])
        .args(["--upstream", &format!("http://127.0.0.1:{port}"), "--", "python3"])
        .arg(app())
        .env("BEHAVIOUR", &prepared.behaviour)
        .env("PORT", &port)
        .start();
    assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(255));
    let log = process.stderr();
    let told = format!("another program listens at http://127.0.0.1:{port} already");
    assert!(log.contains(&told) && !log.contains("serving subject"), "{log}");
    assert!(!prepared.behaviour.join("pid").exists(), "it was not started");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_start_has_a_port_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let ports = directory.path().join("ports");
    let command = format!("echo $PORT >> '{}'; exit 3", ports.display());
    let mut process = lonely(&["--port-env", "PORT", "--", "sh", "-c", &command]);
    assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(3));
    let ports = std::fs::read_to_string(ports).unwrap();
    let ports: Vec<_> = ports.lines().collect();
    assert_eq!(ports.len(), 5);
    assert!(ports.iter().collect::<HashSet<_>>().len() > 1, "{ports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_become_healthy_is_told_with_each_reason_once() {
    let mut stand = Stand::start("").await;
    let sidecar = stand.start_app(&["unhealthy"], &["--start-timeout", "2s"]);
    sidecar.said("app started", 2).await;
    let log = sidecar.process.stderr();
    let first_run = log.split("app ended").next().unwrap();
    let reasons: Vec<_> =
        first_run.lines().filter(|line| line.contains("app is not healthy yet")).collect();
    let with = |text: &str| reasons.iter().filter(|line| line.contains(text)).count();
    assert_eq!(with("GET /health answered 503"), 1, "{log}");
    assert!(with("refused") <= 1, "{log}");
    assert!(first_run.contains("the app did not become healthy in time"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_by_command_knows_the_port() {
    let mut stand = Stand::start("").await;
    let check = "python3 -c 'import os, urllib.request as web; \
                 web.build_opener(web.ProxyHandler({})).open( \
                 \"http://127.0.0.1:%s/health\" % os.environ[\"PORT\"])'";
    let slow = ["--health", check, "--health-timeout", "20s"];
    let sidecar = stand.serve_app(&[], &slow).await;
    assert_eq!(stand.get("/").await.status, 200);
    sidecar.make("unhealthy");
    sidecar.said("the check ended with exit status: 1", 1).await;
    sidecar.said(" left ", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_takes_too_long_ends_with_all_that_it_started() {
    let mut stand = Stand::start("").await;
    let check = "sleep 1000 & echo $! >> \"$BEHAVIOUR/sleeps\"; wait";
    let prepared = stand.sidecar(&["--health", check]);
    let process = prepared.process.args(["--", "python3"]).arg(app());
    let sidecar = start(process, prepared.behaviour, &[]);
    sidecar.said("no answer within 300ms", 1).await;
    let sleeps = sidecar.wrote("sleeps");
    let first = sleeps.lines().next().expect("the check has begun");
    let first = Pid::from_raw(first.parse().unwrap());
    eventually(PATIENCE, async || if lives(first) { Err("it lives") } else { Ok(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_not_well_for_its_check_by_command_does_not_join() {
    let mut process = lonely(&["--port-env", "PORT", "--health", "exit 4", "--", "sleep", "600"]);
    process.wait_for_line("the check ended with exit status: 4", PATIENCE).await;
    assert!(!process.stderr().contains("app is healthy"));
    process.terminate();
    assert_eq!(process.wait_exit(Duration::from_secs(30)).await.code(), Some(143));
}
