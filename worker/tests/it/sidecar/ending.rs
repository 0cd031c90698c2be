//! How an app ends with its sidecar: all of it, and in its own time where there is time.

use natsway_testkit::eventually;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::stand::{PATIENCE, Stand, lives};

async fn has_ended(app: Pid) {
    eventually(PATIENCE, async || if lives(app) { Err("it lives") } else { Ok(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shell_started_has_the_whole_grace_to_end() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_by_shell(&["thorough"], &["--stop-grace", "30s"]).await;
    let app = sidecar.app_itself();
    assert_ne!(app, sidecar.app(), "the shell is its parent");
    sidecar.process.terminate();
    // The shell's own, which ends by the signal.
    assert_eq!(sidecar.process.wait_exit(PATIENCE).await.code(), Some(143));
    assert!(!lives(app));
    sidecar.made("finished").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shell_started_is_killed_when_its_grace_is_over() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_by_shell(&["stubborn"], &["--stop-grace", "300ms"]).await;
    let app = sidecar.app_itself();
    sidecar.process.terminate();
    assert_eq!(sidecar.process.wait_exit(PATIENCE).await.code(), Some(143));
    assert!(!lives(app));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_takes_along_what_a_shell_started() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_by_shell(&["stubborn"], &[]).await;
    let app = sidecar.app_itself();
    sidecar.process.kill9();
    has_ended(app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_all_of_it() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_by_shell(&["stubborn"], &["--stop-grace", "10m"]).await;
    let app = sidecar.app_itself();
    sidecar.process.terminate();
    sidecar.said("app: told to end", 1).await;
    sidecar.process.terminate();
    assert_eq!(sidecar.process.wait_exit(PATIENCE).await.code(), Some(130));
    has_ended(app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_stops_as_sigterm_does() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_app(&[], &[]).await;
    sidecar.process.signal(Signal::SIGQUIT);
    assert_eq!(sidecar.process.wait_exit(PATIENCE).await.code(), Some(7), "the app's own");
    let log = sidecar.process.stderr();
    let left = log.find(" left ").expect("the worker left");
    assert!(log.find("app: told to end").expect("the app was told") > left, "{log}");
}
