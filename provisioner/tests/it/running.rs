//! Whole provisioners: the binary, its lease, its file and its questions.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::Config as StreamConfig;
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;
use natsway_provisioner::events::{Queues, Status, queues_subject, status_subject};
use natsway_testkit::{Process, TestBroker, eventually};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(40);
const PROGRAM: &str = env!("CARGO_BIN_EXE_provisioner");

/// A broker with a stream and a consumer, and a place for files.
struct Stage {
    broker: TestBroker,
    client: Client,
    context: Context,
    directory: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let broker = TestBroker::builder().jetstream().start().await;
        let client = broker.connect().await;
        let context = jetstream::new(client.clone());
        let config = StreamConfig {
            name: "WORK".to_owned(),
            subjects: vec!["work.>".to_owned()],
            ..StreamConfig::default()
        };
        context.create_stream(config).await.unwrap();
        let stage = Self { broker, client, context, directory: tempfile::tempdir().unwrap() };
        stage.consumer("eu").await;
        stage
    }

    async fn consumer(&self, name: &str) {
        let config =
            pull::Config { durable_name: Some(name.to_owned()), ..pull::Config::default() };
        let stream = self.context.get_stream("WORK").await.unwrap();
        stream.create_consumer(config).await.unwrap();
    }

    /// A target whose instances do nothing but live, so that what waits decides: one for each ten
    /// messages.
    fn configure(&self, consumer: &str, max: u32) {
        let state = self.directory.path().join("state-{name}");
        let text = format!(
            r#"
            [[target]]
            name = "work"
            poll = "200ms"
            signal = {{ kind = "consumer", stream = "WORK", consumer = "{consumer}" }}
            instance = {{ service_rate = 10.0, starts_within = "0s" }}
            policy = [{{ kind = "latency-slo", wait = "1s", target_utilisation = 1.0 }}]
            scale = {{ min = 1, max = {max}, in_window = "1s" }}
            [target.backend]
            kind = "processes"
            command = ["sleep", "600"]
            state = "{}"
            "#,
            state.display(),
        );
        std::fs::write(self.file(), text).unwrap();
    }

    /// The same with another program for the instances.
    fn configure_program(&self, program: &str) {
        self.configure("eu", 3);
        let text = std::fs::read_to_string(self.file()).unwrap();
        let text = text.replace(r#"["sleep", "600"]"#, program).replace("state-{name}", "state-eu");
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("provisioner.toml")
    }

    fn start(&self) -> Process {
        self.start_with(&self.file(), "provisioner")
    }

    fn start_with(&self, file: &Path, lease: &str) -> Process {
        Process::builder(PROGRAM)
            .args(["run", "--nats-url", &self.broker.url(), "--lease", lease, "--config"])
            .arg(file)
            .start()
    }

    async fn publish(&self, count: usize) {
        for _ in 0..count {
            self.context.publish("work.x", "".into()).await.unwrap().await.unwrap();
        }
    }

    async fn status(&self) -> Result<Status, String> {
        let answer = self
            .client
            .request(status_subject(), "".into())
            .await
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())
    }

    /// Waits until the one target has so many instances and wants no others; gives the leader.
    async fn settles_at(&self, instances: u32) -> String {
        eventually(DEADLINE, async || {
            let status = self.status().await?;
            match &status.targets[..] {
                [one] if (one.from, one.to) == (instances, instances) && one.frozen.is_none() => {
                    Ok(status.leader)
                }
                others => Err(format!("{others:?}")),
            }
        })
        .await
    }

    /// Asks by the command line.
    async fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(PROGRAM);
        command.args(["--nats-url", &self.broker.url()]).args(arguments).kill_on_drop(true);
        tokio::time::timeout(DEADLINE, command.output()).await.expect("it leaves").unwrap()
    }

    /// The pids that are written down.
    fn pids(&self) -> Vec<i32> {
        let Ok(entries) = std::fs::read_dir(self.directory.path().join("state-eu")) else {
            return Vec::new();
        };
        let pid = |entry: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(entry.path().join("pid")).ok()?;
            stat.split(' ').next()?.parse().ok()
        };
        entries.filter_map(|entry| pid(entry.unwrap())).collect()
    }
}

