//! A process and all it started is at the test's command, and never outlives it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use natsway_testkit::{Process, Signal, eventually};

const DEADLINE: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Process {
    Process::builder("sh").args(["-c", script]).env("GREETING", "hello").start()
}

/// Whether a process is there and no zombie, by its pid.
fn runs(pid: &str) -> bool {
    let state = if cfg!(target_os = "linux") {
        let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        line.rsplit_once(") ").map(|(_, fields)| fields.to_owned()).unwrap_or_default()
    } else {
        let listed = Command::new("ps").args(["-o", "stat=", "-p", pid]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    };
    !state.trim().is_empty() && !state.starts_with('Z')
}

#[tokio::test]
async fn output_and_exit_code_can_be_read() {
    let mut process = shell("echo $GREETING; echo oops >&2; exit 3");
    assert_eq!(process.wait_exit(DEADLINE).await.code(), Some(3));
    assert_eq!((process.stdout().trim(), process.stderr().trim()), ("hello", "oops"));
}

#[tokio::test]
async fn a_line_is_waited_for() {
    let mut process = shell("echo starting; echo listening on 80; sleep 60");
    assert_eq!(process.wait_for_line("listening", DEADLINE).await, "listening on 80");
    process.terminate();
    assert_eq!(process.wait_exit(DEADLINE).await.signal(), Some(Signal::SIGTERM as i32));
}

#[tokio::test]
#[should_panic(expected = "without a line with \"listening\"")]
async fn a_process_that_ends_is_not_waited_for() {
    shell("exit 1").wait_for_line("listening", DEADLINE).await;
}

#[tokio::test]
async fn a_frozen_process_is_killed_with_all_it_started() {
    let mut process = shell("sleep 60 & echo child $!; wait");
    let line = process.wait_for_line("child", DEADLINE).await;
    let grandchild = line.trim_start_matches("child ").to_owned();
    process.freeze();
    assert!(runs(&grandchild));
    assert_eq!(process.kill9().signal(), Some(Signal::SIGKILL as i32));
    eventually(DEADLINE, async || !runs(&grandchild)).await;
}

#[tokio::test]
async fn a_test_that_is_killed_takes_its_processes_along() {
    // This program again, running only the test below, which starts a process and waits.
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_for_the_test_above", "--nocapture"])
        .env("NATSWAY_TESTKIT_WAIT", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(test.stdout.take().unwrap()));
    let child = lines
        .find_map(|line| line.unwrap().split_once("child ").map(|(_, pid)| pid.to_owned()))
        .unwrap();
    assert!(runs(&child));
    test.kill().unwrap();
    test.wait().unwrap();
    eventually(DEADLINE, async || !runs(&child)).await;
}

#[tokio::test]
async fn a_process_for_the_test_above() {
    if std::env::var_os("NATSWAY_TESTKIT_WAIT").is_some() {
        let mut process = shell("sleep 60");
        println!("child {}", process.pid());
        process.wait_exit(Duration::from_secs(60)).await;
    }
}
