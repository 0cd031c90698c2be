//! The processes under proof: several gateways, and workers of two versions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::Client;
use async_nats::jetstream::kv;
use futures_util::StreamExt;
use natsway_testkit::{Broker, Process, eventually, free_port, workspace_binary};
use serde_json::Value;

use crate::probe;
use crate::prove::stand::{DEADLINE, present};

/// The route under proof.
pub(super) const ROUTE: &str = "prove";

/// Gateways and workers on one broker.
pub(super) struct Fleet {
    directory: PathBuf,
    pub(super) broker: Broker,
    pub(super) client: Client,
    pub(super) gateways: Vec<Gateway>,
    workers: Vec<Worker>,
    started_workers: usize,
    routes: PathBuf,
}

/// A gateway that can be started again where it was.
pub(super) struct Gateway {
    pub(super) process: Process,
    pub(super) port: u16,
    admin_port: u16,
}

struct Worker {
    version: &'static str,
    process: Process,
}

/// How a command of `apiproxy` ended.
pub(super) struct Done {
    pub(super) code: Option<i32>,
    pub(super) text: String,
}

impl Fleet {
    /// So many gateways with an empty bucket, the route in it, and no worker yet.
    pub(super) async fn start(directory: &Path, gateways: usize, times: &str) -> anyhow::Result<Fleet> {
        let broker = Broker::builder().jetstream().start().await;
        let routes = directory.join("routes.toml");
        let target = |version: &str, weight: u32| {
            format!(
                "[[route.target]]\nversion = \"{version}\"\nsubject = \"svc.prove.{version}\"\nweight = {weight}\n"
            )
        };
        let (blue, green) = (target("blue", 100), target("green", 0));
        let head = format!("[[route]]\nname = \"{ROUTE}\"\npath = \"/{{*rest}}\"\n{times}\n");
        std::fs::write(&routes, head + &blue + &green)?;
        let client = broker.connect().await;
        let directory = directory.to_owned();
        let mut fleet = Fleet {
            directory,
            broker,
            client,
            gateways: Vec::new(),
            workers: Vec::new(),
            started_workers: 0,
            routes,
        };
        for _ in 0..gateways {
            let (port, admin_port) = (free_port(), free_port());
            let gateway = Gateway { process: fleet.launch(port, admin_port), port, admin_port };
            gateway.ready().await;
            fleet.gateways.push(gateway);
        }
        Ok(fleet)
    }

    fn launch(&self, port: u16, admin_port: u16) -> Process {
        Process::builder(workspace_binary("apiproxy"))
            .name(format!("gateway {port}"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .args(["--nats-url", &self.broker.url(), "--cores", "2", "--drain-grace", "500ms"])
            .arg("--routes")
            .arg(&self.routes)
            .start()
    }

    /// Starts a gateway again at its addresses, after it has ended.
    pub(super) async fn start_again(&mut self, index: usize) {
        let (port, admin_port) = (self.gateways[index].port, self.gateways[index].admin_port);
        self.gateways[index].process = self.launch(port, admin_port);
        self.gateways[index].ready().await;
    }

    /// Starts workers of a version, misbehaving as they are told.
    pub(super) async fn add_workers(&mut self, version: &'static str, count: usize, misbehave: Option<&str>) {
        for _ in 0..count {
            let number = self.started_workers;
            self.started_workers += 1;
            let mut worker = Process::builder(workspace_binary("worker"))
                .name(format!("worker {number} of {version}"))
                .args(["--nats-url", &self.broker.url(), "--subject", &format!("svc.prove.{version}")])
                .env("NATSWAY_RUN_LOG", self.directory.join(format!("{number}-{version}.runs")));
            if let Some(how) = misbehave {
                worker = worker.args(["--misbehave", how]);
            }
            self.workers.push(Worker { version, process: worker.start() });
        }
        let expected = self.workers.iter().filter(|worker| worker.version == version).count();
        eventually(DEADLINE, async || {
            let members = present(&self.client, &format!("svc.prove.{version}")).await;
            members.map_err(|error| error.to_string()).and_then(|members| match members.len() {
                count if count == expected => Ok(()),
                count => Err(format!("{count} of {expected} workers of {version}")),
            })
        })
        .await;
    }

    /// Stops the workers of a version as an operator does.
    pub(super) async fn stop_workers(&mut self, version: &str) -> anyhow::Result<()> {
        for worker in self.workers.extract_if(.., |worker| worker.version == version) {
            let mut process = worker.process;
            process.terminate();
            let status = process.wait_exit(DEADLINE).await;
            ensure!(status.success(), "a worker of {version} left with {status}");
        }
        Ok(())
    }

    /// Requests that reached the workers of a version so far, in bytes of their logs.
    pub(super) fn reached(&self, version: &str) -> anyhow::Result<u64> {
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
    pub(super) fn run_logs(&self) -> anyhow::Result<Vec<PathBuf>> {
        let paths = std::fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.path()));
        let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "runs");
        paths.filter(|path: &anyhow::Result<PathBuf>| path.as_ref().map_or(true, is_log)).collect()
    }

