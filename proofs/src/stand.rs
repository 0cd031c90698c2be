//! The processes under proof: gateway and workers on a broker.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::Client;
use futures_util::StreamExt;
use natsway_testkit::{Process, ProcessMemory, eventually, free_port, workspace_binary};

use crate::{Transport, probe};

/// Generous: for a hang, not for a slow machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Where the workers of these proofs listen.
pub const SUBJECT: &str = "svc.prove.blue";

/// How long a client of these proofs waits. What one worker may take is as it is by default, and
/// far longer than a frozen one's requests wait to be tried elsewhere.
pub const PATIENT: &str = "timeout = \"15s\"";

/// Shorter than it takes to notice a network that holds everything back.
pub const HASTY: &str = "timeout = \"1s\"";

/// What a stand has beside what every one has.
#[derive(Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Further arguments of the gateway.
    pub gateway: &'a [&'a str],
    /// Further arguments of each worker.
    pub worker: &'a [&'a str],
    /// Further routes, as a file has them.
    pub routes: &'a str,
    /// What whole requests go by.
    pub transport: Transport,
}

/// A gateway and its workers.
pub struct Stand {
    directory: PathBuf,
    broker_url: String,
    /// The gateway.
    pub gateway: Process,
    /// Where clients connect.
    pub port: u16,
    admin_port: u16,
    /// A client of the broker, for looking.
    pub client: Client,
    /// The workers that run now.
    pub workers: Vec<Process>,
    started_workers: usize,
    worker_arguments: Vec<String>,
    transport: Transport,
}

impl Stand {
    /// A gateway and workers that are ready. The gateway reaches the broker at
    /// `gateway_broker_url`, all others at `broker_url`; `times` are the route's; raw data goes to
    /// `directory`.
    ///
    /// # Errors
    /// Anything that does not start.
    pub async fn start(
        directory: &Path,
        broker_url: &str,
        gateway_broker_url: &str,
        times: &str,
        workers: usize,
    ) -> anyhow::Result<Self> {
        let urls = (broker_url, gateway_broker_url);
        Self::start_with(directory, urls, times, workers, Extras::default()).await
    }

