//! The sidecar as the first process of a container: of a namespace of process ids, here.

use std::io::Write;
use std::process::Command;

use natsway_testkit::{Process, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stand::{PATIENCE, Stand, app};
use crate::stage::SUBJECT;

/// What makes a namespace of process ids, if this system lets us.
fn unshare() -> Option<Vec<&'static str>> {
    let plain = vec!["--pid", "--fork", "--kill-child", "--mount-proc"];
    let mapped = [&["--user", "--map-root-user"][..], &plain].concat();
    [plain, mapped].into_iter().find(|arguments| {
        let tried = Command::new("unshare").args(arguments).arg("true").output();
        tried.is_ok_and(|output| output.status.success())
    })
}

/// The processes that have this one as their parent: id, and state.
fn children_of(parent: Pid) -> Vec<(Pid, char)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stat = |entry: std::fs::DirEntry| {
        let id: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent: i32 = fields.next()?.parse().ok()?;
        Some((Pid::from_raw(id), state, Pid::from_raw(parent)))
    };
    let all = processes.filter_map(stat);
    all.filter(|(_, _, its)| *its == parent).map(|(id, state, _)| (id, state)).collect()
}

/// A sidecar that is the first process, and its id as we see it.
async fn first_process(stand: &mut Stand, command: &str) -> Option<(Process, Pid)> {
    let Some(unshare) = unshare() else {
        // Past the capture of a test's output, which a test that passes does not show.
        let told = b"SKIPPED: this system lets nobody make a namespace of process ids\n";
        std::io::stderr().write_all(told).unwrap();
        return None;
    };
    let prepared = stand.sidecar(&[]);
    let mut process = Process::builder("unshare")
        .args(unshare)
        .arg(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", &stand.broker.url(), "--subject", SUBJECT, "--port-env", "PORT"])
        .args(["--health", "GET /health", "--", "sh", "-c", command])
        .env("BEHAVIOUR", &prepared.behaviour)
        .env("APP", app())
        .env("NATSWAY_LOG", "info")
        .start();
    process.wait_for_line("serving subject", PATIENCE).await;
    let outer = Pid::from_raw(process.pid().try_into().unwrap());
    let (first, _) = children_of(outer).into_iter().next().expect("it has started one");
    Some((process, first))
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_first_process_it_takes_leave_of_what_others_left_behind() {
    let mut stand = Stand::start("").await;
    // Each of these is left by its parent, in a group of its own, and ends at once.
    let command = "for i in 1 2 3 4 5; do (setsid sh -c 'exit 3' &); done; exec python3 \"$APP\"";
    let Some((process, first)) = first_process(&mut stand, command).await else { return };
    assert_eq!(stand.get("/").await.status, 200);
    eventually(PATIENCE, async || {
        let children = children_of(first);
        let left = children.iter().filter(|(_, state)| *state == 'Z').count();
        if left == 0 { Ok(()) } else { Err(format!("{children:?}")) }
    })
    .await;
    // The app and its guard are not taken for those.
    assert_eq!(stand.get("/").await.status, 200);
    assert_eq!(process.stderr().matches("app started").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_first_process_it_stops_by_every_signal_that_images_are_stopped_by() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH] {
        let mut stand = Stand::start("").await;
        let command = "exec python3 \"$APP\"";
        let Some((mut process, first)) = first_process(&mut stand, command).await else { return };
        kill(first, signal).unwrap();
        assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(7), "{signal}: the app's own");
        let log = process.stderr();
        let left = log.find(" left ").expect("the worker left");
        assert!(log.find("app: told to end").expect("the app was told") > left, "{signal}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_first_process_it_passes_signals_on() {
    let mut stand = Stand::start("").await;
    let command = "exec python3 \"$APP\"";
    let Some((process, first)) = first_process(&mut stand, command).await else { return };
    kill(first, Signal::SIGUSR1).unwrap();
    // Its default ends the app, which is started again.
    eventually(PATIENCE, async || match process.stderr().contains("signal: 10 (SIGUSR1)") {
        true => Ok(()),
        false => Err(process.stderr()),
    })
    .await;
}
