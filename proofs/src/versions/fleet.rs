//! The processes under proof: several gateways, and workers of two versions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::Client;
use async_nats::jetstream::kv;
use futures_util::StreamExt;
use natsway_testkit::{
    Process, ProcessBuilder, TestBroker, eventually, free_port, workspace_binary,
};
use natsway_wire::control;
use serde_json::Value;

use crate::stand::{DEADLINE, PATIENT, nothing_held, present};
use crate::{Transport, probe};

/// The route under proof.
pub(crate) const ROUTE: &str = "prove";

/// Where services listen that call the one under proof.
pub(crate) const FRONT: &str = "svc.front.blue";

/// How a version's workers misbehave, if they do.
pub(crate) type Manner<'a> = Option<&'a str>;

/// A user of the broker: name and password.
pub(crate) type User = (&'static str, &'static str);

/// Gateways and workers on one broker.
pub(crate) struct Fleet {
    directory: PathBuf,
    pub(crate) broker: TestBroker,
    pub(crate) client: Client,
    pub(crate) gateways: Vec<Gateway>,
    workers: Vec<Worker>,
    started_workers: usize,
    pub(crate) transport: Transport,
    routes: PathBuf,
    /// Where the programs of another release are, while those are started.
    programs: Option<PathBuf>,
    /// Variables of all programs that are started from now on.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A gateway that can be started again where it was.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) port: u16,
    admin_port: u16,
    /// As whom it connects to the broker, if that is somebody: name and password.
    user: Option<User>,
    /// By which way to the broker, where that is not the straight one.
    broker_url: Option<String>,
}

struct Worker {
    version: &'static str,
    process: Process,
}

/// How a command of `apiproxy` ended.
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

impl Fleet {
    /// So many gateways with an empty bucket, the route in it, and no worker yet.
    pub(crate) async fn start(
        directory: &Path,
        gateways: usize,
        times: &str,
    ) -> anyhow::Result<Self> {
        let broker = TestBroker::builder().jetstream().start().await;
        let mut fleet = Self::on(broker, directory, &route("/{*rest}", times)).await?;
        for _ in 0..gateways {
            fleet.add_gateway(None).await;
        }
        Ok(fleet)
    }

    /// No gateway yet: those that come fill an empty bucket with these routes.
    pub(crate) async fn on(
        broker: TestBroker,
        directory: &Path,
        routes: &str,
    ) -> anyhow::Result<Self> {
        let file = directory.join("routes.toml");
        std::fs::write(&file, routes)?;
        let client = broker.connect().await;
        let directory = directory.to_owned();
        let (gateways, workers) = (Vec::new(), Vec::new());
        Ok(Self {
            directory,
            broker,
            client,
            gateways,
            workers,
            started_workers: 0,
            transport: Transport::default(),
            routes: file,
            programs: None,
            environment: Vec::new(),
        })
    }

    /// Starts programs of another release from now on, which are in this directory, or those of
    /// this workspace again.
    pub(crate) fn use_programs_of(&mut self, release: Option<&Path>) {
        self.programs = release.map(Path::to_owned);
    }

    fn program(&self, name: &str) -> PathBuf {
        match &self.programs {
            Some(directory) => directory.join(name),
            None => workspace_binary(name),
        }
    }

    /// Starts a gateway, as this user of the broker if one is given, and waits until it is ready.
    pub(crate) async fn add_gateway(&mut self, user: Option<User>) {
        self.add_gateway_by(user, None).await;
    }

    /// The same by a way of its own to the broker.
    pub(crate) async fn add_gateway_by(&mut self, user: Option<User>, broker_url: Option<String>) {
        let (port, admin_port) = (free_port(), free_port());
        let process = self.launch(port, admin_port, user, broker_url.as_deref());
        let gateway = Gateway { process, port, admin_port, user, broker_url };
        gateway.ready().await;
        self.gateways.push(gateway);
    }

    /// Starts a gateway again at its addresses, after it has ended.
    pub(crate) async fn start_again(&mut self, index: usize) {
        let Gateway { port, admin_port, user, .. } = self.gateways[index];
        let broker_url = self.gateways[index].broker_url.as_deref();
        self.gateways[index].process = self.launch(port, admin_port, user, broker_url);
        self.gateways[index].ready().await;
    }