impl Drop for Stage {
    /// What provisioners start outlives them, so it is ended here.
    fn drop(&mut self) {
        for pid in self.pids() {
            let _gone = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn another_takes_over_from_a_killed_leader_with_the_instances_that_there_are() {
    let stage = Stage::new().await;
    stage.configure("*", 10);
    let mut provisioners = [stage.start(), stage.start()];
    stage.publish(35).await;
    let leader = stage.settles_at(4).await;
    let pids = stage.pids();
    assert_eq!(pids.len(), 4);
    let leads = |process: &Process| process.stderr().contains(&format!("leading id=\"{leader}\""));
    let index = usize::from(!leads(&provisioners[0]));
    assert!(leads(&provisioners[index]), "{}", provisioners[index].stderr());
    provisioners[index].kill9();
    let next = eventually(DEADLINE, async || {
        let status = stage.status().await.ok()?;
        (status.leader != leader).then_some(status.leader)
    })
    .await;
    assert_eq!(stage.settles_at(4).await, next);
    let mut after = stage.pids();
    let mut before = pids.clone();
    after.sort_unstable();
    before.sort_unstable();
    assert_eq!(before, after, "adopted, and not started again");

    // Killed instances are replaced, to the number that was decided on.
    for pid in &pids[..2] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
    }
    eventually(DEADLINE, async || {
        let now = stage.pids();
        now.len() == 4 && !now.contains(&pids[0]) && !now.contains(&pids[1])
    })
    .await;

    let survivor = &mut provisioners[1 - index];
    survivor.terminate();
    assert!(survivor.wait_exit(DEADLINE).await.success());
    assert_eq!(stage.pids().len(), 4, "instances outlive whoever started them");
}

#[tokio::test]
async fn a_broker_that_goes_and_comes_changes_nothing() {
    let mut stage = Stage::new().await;
    stage.configure("eu", 10);
    let state = stage.directory.path().join("state-eu");
    std::fs::write(
        stage.file(),
        std::fs::read_to_string(stage.file()).unwrap().replace("state-{name}", "state-eu"),
    )
    .unwrap();
    let provisioner = stage.start();
    stage.publish(25).await;
    stage.settles_at(3).await;
    let mut before = stage.pids();
    stage.broker.kill9();
    // Long enough for looks to fail many times.
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.broker.start_again().await;
    stage.settles_at(3).await;
    let mut after = stage.pids();
    before.sort_unstable();
    after.sort_unstable();
    assert_eq!(before, after, "{}\n{}", state.display(), provisioner.stderr());
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_started_ever_more_rarely_and_everybody_is_told() {
    let stage = Stage::new().await;
    stage.configure_program(r#"["sh", "-c", "echo no such table; exit 3"]"#);
    let provisioner = stage.start();
    let told = eventually(DEADLINE, async || {
        let decision = stage.status().await?.targets.pop().ok_or("no target yet")?;
        match &decision.obstacle {
            Some(obstacle) if obstacle.contains(" 3 times in a row") => Ok(decision),
            _ => Err(decision.to_string()),
        }
    })
    .await;
    assert_eq!((told.from, told.to), (0, 1), "what is meant stays");
    let starts = provisioner.stderr().matches("process started").count();
    assert!(starts <= 4, "{starts} in many polls:\n{}", provisioner.stderr());
    for question in [["explain", "work"].as_slice(), &["status"], &["top", "--count", "1"]] {
        let answer = text(&stage.ask(question).await);
        assert!(
            answer.contains("crash loop: instances ended within 10 s"),
            "{question:?}: {answer}"
        );
    }
    let line = provisioner
        .stderr()
        .lines()
        .find(|line| line.contains("ended by itself"))
        .map(str::to_owned);
    let log = line.as_ref().and_then(|line| line.split("log=").nth(1)).expect("its log is named");
    let written = std::fs::read_to_string(log.trim_matches('"')).unwrap();
    assert_eq!(written, "no such table\n");
    // What is mended is tried at once when the file says that it is another program.
    stage.configure_program(r#"["sleep", "601"]"#);
    stage.settles_at(1).await;
}

#[tokio::test]
async fn the_file_is_followed_and_a_bad_one_leaves_the_last_good_one() {
    let stage = Stage::new().await;
    stage.configure("*", 3);
    let mut provisioner = stage.start();
    stage.publish(75).await;
    stage.settles_at(3).await;
    std::fs::write(stage.file(), "[[target]]\nname = 7").unwrap();
    provisioner.wait_for_line("configuration refused", DEADLINE).await;
    stage.settles_at(3).await;
    stage.configure("*", 5);
    stage.settles_at(5).await;
    // A consumer that comes later is discovered.
    stage.consumer("us").await;
    eventually(DEADLINE, async || {
        let status = stage.status().await?;
        let names: Vec<&str> =
            status.targets.iter().map(|decision| decision.target.as_str()).collect();
        if names == ["work-eu", "work-us"] { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    stop_all(&stage.directory.path().join("state-us"));
}

fn stop_all(state: &Path) {
    for entry in std::fs::read_dir(state).into_iter().flatten() {
        if let Ok(stat) = std::fs::read_to_string(entry.unwrap().path().join("pid")) {
            let pid = stat.split(' ').next().unwrap().parse().unwrap();
            let _gone = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

#[tokio::test]
async fn decisions_are_explained_drawn_recorded_and_decided_again() {
    let stage = Stage::new().await;
    stage.configure("*", 10);
    let nobody = stage.ask(&["status"]).await;
    assert!(
        !nobody.status.success() && text(&nobody).contains("no provisioner leads: start one"),
        "{}",
        text(&nobody)
    );
    let _provisioner = stage.start();
    stage.publish(35).await;
    stage.settles_at(4).await;

    // A poll that was late freezes one decision, and the next explains itself again.
    eventually(DEADLINE, async || {
        let explained = text(&stage.ask(&["explain", "work-eu"]).await);
        let parts =
            ["work-eu: 4 -> 4 (hold)", "35 waiting", "latency-slo", "3.5 to clear 35 within 1 s"];
        match parts.iter().all(|part| explained.contains(part)) {
            true => Ok(()),
            false => Err(explained),
        }
    })
    .await;
    let unknown = stage.ask(&["explain", "nothing"]).await;
    assert!(text(&unknown).contains("there are: work-eu"), "{}", text(&unknown));
    assert!(text(&stage.ask(&["status"]).await).contains("work-eu"));
    let drawn = text(&stage.ask(&["top", "--count", "3", "--width", "20"]).await);
    assert!(drawn.contains("instances"), "{drawn}");

    let recording = stage.directory.path().join("recording.jsonl");
    let recording = recording.to_str().unwrap();
    let recorded = stage.ask(&["record", "--out", recording, "--count", "10"]).await;
    assert!(recorded.status.success(), "{}", text(&recorded));
    let own = ["simulate", "--trace", recording, "--service-rate", "10", "--seeds", "1", "--json"];
    let own: serde_json::Value = serde_json::from_slice(&stage.ask(&own).await.stdout).unwrap();
    assert_eq!(own["standings"][0]["trace"], "own");
    let csv = stage.directory.path().join("monday.csv");
    std::fs::write(&csv, "time,rate\n0,100\n20,900\n60,0\n").unwrap();
    let own =
        ["simulate", "--trace", csv.to_str().unwrap(), "--service-rate", "40", "--seeds", "2"];
    let own = text(&stage.ask(&own).await);
    assert!(own.contains("| own | Natsway |"), "{own}");
    stage.configure("*", 2);
    let file = stage.file();
    let replayed =
        text(&stage.ask(&["replay", recording, "--config", file.to_str().unwrap()]).await);
    assert!(replayed.contains("10 decisions; instances times decisions: 40 then, "), "{replayed}");
    assert!(replayed.lines().any(|line| line.contains("    4     2  ")), "{replayed}");
    let unknown = stage
        .ask(&["replay", recording, "--config", file.to_str().unwrap(), "--target", "none"])
        .await;
    assert!(
        !unknown.status.success() && text(&unknown).contains("it has: work"),
        "{}",
        text(&unknown)
    );
}

#[tokio::test]
async fn status_has_every_leader_and_what_cannot_be_opened() {
    let stage = Stage::new().await;
    stage.configure_program(r#"["sleep", "600"]"#);
    let other = stage.directory.path().join("other.toml");
    let text = std::fs::read_to_string(stage.file()).unwrap();
    std::fs::write(
        &other,
        text.replace("\"work\"", "\"elsewhere\"").replace("/state-eu", "/other.toml/x"),
    )
    .unwrap();
    let (_one, _other) = (stage.start(), stage.start_with(&other, "elsewhere"));
    eventually(DEADLINE, async || {
        let status = text_of(&stage, "status").await;
        let expected =
            ["by lease elsewhere", "by lease provisioner", "the backend cannot be used", "hold"];
        if expected.iter().all(|part| status.contains(part)) { Ok(()) } else { Err(status) }
    })
    .await;
    let explained = text_of(&stage, "explain").await;
    assert!(
        explained.contains("work: 1 -> 1") && explained.contains("elsewhere: 0 -> 1"),
        "{explained}"
    );
}

async fn text_of(stage: &Stage, question: &str) -> String {
    text(&stage.ask(&[question]).await)
}

#[tokio::test]
async fn busy_queues_are_told_by_the_analyser_that_fired() {
    let stage = Stage::new().await;
    stage.configure("*", 3);
    let with_analysers = std::fs::read_to_string(stage.file())
        .unwrap()
        .replace("1.0 }]", "1.0 }, { kind = \"analysers\", thresholds = { every_ms = 200 } }]");
    std::fs::write(stage.file(), with_analysers).unwrap();
    let mut busy = stage.client.subscribe(queues_subject(true)).await.unwrap();
    let _provisioner = stage.start();
    stage.publish(5).await;
    eventually(DEADLINE, async || {
        let told: Queues = serde_json::from_slice(&busy.next().await.unwrap().payload).unwrap();
        let fired = told.queues.get("work-eu").map(String::as_str);
        // Messages wait, and nobody pulls.
        if fired == Some("ConsumerUtilisationTooLow") { Ok(()) } else { Err(told) }
    })
    .await;
}
