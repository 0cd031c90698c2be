//! Processes that outlive whoever started them.

use std::path::Path;
use std::time::Duration;

use natsway_provisioner::backend::processes::{ProcessRules, Processes};
use natsway_provisioner::backend::{Backend, InstanceState, fleet, set};
use natsway_provisioner::sample::Fleet;
use natsway_testkit::eventually;

const DEADLINE: Duration = Duration::from_secs(20);

fn rules(state: &Path, script: &str) -> ProcessRules {
    ProcessRules {
        command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned(), "{instance}".to_owned()],
        environment: vec![("OUT".to_owned(), state.parent().unwrap().display().to_string())],
        inherit: None,
        state: state.to_owned(),
        ready_after: Duration::ZERO,
        stop_deadline: Duration::from_secs(10),
    }
}

/// Works until it is told to stop, and says when it has finished.
const WORK: &str = r#"trap 'echo "$0" >>"$OUT/finished"; exit 0' TERM; echo "$0" >>"$OUT/up"; while :; do sleep 0.05; done"#;
const STUBBORN: &str = r#"trap '' TERM; echo "$0" >>"$OUT/up"; while :; do sleep 0.05; done"#;

async fn counts(processes: &mut Processes, expected: Fleet) {
    eventually(DEADLINE, async || {
        let counted = fleet(&processes.instances().await.unwrap());
        (counted == expected).then_some(()).ok_or(counted)
    })
    .await;
}

/// Takes over a directory that was let go. A test that forks at this moment holds all locks until
/// its child runs.
async fn take_over(rules: ProcessRules) -> Processes {
    eventually(DEADLINE, async || Processes::open(rules.clone())).await
}

/// Waits until so many have begun to work.
async fn up(directory: &Path, expected: usize) {
    eventually(DEADLINE, async || {
        let lines = std::fs::read_to_string(directory.join("up")).unwrap_or_default();
        (lines.lines().count() == expected).then_some(()).ok_or(lines)
    })
    .await;
}

fn ready(ready: u32) -> Fleet {
    Fleet { ready, ..Fleet::default() }
}

#[tokio::test]
async fn processes_are_adopted_by_another_and_never_doubled() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut first = Processes::open(rules(&state, WORK)).unwrap();
    set(&mut first, 3).await.unwrap();
    // Gone at once, before the processes have written who they are: as after a kill.
    drop(first);
    let mut second = take_over(rules(&state, WORK)).await;
    assert_eq!(fleet(&second.instances().await.unwrap()).present(), 3);
    set(&mut second, 3).await.unwrap();
    counts(&mut second, ready(3)).await;
    assert!(Processes::open(rules(&state, WORK)).is_err(), "one at a time");
    up(directory.path(), 3).await;

    set(&mut second, 1).await.unwrap();
    counts(&mut second, ready(1)).await;
    let finished = std::fs::read_to_string(directory.path().join("finished")).unwrap();
    assert_eq!(finished.lines().count(), 2, "both finished what they held");
    set(&mut second, 0).await.unwrap();
    counts(&mut second, ready(0)).await;
    let mut left: Vec<_> =
        std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "logs"], "nothing else is left");
    assert_eq!(
        std::fs::read_dir(state.join("logs")).unwrap().count(),
        3,
        "what each of them wrote"
    );
}

#[tokio::test]
async fn a_process_that_does_not_leave_is_killed_after_its_deadline_also_by_another() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let rules =
        ProcessRules { stop_deadline: Duration::from_millis(400), ..rules(&state, STUBBORN) };
    let mut first = Processes::open(rules.clone()).unwrap();
    set(&mut first, 1).await.unwrap();
    up(directory.path(), 1).await;
    set(&mut first, 0).await.unwrap();
    let instances = first.instances().await.unwrap();
    assert_eq!(instances[0].state, InstanceState::Stopping);
    drop(first);
    counts(&mut take_over(rules).await, Fleet::default()).await;
}

#[tokio::test]
async fn a_killed_process_is_noticed_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut processes = Processes::open(rules(&state, "kill -9 $$")).unwrap();
    set(&mut processes, 1).await.unwrap();
    counts(&mut processes, Fleet::default()).await;
    drop(processes);
    let mut processes = take_over(rules(&state, WORK)).await;
    set(&mut processes, 1).await.unwrap();
    counts(&mut processes, ready(1)).await;
    set(&mut processes, 0).await.unwrap();
    counts(&mut processes, ready(0)).await;
}

#[tokio::test]
async fn a_process_told_to_stop_before_it_appeared_never_does() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut processes =
        Processes::open(rules(&state, r#"echo ran >>"$OUT/finished"; exec sleep 30"#)).unwrap();
    processes.start().await.unwrap();
    set(&mut processes, 0).await.unwrap();
    counts(&mut processes, ready(0)).await;
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_not_called_started() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let file = directory.path().join("no-program");
    std::fs::write(&file, "text").unwrap();
    for (program, part) in [
        ("no-such-program-anywhere", "no program no-such-program-anywhere in PATH"),
        (file.to_str().unwrap(), "is no program that may be run"),
    ] {
        let rules = ProcessRules { command: vec![program.to_owned()], ..rules(&state, "") };
        let mut processes = take_over(rules).await;
        let error = processes.start().await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(processes.instances().await.unwrap(), []);
    }
}

#[tokio::test]
async fn instances_of_another_environment_or_command_are_outdated_and_stopped_ones_frozen() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let first = rules(&state, WORK);
    let mut processes = Processes::open(first.clone()).unwrap();
    set(&mut processes, 1).await.unwrap();
    counts(&mut processes, ready(1)).await;
    let is_outdated =
        async |processes: &mut Processes| processes.instances().await.unwrap()[0].is_outdated;
    assert!(!is_outdated(&mut processes).await);
    drop(processes);
    let mut environment = first.environment.clone();
    environment.push(("MORE".to_owned(), "1".to_owned()));
    let mut processes = take_over(ProcessRules { environment, ..first.clone() }).await;
    assert!(is_outdated(&mut processes).await, "another environment");
    drop(processes);
    let mut processes = take_over(first).await;
    assert!(!is_outdated(&mut processes).await, "the former one again");
    if cfg!(target_os = "linux") {
        let instance = processes.instances().await.unwrap().remove(0);
        let stat = std::fs::read_to_string(state.join(&instance.id).join("pid")).unwrap();
        let pid = nix::unistd::Pid::from_raw(stat.split(' ').next().unwrap().parse().unwrap());
        nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        eventually(DEADLINE, async || processes.instances().await.unwrap()[0].is_frozen).await;
        nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    }
    set(&mut processes, 0).await.unwrap();
    counts(&mut processes, ready(0)).await;
}