    fn launch(
        &self,
        port: u16,
        admin_port: u16,
        user: Option<User>,
        broker_url: Option<&str>,
    ) -> Process {
        let own_url = self.broker.url();
        let broker_url = broker_url.unwrap_or(&own_url);
        let gateway = Process::builder(self.program("apiproxy"))
            .name(format!("gateway {port}"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .args(["--nats-url", broker_url, "--drain-grace", "500ms"])
            .arg("--routes")
            .arg(&self.routes)
            .env("NATSWAY_SHARDS", "2")
            // As releases before call it, which would refuse the flag.
            .env("NATSWAY_CORES", "2");
        let gateway = self.with_environment(gateway);
        // Not in the URL: the client library uses what stands there only when the broker asks for
        // it.
        match user {
            Some((name, password)) => gateway.env("NATS_USER", name).env("NATS_PASSWORD", password),
            None => gateway,
        }
        .start()
    }

    /// Starts workers of a version, misbehaving as they are told.
    pub(crate) async fn add_workers(
        &mut self,
        version: &'static str,
        count: usize,
        misbehave: Manner<'_>,
    ) {
        for _ in 0..count {
            let number = self.started_workers;
            self.started_workers += 1;
            let mut worker = Process::builder(self.program("worker"))
                .name(format!("worker {number} of {version}"))
                .args([
                    "--nats-url",
                    &self.broker.url(),
                    "--subject",
                    &format!("svc.prove.{version}"),
                ])
                .env("NATSWAY_TUNNEL", self.transport.of_worker(number))
                .env("NATSWAY_RUN_LOG", self.directory.join(format!("{number}-{version}.runs")));
            worker = self.with_environment(worker);
            if let Some(how) = misbehave {
                worker = worker.args(["--misbehave", how]);
            }
            self.workers.push(Worker { version, process: worker.start() });
        }
        let expected = self.workers.iter().filter(|worker| worker.version == version).count();
        self.members(&format!("svc.prove.{version}"), expected).await;
    }

    fn with_environment(&self, program: ProcessBuilder) -> ProcessBuilder {
        self.environment.iter().fold(program, |program, (name, value)| program.env(name, value))
    }

    /// Waits until so many workers of a subject say that they are there.
    async fn members(&self, subject: &str, expected: usize) {
        eventually(DEADLINE, async || {
            let members = present(&self.client, subject).await;
            members.map_err(|error| error.to_string()).and_then(|members| match members.len() {
                count if count == expected => Ok(()),
                count => Err(format!("{count} of {expected} workers of {subject}")),
            })
        })
        .await;
    }

    /// Starts so many services that have the route's service do their work, and call it without a
    /// gateway.
    pub(crate) async fn start_callers(&self, count: usize) -> Vec<Process> {
        let callers = (0..count).map(|_| self.start_caller()).collect();
        self.callers_present(count).await;
        callers
    }

    /// Starts one of these services; it takes part once [`callers_present`](Fleet::callers_present)
    /// counts it.
    pub(crate) fn start_caller(&self) -> Process {
        Process::builder(self.program("worker"))
            .name("caller")
            .args(["--nats-url", &self.broker.url(), "--subject", FRONT, "--forward-to", ROUTE])
            .start()
    }

    /// Waits until so many of these services say that they are there.
    pub(crate) async fn callers_present(&self, expected: usize) {
        self.members(FRONT, expected).await;
    }

    /// Who sends requests and answers within a moment, by the name of the host.
    pub(crate) async fn reports(&self) -> anyhow::Result<Vec<Value>> {
        let mut answers = self.client.subscribe(control::metrics_subject("*", "*")).await?;
        self.client.publish(control::report_subject(), "".into()).await?;
        let mut reports: Vec<Value> = Vec::new();
        let until = tokio::time::Instant::now() + Duration::from_millis(600);
        while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
            let report: Value =
                serde_json::from_slice(&answer.payload).context("a report is JSON")?;
            if report["whole"] == true && reports.iter().all(|known| known["id"] != report["id"]) {
                reports.push(report);
            }
        }
        Ok(reports)
    }

    /// How many requests the gateways that run now have sent by tunnels.
    pub(crate) async fn by_tunnel(&self) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for gateway in &self.gateways {
            sum += gateway.metric("natsway_tunnel_requests_total").await?;
        }
        Ok(sum)
    }

    /// Waits until no gateway and no worker holds anything for anybody.
    pub(crate) async fn all_let_go(&self) {
        for gateway in &self.gateways {
            nothing_held(gateway.admin_port).await;
        }
    }

    /// Stops the workers of a version as an operator does.
    pub(crate) async fn stop_workers(&mut self, version: &str) -> anyhow::Result<()> {
        for worker in self.workers.extract_if(.., |worker| worker.version == version) {
            let mut process = worker.process;
            process.terminate();
            let status = process.wait_exit(DEADLINE).await;
            ensure!(status.success(), "a worker of {version} left with {status}");
        }
        Ok(())
    }

