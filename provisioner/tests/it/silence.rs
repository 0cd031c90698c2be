//! Instances that run and do not answer, and instances of a former environment, with real workers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::Client;
use axum::Router;
use axum::routing::get;
use futures_util::StreamExt;
use natsway_provisioner::decision::Decision;
use natsway_provisioner::events::{Status, decision_subject, status_subject};
use natsway_testkit::{Process, TestBroker, eventually};
use natsway_wire::envelope::RequestEncoder;
use natsway_worker::{Options, serve};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_provisioner");
const SUBJECT: &str = "svc.silence.blue";

/// Says to [`as_a_worker`] which broker it serves at; without it, that test does nothing.
const SERVE_AT: &str = "SILENCE_SERVE_AT";

/// What a worker of this environment answers.
const TAG: &str = "SILENCE_TAG";

/// A worker, when this program is started as one: then the provisioner has an instance that is a
/// process and answers.
#[tokio::test]
async fn as_a_worker() {
    let Ok(url) = std::env::var(SERVE_AT) else { return };
    let tag = std::env::var(TAG).unwrap();
    let router = Router::new().route("/", get(async || tag));
    let options = Options::new(SUBJECT).broker(natsway_worker::BrokerConfig::new(&url).unwrap());
    serve(options, router, natsway_worker::shutdown_signal().unwrap()).await.unwrap();
}

/// A broker, a provisioner and its file.
struct Stage {
    broker: TestBroker,
    client: Client,
    directory: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let broker = TestBroker::start().await;
        let client = broker.connect().await;
        Self { broker, client, directory: tempfile::tempdir().unwrap() }
    }

    fn configure(&self, min: u32, max: u32, tag: &str) {
        let me = std::env::current_exe().unwrap();
        let text = format!(
            r#"
            [[target]]
            name = "silence"
            poll = "200ms"
            signal = {{ kind = "services", service = "silence" }}
            instance = {{ silent_after = 3 }}
            policy = [{{ kind = "rate" }}]
            scale = {{ min = {min}, max = {max}, in_window = "0s", cooldown = "0s" }}
            [target.backend]
            kind = "processes"
            command = ["{}", "--exact", "silence::as_a_worker", "--nocapture"]
            environment = {{ {SERVE_AT} = "{}", {TAG} = "{tag}" }}
            state = "{}"
            stop_deadline = "2s"
            "#,
            me.display(),
            self.broker.url(),
            self.state().display(),
        );
        std::fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("provisioner.toml")
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn start(&self) -> Process {
        Process::builder(PROGRAM)
            .args(["run", "--no-lease", "--nats-url", &self.broker.url(), "--config"])
            .arg(self.file())
            .start()
    }

    async fn decision(&self) -> Result<Decision, String> {
        let asked = self.client.request(status_subject(), "".into()).await;
        let answer = asked.map_err(|error| error.to_string())?;
        let mut status: Status =
            serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())?;
        status.targets.pop().ok_or_else(|| "no decision yet".to_owned())
    }

    /// Waits until exactly so many run, all of them answer, and nobody else is left.
    async fn settles_at(&self, instances: u32) {
        eventually(DEADLINE, async || {
            let decision = self.decision().await?;
            let fleet = decision.fleet;
            let answers = decision.attendance.as_ref().map_or(0, |attendance| attendance.answers);
            let is_settled = decision.frozen.is_none()
                && (decision.to, fleet.ready, answers) == (instances, instances, instances)
                && fleet.starting + fleet.stopping + fleet.silent == 0
                && self.pids().len() == instances as usize;
            if is_settled { Ok(()) } else { Err(format!("{decision}{:?}", self.pids())) }
        })
        .await;
    }

    /// The processes that are written down, the oldest first.
    fn pids(&self) -> Vec<i32> {
        let Ok(entries) = std::fs::read_dir(self.state()) else { return Vec::new() };
        let pid = |directory: &Path| {
            let read = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
            let since: u64 = read("since")?.parse().ok()?;
            Some((since, read("pid")?.split(' ').next()?.parse().ok()?))
        };
        let mut pids: Vec<(u64, i32)> =
            entries.flatten().filter_map(|entry| pid(&entry.path())).collect();
        pids.sort_unstable();
        pids.into_iter().map(|(_, pid)| pid).collect()
    }

    /// What one request is answered with.
    async fn ask(&self) -> Result<String, String> {
        let request = RequestEncoder::new(5_000, 0, "GET", "/", 64).unwrap().finish(b"");
        let asked =
            self.client.request(SUBJECT, request).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&asked.payload).into_owned())
    }

    async fn all_are_answered(&self) {
        for _ in 0..20 {
            self.ask().await.unwrap();
        }
    }
}

impl Drop for Stage {
    /// What provisioners start outlives them, so it is ended here.
    fn drop(&mut self) {
        for pid in self.pids() {
            let _gone = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn a_frozen_worker_is_stopped_before_the_healthy_ones_and_counts_for_nobody() {
    let stage = Stage::new().await;
    stage.configure(6, 6, "one");
    let mut decisions = stage.client.subscribe(decision_subject("*")).await.unwrap();
    let _provisioner = stage.start();
    stage.settles_at(6).await;
    let frozen = stage.pids()[0];
    killpg(Pid::from_raw(frozen), Signal::SIGSTOP).unwrap();
    // The load falls: one is enough, and the oldest was the last that would have been stopped.
    stage.configure(1, 6, "one");
    stage.settles_at(1).await;
    assert!(!stage.pids().contains(&frozen), "it was stopped, and killed when it did not leave");
    stage.all_are_answered().await;
    let told = async {
        loop {
            let decision: Decision =
                serde_json::from_slice(&decisions.next().await.unwrap().payload).unwrap();
            if decision.attendance.is_some_and(|attendance| !attendance.doubted.is_empty()) {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("a decision says that one does not answer");

    // Now the only one: nobody answers, and that is no reason to wait for ever.
    let frozen = stage.pids()[0];
    killpg(Pid::from_raw(frozen), Signal::SIGSTOP).unwrap();
    eventually(DEADLINE, async || stage.pids().iter().any(|pid| *pid != frozen)).await;
    stage.settles_at(1).await;
    assert_ne!(stage.pids(), [frozen]);
    stage.all_are_answered().await;
}

#[tokio::test]
async fn a_changed_environment_renews_all_instances_and_costs_no_request() {
    let stage = Stage::new().await;
    stage.configure(2, 2, "former");
    let _provisioner = stage.start();
    stage.settles_at(2).await;
    let before = stage.pids();
    stage.configure(2, 2, "present");
    eventually(DEADLINE, async || {
        let answer = stage.ask().await.expect("every request is answered meanwhile");
        assert!(answer.contains("former") || answer.contains("present"), "{answer}");
        let decision = stage.decision().await?;
        let is_new = stage.pids().iter().all(|pid| !before.contains(pid));
        if is_new && decision.renewal.is_none() { Ok(()) } else { Err(decision.to_string()) }
    })
    .await;
    stage.settles_at(2).await;
    for _ in 0..10 {
        let answer = stage.ask().await.unwrap();
        assert!(answer.contains("present"), "{answer}");
    }
}
