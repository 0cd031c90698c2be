//! `cg` as people and scripts use it, the published walk-throughs among it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use natsway_testkit::{Process, Signal, TestBroker, eventually};
use serde_json::Value;
use support::{SOON, broker};

const CG: &str = env!("CARGO_BIN_EXE_cg");

fn run(broker: &TestBroker, line: &str, input: &str) -> Output {
    let mut command = Command::new(CG);
    command
        .args(line.split_whitespace())
        .env("NATS_URL", broker.url())
        .env("XDG_CONFIG_HOME", "/nonexistent");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn cg(broker: &TestBroker, line: &str) -> String {
    let output = run(broker, line, "");
    assert!(output.status.success(), "cg {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(broker: &TestBroker, line: &str) -> Value {
    let output = run(broker, &format!("--json {line}"), "");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn consumer(broker: &TestBroker, line: &str) -> Process {
    let process = Process::builder(CG).args(line.split_whitespace());
    process.env("NATS_URL", broker.url()).env("XDG_CONFIG_HOME", "/nonexistent").start()
}

/// How many messages a consumer has printed.
fn seen(process: &Process) -> usize {
    process.stdout().lines().filter(|line| line.contains("subject=")).count()
}

#[test]
fn help_needs_no_broker() {
    for line in [&["--help"][..], &["static", "--help"], &["elastic", "create", "--help"]] {
        let output =
            Command::new(CG).args(line).env("NATS_URL", "nats://127.0.0.1:1").output().unwrap();
        assert!(output.status.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_static_walk_through_works_as_published() {
    let (broker, _context) = broker().await;
    cg(&broker, "static setup foo");
    cg(&broker, "static create balanced foo cg 10 > m1 m2");
    assert_eq!(cg(&broker, "static ls foo"), "static consumer groups: [cg]\n");
    let _traffic = consumer(&broker, "traffic foo --every 10ms");
    let mut first = consumer(&broker, "static consume foo cg m1 --sleep 25ms");
    let second = consumer(&broker, "static consume foo cg m2 --sleep 25ms");
    eventually(SOON, async || seen(&first) > 5 && seen(&second) > 5).await;
    let standby = consumer(&broker, "static consume foo cg m1 --sleep 25ms");
    eventually(SOON, async || json(&broker, "static info foo cg")["members"][0]["active"] == true)
        .await;
    first.kill9();
    eventually(SOON, async || seen(&standby) > 5).await;
    let info = cg(&broker, "static info foo cg");
    assert!(
        info.starts_with(
            "partitions: 10, filters: []\nmembers: [m1 m2]\nactive members: [m1 m2]\n"
        ),
        "{info}"
    );
    assert!(cg(&broker, "static minfo foo cg m1").contains("in the membership"));
    cg(&broker, "static sd foo cg m1");
    cg(&broker, "static rm foo cg --force");
    assert!(!run(&broker, "static rm foo cg -f", "").status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_elastic_walk_through_works_as_published() {
    let (broker, _context) = broker().await;
    cg(&broker, "elastic setup foo");
    let created = run(&broker, "elastic create foo cg 10", "foo.*\n1\n\n");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let _traffic = consumer(&broker, "traffic foo --every 10ms");
    let mut members: Vec<Process> = ["m1", "m2", "m3"]
        .map(|m| consumer(&broker, &format!("elastic consume foo cg {m} --sleep 5ms")))
        .into();
    assert_eq!(cg(&broker, "elastic add foo cg m1 m2"), "added; members now: [m1 m2]\n");
    eventually(SOON, async || seen(&members[0]) > 5 && seen(&members[1]) > 5).await;
    assert_eq!(seen(&members[2]), 0);
    assert_eq!(cg(&broker, "elastic drop foo cg m1"), "dropped; members now: [m2]\n");
    cg(&broker, "elastic add foo cg m3");
    eventually(SOON, async || seen(&members[2]) > 5).await;
    let info = json(&broker, "elastic info foo cg");
    assert_eq!(info["partitions"], 10);
    assert_eq!(info["by_partition"].as_array().unwrap().len(), 10);
    eventually(SOON, async || run(&broker, "elastic doctor foo cg", "").status.success()).await;
    members[1].signal(Signal::SIGTERM);
    assert!(members[1].wait_exit(SOON).await.success());
    let findings = json(&broker, "elastic doctor foo cg");
    assert_eq!(findings[0]["code"], "no-instance", "{findings}");
    cg(&broker, "elastic delete foo cg -f");
    assert!(members[2].wait_exit(SOON).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_command_does_what_it_says() {
    let (broker, _context) = broker().await;
    cg(&broker, "elastic setup foo");
    cg(&broker, "elastic create foo g 4 --filter foo.* --wildcards 1 --max-buffered-msgs -1");
    cg(&broker, "elastic create foo g 4 --filter foo.* --wildcards 1 --max-buffered-msgs -1");
    assert_eq!(
        cg(&broker, "elastic cm foo g m1:0,1 m2:2,3"),
        "member mappings: [{Member:m1 Partitions:[0 1]} {Member:m2 Partitions:[2 3]}]\n"
    );
    let refused = run(&broker, "elastic cm foo g m1:0,x", "");
    assert_eq!(
        String::from_utf8(refused.stderr).unwrap().lines().next().unwrap(),
        "cg: mapping \"m1:0,x\": expected member:0,1,2: invalid digit found in string"
    );
    let uncovered = run(&broker, "elastic createmapping foo g m1:0,1,2", "");
    assert!(String::from_utf8_lossy(&uncovered.stderr).contains("nobody has partition 3"));
    cg(&broker, "elastic dm foo g");
    cg(&broker, "elastic rebalance foo g a b");
    cg(&broker, "elastic pause foo g");
    assert_eq!(json(&broker, "elastic info foo g")["settings"]["paused"], true);
    cg(&broker, "elastic resume foo g");
    cg(&broker, "elastic setup dead");
    cg(&broker, "elastic dead-letter foo g dead.g --after 3");
    assert_eq!(json(&broker, "elastic info foo g")["settings"]["dead_letter_after"], 3);
    let typed =
        run(&broker, "elastic prompt", "ls foo\nprocessing-time 5ms\nstatic\nls foo\nbad\nexit\n");
    let printed = String::from_utf8(typed.stdout).unwrap();
    assert!(
        printed.contains("elastic consumer groups: [g]")
            && printed.contains("static consumer groups: []"),
        "{printed}"
    );
    let kept = run(&broker, "elastic delete foo g", "n\n");
    assert!(!kept.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_of_the_nats_command_line_are_read() {
    let (broker, _context) = broker().await;
    let home = tempfile::tempdir().unwrap();
    let contexts = home.path().join("nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    std::fs::write(
        contexts.join("here.json"),
        format!("{{\"url\":\"{}\",\"creds\":\"\"}}", broker.url()),
    )
    .unwrap();
    let list = |args: &[&str]| {
        let mut command = Command::new(CG);
        command
            .args(args)
            .env_remove("NATS_URL")
            .env("XDG_CONFIG_HOME", home.path())
            .output()
            .unwrap()
    };
    assert!(list(&["--context", "here", "elastic", "ls", "foo"]).status.success());
    assert!(list(&["elastic", "ls", "foo", "--context", "here"]).status.success());
    assert_eq!(list(&["--context", "elsewhere", "elastic", "ls", "foo"]).status.code(), Some(2));
    std::fs::write(home.path().join("nats/context.txt"), "here\n").unwrap();
    assert!(list(&["elastic", "ls", "foo"]).status.success());
}

#[test]
fn exit_codes_tell_a_mistake_from_a_failure() {
    let code = |args: &[&str]| {
        let mut command = Command::new(CG);
        command.args(args).env_remove("NATS_URL").env("XDG_CONFIG_HOME", "/nonexistent");
        command.output().unwrap().status.code()
    };
    for mistake in [
        &["--nats-url", "http://x y", "elastic", "ls", "foo"][..],
        &["--nats-url", "nats://127.0.0.1:1", "--nats-user", "ann", "elastic", "ls", "foo"],
        &["elastic", "info"],
        &["bogus"],
    ] {
        assert_eq!(code(mistake), Some(2), "{mistake:?}");
    }
    assert_eq!(
        code(&["--nats-url", "nats://127.0.0.1:1", "elastic", "ls", "foo"]),
        Some(1),
        "nobody answers"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_member_that_never_joined_is_that_of_its_partitions() {
    let (broker, _context) = broker().await;
    cg(&broker, "elastic setup foo");
    cg(&broker, "elastic create foo g 4 --filter foo.* --wildcards 1");
    cg(&broker, "elastic add foo g m1 m2");
    cg(&broker, "traffic foo --every 1us --keys 40 --count 80");
    let lags = eventually(SOON, async || {
        let report = json(&broker, "elastic info foo g");
        let lag = |of: &str| -> u64 {
            report[of]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["lag_messages"].as_u64().unwrap())
                .sum()
        };
        let lags = (lag("by_partition"), lag("members"));
        if lags.0 == 80 { Ok(lags) } else { Err(format!("{lags:?}")) }
    })
    .await;
    assert_eq!(lags, (80, 80));
    let doctor = run(&broker, "elastic doctor foo g", "");
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert_eq!(doctor.status.code(), Some(1));
    assert!(
        said.contains("no-instance: member \"m1\" has no instance: partitions 0, 1 wait\n"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_ends_the_program_in_good_order() {
    let (broker, _context) = broker().await;
    cg(&broker, "elastic setup foo");
    cg(&broker, "elastic create foo g 4 --filter foo.* --wildcards 1");
    cg(&broker, "elastic add foo g m1");
    cg(&broker, "traffic foo --every 1us --count 50");
    for line in ["elastic info foo g", "elastic consume foo g m1"] {
        let mut command = Command::new(CG);
        command
            .args(line.split(' '))
            .env("NATS_URL", broker.url())
            .env("XDG_CONFIG_HOME", "/nonexistent");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let status =
            eventually(SOON, async || child.try_wait().unwrap().ok_or("still there")).await;
        let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(status.success() && !said.contains("panicked"), "{line}: {status} {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_what_the_prompt_does_and_never_the_prompt() {
    let (broker, _context) = broker().await;
    cg(&broker, "elastic setup foo");
    cg(&broker, "elastic create foo g 4 --filter foo.* --wildcards 1");
    let home = tempfile::tempdir().unwrap();
    let diary = home.path().join("stderr");
    let mut command = Command::new(CG);
    command.args(["elastic", "prompt"]).env("NATS_URL", broker.url()).env("HOME", home.path());
    command.env("XDG_CONFIG_HOME", "/nonexistent").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.stderr(std::fs::File::create(&diary).unwrap()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let times = |text: &str| std::fs::read_to_string(&diary).unwrap().matches(text).count();
    for round in 1..=2 {
        input.write_all(b"join foo g m1\n").unwrap();
        eventually(SOON, async || times("consuming from") == round).await;
        let interrupted =
            Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(interrupted.success());
        eventually(SOON, async || times("stopped") == round).await;
    }
    input.write_all(b"exit\n").unwrap();
    let status = eventually(SOON, async || child.try_wait().unwrap().ok_or("still there")).await;
    assert!(status.success(), "{status}");
    let history = std::fs::read_to_string(home.path().join(".cg_history")).unwrap();
    assert!(history.contains("join foo g m1"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_command_line_takes_cg_as_a_plug_in() {
    let Some(nats) = natsway_testkit::nats_cli() else { return };
    let (broker, _context) = broker().await;
    let home = tempfile::tempdir().unwrap();
    let nats = |line: &str| {
        let mut command = Command::new(nats);
        command
            .args(line.split(' '))
            .env("XDG_DATA_HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path());
        let output = command.env_remove("NATS_URL").output().unwrap();
        assert!(output.status.success(), "nats {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    nats(&format!("plugins register cg {CG}"));
    let here = format!("--server {}", broker.url());
    nats(&format!("{here} cg elastic setup foo"));
    nats(&format!("{here} cg elastic create foo g 4 --filter foo.* --wildcards 1"));
    // Several arguments keep their order, flags and aliases arrive.
    assert!(nats(&format!("{here} cg elastic add foo g m1 m2")).contains("[m1 m2]"));
    assert!(nats(&format!("{here} cg elastic list foo --json")).contains("\"g\""));
    nats(&format!("{here} cg elastic rm foo g -f"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_is_told_from_a_failure_by_every_command() {
    let (broker, _context) = broker().await;
    cg(&broker, "elastic setup foo");
    cg(&broker, "static setup bar");
    cg(&broker, "elastic create foo g 4 --filter foo.* --wildcards 1");
    let said = |line: &str| {
        let output = run(&broker, line, "");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (mistake, reason) in [
        ("elastic create foo h 4", "nobody is there to ask: give --filter"),
        ("elastic create foo h 4 --filter foo.*", "nobody is there to ask: give --wildcards"),
        ("elastic create foo h 4 --filter foo.* --wildcards x", "wildcard index \"x\""),
        ("elastic create foo h 4 --wildcards 1", "expected at most one each"),
        ("elastic create foo h 0 --filter foo.* --wildcards 1", "max_members 0"),
        ("elastic create foo a.b 4 --filter foo.* --wildcards 1", "group name"),
        ("elastic create-mapping foo g m1", "expected member:0,1,2"),
        ("elastic create-mapping foo g m1:0,1", "nobody has partition 2, 3"),
        ("elastic add foo g a.b", "member name"),
        ("elastic consume foo g m1 --ack-wait 0s", "above zero"),
        ("elastic dead-letter foo g foo.dead", "takes its own dead letters"),
        ("elastic dead-letter foo g dead.foo", "no stream stores"),
        ("elastic dead-letter foo g dead.*", "without wildcards"),
        ("elastic reset foo g", "--to-seq"),
        ("elastic reset foo g --to-seq 1 --to-new", "cannot be used"),
        ("elastic reset foo g --to-seq 9", "has come to 0"),
        ("static create balanced bar h 10", "no member given"),
        ("static create balanced bar h 10 m1 m2 m1", "\"m1\" is given twice"),
        ("static create balanced foo h 10 m1", "begins with a partition"),
        ("static create mapped bar h 2 m1:0,x", "expected member:0,1,2"),
    ] {
        let (code, text) = said(mistake);
        assert!(code == Some(2) && text.contains(reason), "{mistake}: {code:?} {text}");
    }
    for failure in [
        "elastic info foo none",
        "elastic create none h 4 --filter foo.* --wildcards 1",
        "static rm bar none -f",
    ] {
        assert_eq!(said(failure).0, Some(1), "{failure}");
    }
    assert_eq!(
        cg(&broker, "elastic ls foo"),
        "elastic consumer groups: [g]\n",
        "nothing was made by mistake"
    );
    // Everything can be asked for without anybody there.
    let mut command = Command::new(CG);
    command.args(["elastic", "create", "foo", "all", "2", "--filter", ">", "--wildcards", ""]);
    let created = command.env("NATS_URL", broker.url()).stdin(Stdio::null()).output().unwrap();
    assert!(created.status.success(), "{created:?}");
    cg(&broker, "elastic create bar whole 2 --filter bar.>");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_all_streams_are_listed() {
    let (broker, _context) = broker().await;
    for stream in ["foo", "bar"] {
        cg(&broker, &format!("elastic setup {stream}"));
        cg(&broker, &format!("elastic create {stream} g 4 --filter {stream}.* --wildcards 1"));
    }
    assert_eq!(cg(&broker, "elastic ls"), "elastic consumer groups: [bar/g foo/g]\n");
    assert_eq!(cg(&broker, "static ls"), "static consumer groups: []\n");
    assert_eq!(
        json(&broker, "elastic ls")["groups"][1],
        serde_json::json!({ "stream": "foo", "group": "g" })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_says_first_what_it_would_do() {
    let (broker, _context) = broker().await;
    cg(&broker, "static setup foo");
    cg(&broker, "static create balanced foo g 10 m1");
    cg(&broker, "traffic foo --every 1us --count 30");
    let none = cg(&broker, "static reset foo g --to-seq 1 --dry-run");
    assert!(none.contains("no member has a consumer"), "{none}");
    let mut member = consumer(&broker, "static consume foo g m1 --sleep 1ms");
    eventually(SOON, async || seen(&member) == 30).await;
    let dry = cg(&broker, "static reset foo g --to-time 1h --dry-run");
    let expected = "the group would go on with sequence 1; messages from there: 30\n\
                    member m1: acknowledged up to 30; handled again: 30, passed over: 0\n";
    assert_eq!(dry, expected);
    let report = json(&broker, "static reset foo g --to-seq 21");
    assert_eq!(report["members"][0]["again_messages"], 10, "{report}");
    eventually(SOON, async || seen(&member) == 40).await;
    member.terminate();
    assert!(member.wait_exit(SOON).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_may_lose_messages_is_told_at_the_creation() {
    let (broker, context) = broker().await;
    let config = async_nats::jetstream::stream::Config {
        name: "foo".into(),
        subjects: vec!["foo.*".into()],
        max_messages: 20,
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
    let created = run(
        &broker,
        "elastic create foo g 4 --filter foo.* --wildcards 1 --max-buffered-msgs 5",
        "",
    );
    let said = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(created.status.success() && said.contains("stream foo keeps 20 messages"), "{said}");
    // Copying begins a moment after the creation.
    cg(&broker, "traffic foo --every 1us --count 5");
    eventually(SOON, async || {
        let copied: u64 = json(&broker, "elastic info foo g")["by_partition"]
            .as_array()
            .unwrap()
            .iter()
            .map(|partition| partition["lag_messages"].as_u64().unwrap())
            .sum();
        if copied == 5 { Ok(()) } else { Err(copied) }
    })
    .await;
    cg(&broker, "traffic foo --every 1us --count 100");
    let info = eventually(SOON, async || {
        let info = cg(&broker, "elastic info foo g");
        if info.contains("LOST: 80 messages") { Ok(info) } else { Err(info) }
    })
    .await;
    assert!(info.contains("dropped by the stream before they were copied"), "{info}");
    let doctor = run(&broker, "elastic doctor foo g", "");
    assert_eq!(doctor.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("source-dropped"), "{doctor:?}");
    assert_eq!(json(&broker, "elastic info foo g")["source_loss"]["messages"], 80);
}

#[test]
fn shells_get_their_completion_without_a_broker() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Command::new(CG)
            .args(["completions", shell])
            .env("NATS_URL", "nats://127.0.0.1:1")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("dead-letter"), "{shell}");
    }
}