    /// Replaces the workers of a version one after the other, as an operator does.
    pub(crate) async fn restart_workers(&mut self, version: &'static str) -> anyhow::Result<()> {
        let count = self.workers.iter().filter(|worker| worker.version == version).count();
        for _ in 0..count {
            let oldest = self.workers.iter().position(|worker| worker.version == version);
            let mut process =
                self.workers.remove(oldest.context("a worker of the version")?).process;
            process.terminate();
            let status = process.wait_exit(DEADLINE).await;
            ensure!(status.success(), "a worker of {version} left with {status}");
            self.add_workers(version, 1, None).await;
        }
        Ok(())
    }

    /// Requests that reached the workers of a version so far, in bytes of their logs.
    pub(crate) fn reached(&self, version: &str) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(&format!("-{version}.runs")) {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(bytes)
    }

    /// The run logs of every worker there ever was.
    pub(crate) fn run_logs(&self) -> anyhow::Result<Vec<PathBuf>> {
        let paths = std::fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.path()));
        let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "runs");
        paths.filter(|path: &anyhow::Result<PathBuf>| path.as_ref().map_or(true, is_log)).collect()
    }

    /// Where clients connect.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.gateways.iter().map(|gateway| gateway.port).collect()
    }

    /// Runs `apiproxy` with these arguments.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> anyhow::Result<Done> {
        let mut command = tokio::process::Command::new(self.program("apiproxy"));
        let output =
            command.args(arguments).args(["--nats-url", &self.broker.url()]).output().await?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Done { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Starts a rollout and leaves it to the gateways.
    pub(crate) async fn start_rollout(&self, to: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let start = ["rollout", "start", ROUTE, "--to", to, "--smoke", "/version"];
        let done = self.cli(&[&start, arguments].concat()).await?;
        ensure!(done.code == Some(0), "no rollout was started: {}", done.text);
        Ok(())
    }

    /// The bucket of the routes.
    pub(crate) async fn bucket(&self) -> anyhow::Result<kv::Store> {
        let context = async_nats::jetstream::new(self.client.clone());
        context.get_key_value("natsway-routes").await.context("the routes bucket")
    }

    /// The route's document and its revision.
    pub(crate) async fn document(&self) -> anyhow::Result<(Value, u64)> {
        let entry = self.bucket().await?.entry(ROUTE).await?.context("the route is there")?;
        Ok((serde_json::from_slice(&entry.value)?, entry.revision))
    }

    /// Every document of the route from now on, the present one first.
    pub(crate) async fn documents(&self) -> anyhow::Result<kv::Watch> {
        Ok(self.bucket().await?.watch_with_history(ROUTE).await?)
    }

    /// Waits until the rollout is done, and gives it as it is then.
    pub(crate) async fn done(&self, documents: &mut kv::Watch) -> anyhow::Result<Value> {
        until(documents, |rollout| is_done(rollout["phase"].as_str().unwrap_or_default())).await
    }
}

/// Waits until the rollout is so, and gives it as it is then.
///
/// # Errors
/// It does not come to that.
pub(crate) async fn until(
    documents: &mut kv::Watch,
    is_so: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let reached = async {
        while let Some(entry) = documents.next().await {
            let rollout = serde_json::from_slice::<Value>(&entry?.value)?["rollout"].take();
            if is_so(&rollout) {
                return Ok(rollout);
            }
        }
        bail!("the watch of the bucket ended")
    };
    tokio::time::timeout(Duration::from_secs(300), reached)
        .await
        .context("the rollout does not go on")?
}

/// Whether a rollout in this phase is at its end.
pub(crate) fn is_done(phase: &str) -> bool {
    matches!(phase, "promoted" | "rolled-back" | "refused")
}

/// The route under proof, as a file has it.
pub(crate) fn route(path: &str, times: &str) -> String {
    let target = |version: &str, weight: u32| {
        format!(
            "[[route.target]]\nversion = \"{version}\"\nsubject = \"svc.prove.{version}\"\nweight \
             = {weight}\n"
        )
    };
    let (blue, green) = (target("blue", 100), target("green", 0));
    format!("[[route]]\nname = \"{ROUTE}\"\npath = \"{path}\"\n{times}\n{blue}{green}")
}

/// The route under proof for callers without a gateway, and one to services that call it so.
pub(crate) fn behind_callers(transport: Transport) -> String {
    let times = transport.with(PATIENT);
    let front = format!(
        "[[route]]\nname = \"front\"\npath = \"/{{*rest}}\"\n{times}\n\
         [[route.target]]\nversion = \"blue\"\nsubject = \"{FRONT}\"\n"
    );
    front + &route("/own/{*rest}", &format!("{times}\ninternal = true"))
}

impl Gateway {
    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        eventually(DEADLINE, async || match probe::get(self.admin_port, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// A figure of its `/metrics`; 0 when it is not there.
    pub(crate) async fn metric(&self, sample: &str) -> anyhow::Result<f64> {
        probe::metric(self.admin_port, sample).await
    }
}
