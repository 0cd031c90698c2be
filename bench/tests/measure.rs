//! The benchmark as its user has it: small, on real processes. Figures are not judged here, only
//! that they are there.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use natsway_bench::results::{Cell, Results, Role};
use natsway_testkit::{Process, Signal, eventually, workspace_binary};

/// For a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);

const TINY: &str = r#"
title = "Tiny"
about = "As small as it gets."
baseline = "direct"
[[load]]
name = "c4"
connections = 4
[[load]]
name = "post"
connections = 2
path = "/echo"
post_bytes = 100
[[contender]]
name = "direct"
title = "axum"
arrangement = { kind = "direct" }
[[contender]]
name = "natsway-1"
title = "Natsway"
arrangement = { kind = "natsway" }
"#;

fn bench(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output();
    output.expect("bench starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scenarios(directory: &Path, scenario: &str) -> String {
    let scenarios = directory.join("scenarios");
    fs::create_dir_all(&scenarios).expect("a temporary directory can be written");
    fs::write(scenarios.join("10-tiny.toml"), scenario)
        .expect("a temporary directory can be written");
    scenarios.display().to_string()
}

/// One round, a second a run; a busy machine is no reason to drop one here.
fn tiny_run(directory: &Path, scenario: &str, output: &Path) -> Output {
    let (scenarios, output) = (scenarios(directory, scenario), output.display().to_string());
    let what = ["run", "--scenarios", &scenarios, "--output", &output, "--parts", "none"];
    let size = ["--rounds", "1", "--seconds", "1", "--tolerance", "1", "--patience", "0"];
    bench(&[&what[..], &size[..]].concat())
}

/// Whether a generator is installed; says so when none is.
fn can_measure() -> bool {
    let found = natsway_bench::harness::load::Generators::find();
    found.inspect_err(|error| eprintln!("SKIPPED: {error}")).is_ok()
}

#[test]
fn every_scenario_is_listed_with_the_time_that_all_take() {
    let listed = bench(&["list"]);
    let said = text(&listed.stdout);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    for part in ["peers", "article", "natsway-1", "64 connections, GET of 39 bytes", "about "] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let refused = bench(&["list", "--only", "nothing-like-it"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("expected names that begin like one of: peers"),
        "{refused:?}"
    );
}

#[test]
fn a_wrong_scenario_is_refused_with_its_file_and_faults() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = TINY
        .replace("baseline = \"direct\"", "baseline = \"dirct\"")
        .replace("connections = 4", "connections = 0");
    let refused = bench(&["list", "--scenarios", &scenarios(directory.path(), &wrong)]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2));
    for part in ["10-tiny.toml", "baseline = \"dirct\": expected", "connections = 0: expected"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn a_tiny_run_has_figures_of_every_process_and_a_report() {
    if !can_measure() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("report");
    let alternating = TINY.replace("about = ", "alternate = true\nabout = ");
    let run = tiny_run(directory.path(), &alternating, &output);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let results = Results::load(&output.join("results.json")).unwrap();
    let cell = Cell { scenario: "tiny", contender: "natsway-1", load: "post" };
    let sample = results.runs(cell).next().expect("the run counts");
    assert!(sample.requests > 0 && sample.errors == 0, "{sample:?}");
    assert!(sample.latency("p99").is_some() && sample.latency("p99.9").is_some(), "{sample:?}");
    let order: Vec<_> = results
        .samples
        .iter()
        .map(|run| (&*run.contender, &*run.load, run.beside.as_deref()))
        .collect();
    let before = |load| ("direct", load, Some("natsway-1"));
    let after = |load| ("natsway-1", load, None);
    assert_eq!(order, [before("c4"), after("c4"), before("post"), after("post")]);
    for role in Role::ALL {
        assert!(sample.cpu_us(role).is_some_and(|us| us > 0.0), "{role:?} in {sample:?}");
    }
    assert!(
        sample.processes.iter().all(|one| one.role == Role::Load || one.peak_mib > 1.0),
        "{sample:?}"
    );
    for file in ["RESULTS.md", "report.html", "plots/tiny-c4-rates.svg", "plots/tiny-post-cpu.svg"]
    {
        assert!(output.join(file).exists(), "{file} is missing");
    }
    let results = output.join("results.json").display().to_string();
    let same = bench(&["compare", &results, &results]);
    assert!(same.status.success(), "{}", text(&same.stdout));
    assert!(text(&same.stdout).contains(" 0 worse, 0 better"), "{}", text(&same.stdout));
}

#[test]
fn what_fails_leaves_the_report_of_the_rest_and_is_tried_again_by_resume() {
    if !can_measure() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("report");
    // More than the service gives.
    let refused = TINY.replace("path = \"/echo\"\npost_bytes = 100", "path = \"/bytes/16777217\"");
    let run = tiny_run(directory.path(), &refused, &output);
    let said = text(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("tiny/direct FAILED: post: /bytes/16777217 is answered 400"), "{said}");
    let report = || fs::read_to_string(output.join("RESULTS.md")).expect("there is a report");
    assert!(
        report().contains("- `tiny/natsway-1`: post: ") && report().contains("| axum | "),
        "{}",
        report()
    );
    let of_c4 = || {
        let results = Results::load(&output.join("results.json")).expect("the raw data");
        results
            .samples
            .into_iter()
            .map(|run| (run.contender, run.load, run.requests))
            .collect::<Vec<_>>()
    };
    let before = of_c4();
    assert_eq!(before.len(), 2, "{before:?}");
    let (_, command) = said.rsplit_once("RESUME=").expect("it says how to go on");
    let (raw, _) = command.split_once('`').expect("a whole command");
    let again = bench(&["resume", raw, "--output", &output.display().to_string()]);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
    assert_eq!(of_c4(), before, "what is there is not measured again");
}

#[tokio::test]
async fn ctrl_c_takes_every_process_down() {
    if !can_measure() {
        return;
    }
    // Built before, however long that takes: the deadline is for the run.
    workspace_binary("apiproxy");
    let directory = tempfile::tempdir().unwrap();
    // Without another baseline the gateway comes first.
    let alone = TINY.replace("baseline = \"direct\"", "baseline = \"natsway-1\"");
    let scenarios = scenarios(directory.path(), &alone);
    let mut run = Process::builder(env!("CARGO_BIN_EXE_bench"))
        .args([
            "run",
            "--scenarios",
            &scenarios,
            "--only",
            "tiny/natsway",
            "--rounds",
            "50",
            "--seconds",
            "60",
            "--patience",
            "0",
        ])
        .start();
    let pid = run.pid();
    // The load runs: gateway, worker, broker, generator, and the guard of the test kit.
    eventually(DEADLINE, async || {
        let children = children(pid);
        let names: Vec<String> = children.iter().map(|child| name(*child)).collect();
        let all = ["apiproxy", "nats-server"]
            .iter()
            .all(|wanted| names.iter().any(|name| name == wanted));
        if all { Ok(()) } else { Err(format!("only {names:?} run")) }
    })
    .await;
    let started = children(pid);
    run.signal(Signal::SIGINT);
    let status = run.wait_exit(DEADLINE).await;
    assert_eq!(status.code(), Some(130), "{}", run.stderr());
    assert!(run.stderr().contains("broken off"), "{}", run.stderr());
    eventually(DEADLINE, async || {
        let left: Vec<String> =
            started.iter().filter(|child| alive(**child)).map(|child| name(*child)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} still run")) }
    })
    .await;
}

fn children(pid: u32) -> Vec<u32> {
    natsway_bench::harness::meter::tree(pid)
        .unwrap_or_default()
        .into_iter()
        .filter(|one| *one != pid)
        .collect()
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// A number may be given to another process, which is then no child of ours: those have long ended
/// by then.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}