    /// Where clients connect.
    pub(super) fn ports(&self) -> Vec<u16> {
        self.gateways.iter().map(|gateway| gateway.port).collect()
    }

    /// Runs `apiproxy` with these arguments.
    pub(super) async fn cli(&self, arguments: &[&str]) -> anyhow::Result<Done> {
        let mut command = tokio::process::Command::new(workspace_binary("apiproxy"));
        let output = command.args(arguments).args(["--nats-url", &self.broker.url()]).output().await?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Done { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Starts a rollout and leaves it to the gateways.
    pub(super) async fn start_rollout(&self, to: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let start = ["rollout", "start", ROUTE, "--to", to, "--smoke", "/version"];
        let done = self.cli(&[&start, arguments].concat()).await?;
        ensure!(done.code == Some(0), "no rollout was started: {}", done.text);
        Ok(())
    }

    /// The bucket of the routes.
    pub(super) async fn bucket(&self) -> anyhow::Result<kv::Store> {
        let context = async_nats::jetstream::new(self.client.clone());
        context.get_key_value("natsway-routes").await.context("the routes bucket")
    }

    /// The route's document and its revision.
    pub(super) async fn document(&self) -> anyhow::Result<(Value, u64)> {
        let entry = self.bucket().await?.entry(ROUTE).await?.context("the route is there")?;
        Ok((serde_json::from_slice(&entry.value)?, entry.revision))
    }

    /// Every document of the route from now on, the present one first.
    pub(super) async fn documents(&self) -> anyhow::Result<kv::Watch> {
        Ok(self.bucket().await?.watch_with_history(ROUTE).await?)
    }

    /// Waits until the rollout is done, and gives it as it is then.
    pub(super) async fn done(&self, documents: &mut kv::Watch) -> anyhow::Result<Value> {
        let done = async {
            while let Some(entry) = documents.next().await {
                let document: Value = serde_json::from_slice(&entry?.value)?;
                let phase = document["rollout"]["phase"].as_str().unwrap_or_default();
                if matches!(phase, "promoted" | "rolled-back" | "refused") {
                    return Ok(document["rollout"].clone());
                }
            }
            anyhow::bail!("the watch of the bucket ended")
        };
        tokio::time::timeout(Duration::from_secs(300), done).await.context("the rollout does not end")?
    }
}

impl Gateway {
    /// Waits until it is ready.
    pub(super) async fn ready(&self) {
        eventually(DEADLINE, async || match probe::get(self.admin_port, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// A figure of its `/metrics`; 0 when it is not there.
    pub(super) async fn metric(&self, sample: &str) -> anyhow::Result<f64> {
        let (_, page) = probe::get(self.admin_port, "/metrics").await?;
        let value = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
        Ok(value.unwrap_or(0.0))
    }
}