    /// The same with more: `broker_urls` are the workers' and the gateway's.
    ///
    /// # Errors
    /// Anything that does not start.
    pub async fn start_with(
        directory: &Path,
        (broker_url, gateway_broker_url): (&str, &str),
        times: &str,
        workers: usize,
        extras: Extras<'_>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let routes = directory.join("routes.toml");
        let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
        std::fs::write(
            &routes,
            format!(
                "{}[[route]]\nname = \"prove\"\npath = \"/{{*rest}}\"\n{}\n{target}",
                extras.routes,
                extras.transport.with(times)
            ),
        )?;
        let (port, admin_port) = (free_port(), free_port());
        let gateway = Process::builder(workspace_binary("apiproxy"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .args(["--nats-url", gateway_broker_url])
            .arg("--static-routes")
            .arg("--routes")
            .arg(&routes)
            .args(extras.gateway)
            .start();
        let client = async_nats::ConnectOptions::new()
            .connect(broker_url.split(',').collect::<Vec<_>>())
            .await
            .context("connect to the broker")?;
        let mut stand = Self {
            directory: directory.to_owned(),
            broker_url: broker_url.to_owned(),
            gateway,
            port,
            admin_port,
            client,
            workers: Vec::new(),
            started_workers: 0,
            worker_arguments: extras.worker.iter().map(|&argument| argument.to_owned()).collect(),
            transport: extras.transport,
        };
        for _ in 0..workers {
            stand.add_worker();
        }
        stand.members(workers).await;
        stand.gateway_ready().await;
        Ok(stand)
    }

    /// Starts one more worker; it is a member once [`members`](Stand::members) counts it.
    pub fn add_worker(&mut self) {
        let number = self.started_workers;
        self.started_workers += 1;
        let worker = Process::builder(workspace_binary("worker"))
            .name(format!("worker {number}"))
            .args(["--nats-url", &self.broker_url, "--subject", SUBJECT])
            .args(&self.worker_arguments)
            .env("NATSWAY_TUNNEL", self.transport.of_worker(number))
            .env("NATSWAY_RUN_LOG", self.run_log(number))
            .start();
        self.workers.push(worker);
    }

    fn run_log(&self, number: usize) -> PathBuf {
        self.directory.join(format!("worker-{number}.runs"))
    }

    /// Where its raw data is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The run logs of every worker there ever was.
    pub fn run_logs(&self) -> Vec<PathBuf> {
        (0..self.started_workers).map(|number| self.run_log(number)).collect()
    }

    /// Waits until so many workers say that they are there.
    pub async fn members(&self, expected: usize) {
        eventually(DEADLINE, async || match present(&self.client, SUBJECT).await {
            Ok(members) if members.len() == expected => Ok(()),
            Ok(members) => Err(format!("{} of {expected} workers", members.len())),
            Err(error) => Err(error.to_string()),
        })
        .await;
    }

    /// Asks a worker to leave and waits until it has.
    ///
    /// # Errors
    /// It left with an exit code other than 0.
    pub async fn retire_worker(&mut self, index: usize) -> anyhow::Result<()> {
        let mut worker = self.workers.remove(index);
        worker.terminate();
        let status = worker.wait_exit(DEADLINE).await;
        ensure!(status.success(), "a worker left with {status}: {}", worker.stderr());
        Ok(())
    }

    /// Where workers dial tunnels, as the gateway's log says.
    pub async fn tunnel_port(&self) -> u16 {
        let said = eventually(DEADLINE, async || {
            let log = self.gateway.stderr() + &self.gateway.stdout();
            let found = log.split("tunnels are taken").nth(1).and_then(|rest| {
                let (_, rest) = rest.split_once("127.0.0.1:")?;
                let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
                digits.parse::<u16>().ok()
            });
            found.ok_or(log)
        });
        said.await
    }

    /// Waits until the gateway is ready.
    pub async fn gateway_ready(&self) {
        eventually(DEADLINE, async || match probe::get(self.admin_port, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// A figure of the gateway's `/metrics`; 0 when it is not there.
    ///
    /// # Errors
    /// The admin address does not answer.
    pub async fn metric(&self, sample: &str) -> anyhow::Result<f64> {
        probe::metric(self.admin_port, sample).await
    }

    /// Waits until the gateway and its workers hold nothing for anybody any more.
    pub async fn all_let_go(&self) {
        nothing_held(self.admin_port).await;
    }
}

/// What gateways and workers hold, as a gateway's `/metrics` says.
const HELD: [&str; 4] = [
    "natsway_streams_open",
    "natsway_held_bytes",
    "natsway_worker_in_flight",
    "natsway_worker_streams",
];

/// Waits until the gateway with this admin port holds nothing, and its workers say the same.
pub(super) async fn nothing_held(admin_port: u16) {
    eventually(DEADLINE, async || {
        let page = probe::get(admin_port, "/metrics").await.map_err(|error| error.to_string())?.1;
        let is_held = |line: &&str| {
            let (sample, value) = line.rsplit_once(' ').unwrap_or_default();
            let name = sample.split('{').next().unwrap_or_default();
            HELD.contains(&name) && value != "0"
        };
        let held: Vec<&str> = page.lines().filter(is_held).collect();
        if held.is_empty() { Ok(()) } else { Err(format!("held: {held:?}")) }
    })
    .await;
}

/// What the system says of a process's memory.
///
/// # Errors
/// The process is gone.
pub fn memory(process: &Process) -> anyhow::Result<ProcessMemory> {
    process.memory().context("the process is gone")
}

/// The ids of the workers of a subject that answer within a moment.
pub(super) async fn present(client: &Client, subject: &str) -> anyhow::Result<HashSet<String>> {
    let service: natsway_wire::Subject = subject.parse()?;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client
        .publish_with_reply(natsway_wire::control::presence_subject(&service), inbox, "".into())
        .await?;
    let mut members = HashSet::new();
    let until = tokio::time::Instant::now() + Duration::from_millis(150);
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
        if answer.status.is_none() {
            members.insert(String::from_utf8_lossy(&answer.payload).into_owned());
        }
    }
    Ok(members)
}
