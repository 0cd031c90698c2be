//! Three brokers with JetStream, gateways that keep their routes in it, and workers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use async_nats::{Client, jetstream};
use natsway_boot::BrokerConfig;
use natsway_testkit::{Cluster, Process, eventually, free_port, workspace_binary};
use serde_json::Value;

use crate::stand::{PATIENT, SUBJECT, present};
use crate::{Transport, probe};

/// Generous: for a hang, not for a slow machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(90);

/// The stream behind the routes.
pub(super) const ROUTES_STREAM: &str = "KV_natsway-routes";

/// Routes of a gateway here.
pub(super) const ROUTES: f64 = 3.0;

/// What runs on a cluster.
pub(super) struct Stage {
    directory: PathBuf,
    pub(super) cluster: Cluster,
    pub(super) gateways: Vec<Gateway>,
    pub(super) workers: Vec<Process>,
    started_workers: usize,
    transport: Transport,
    /// A client of the brokers, for looking.
    pub(super) client: Client,
}

/// A gateway and where it is reached.
pub(super) struct Gateway {
    _process: Process,
    pub(super) port: u16,
    pub(super) admin_port: u16,
}

impl Stage {
    /// Gateways and workers on a cluster that is up, all of them ready. Everybody knows every
    /// server.
    pub(super) async fn start(
        directory: &Path,
        gateways: usize,
        workers: usize,
        transport: Transport,
    ) -> anyhow::Result<Self> {
        let cluster = natsway_testkit::TestBroker::builder().jetstream().start_cluster(3).await;
        let mut stage = Self::on(directory, cluster).await?;
        stage.transport = transport;
        for _ in 0..gateways {
            stage.add_gateway()?;
        }
        for _ in 0..workers {
            stage.add_worker();
        }
        stage.ready().await;
        stage.members(workers).await;
        Ok(stage)
    }

    /// Nothing but the brokers yet, which need not be up.
    pub(super) async fn on(directory: &Path, cluster: Cluster) -> anyhow::Result<Self> {
        let client = connect(&cluster.url(), "prove").await?;
        let directory = directory.to_owned();
        Ok(Self {
            directory,
            cluster,
            gateways: Vec::new(),
            workers: Vec::new(),
            started_workers: 0,
            transport: Transport::default(),
            client,
        })
    }

    /// Starts a gateway with a copy of the routes at each broker.
    pub(super) fn add_gateway(&mut self) -> anyhow::Result<()> {
        let (port, admin_port) = (free_port(), free_port());
        // One of its own, for the gateway before may still be about to read its.
        let routes = self.directory.join(format!("routes-{port}.toml"));
        let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
        let times = self.transport.with(PATIENT);
        let route = |name: &str, path: &str| {
            format!("[[route]]\nname = \"{name}\"\npath = \"{path}\"\n{times}\n{target}")
        };
        // More than one, so that a bucket can be half filled.
        let text =
            [route("prove", "/{*rest}"), route("second", "/second"), route("third", "/third")]
                .concat();
        std::fs::write(&routes, text)?;
        let process = Process::builder(workspace_binary("apiproxy"))
            .name(format!("gateway {port}"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .args(["--nats-url", &self.cluster.url(), "--shards", "2", "--routes-replicas", "3"])
            .arg("--routes")
            .arg(&routes)
            .start();
        self.gateways.push(Gateway { _process: process, port, admin_port });
        Ok(())
    }

    /// Starts one more worker; it is a member once [`members`](Stage::members) counts it.
    pub(super) fn add_worker(&mut self) {
        let number = self.started_workers;
        self.started_workers += 1;
        let worker = Process::builder(workspace_binary("worker"))
            .name(format!("worker {number}"))
            .args(["--nats-url", &self.cluster.url(), "--subject", SUBJECT])
            .env("NATSWAY_TUNNEL", self.transport.of_worker(number))
            .env("NATSWAY_RUN_LOG", self.run_log(number))
            .start();
        self.workers.push(worker);
    }

    fn run_log(&self, number: usize) -> PathBuf {
        self.directory.join(format!("worker-{number}.runs"))
    }

    /// The run logs of every worker there ever was.
    pub(super) fn run_logs(&self) -> Vec<PathBuf> {
        (0..self.started_workers).map(|number| self.run_log(number)).collect()
    }

    /// Where its raw data is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where clients connect.
    pub(super) fn ports(&self) -> Vec<u16> {
        self.gateways.iter().map(|gateway| gateway.port).collect()
    }

    /// Waits until every gateway says that it is ready.
    pub(super) async fn ready(&self) {
        for gateway in &self.gateways {
            eventually(DEADLINE, async || match probe::get(gateway.admin_port, "/readyz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
    }

    /// Waits until so many workers say that they are there.
    pub(super) async fn members(&self, expected: usize) {
        eventually(DEADLINE, async || match present(&self.client, SUBJECT).await {
            Ok(members) if members.len() == expected => Ok(()),
            Ok(members) => Err(format!("{} of {expected} workers", members.len())),
            Err(error) => Err(error.to_string()),
        })
        .await;
    }

    /// A figure of all gateways together, of those that answer.
    pub(super) async fn metric(&self, sample: &str) -> f64 {
        let mut sum = 0.0;
        for gateway in &self.gateways {
            sum += probe::metric(gateway.admin_port, sample).await.unwrap_or(0.0);
        }
        sum
    }

    /// The place of the broker that leads JetStream's meta group.
    pub(super) async fn meta_leader(&self) -> usize {
        eventually(DEADLINE, async || {
            for broker in self.cluster.iter() {
                let Ok(page) = broker.monitor("/jsz").await else { continue };
                if let Some(place) = self.place(&page["meta_cluster"]["leader"]) {
                    return Ok(place);
                }
            }
            Err("JetStream has no leader")
        })
        .await
    }

    /// The place of the broker that leads a stream.
    pub(super) async fn stream_leader(&self, stream: &str) -> usize {
        eventually(DEADLINE, async || {
            let context = jetstream::new(self.client.clone());
            let mut stream = context.get_stream(stream).await.map_err(|error| error.to_string())?;
            let info = stream.info().await.map_err(|error| error.to_string())?;
            let leader = info.cluster.as_ref().and_then(|cluster| cluster.leader.clone());
            leader
                .and_then(|name| self.place(&Value::String(name)))
                .ok_or("the stream has no leader".to_owned())
        })
        .await
    }

    /// The place of a broker that a gateway sends its requests to.
    pub(super) async fn gateway_broker(&self) -> usize {
        eventually(DEADLINE, async || {
            for (place, broker) in self.cluster.iter().enumerate() {
                let Ok(page) = broker.monitor("/connz").await else { continue };
                let connections = page["connections"].as_array().cloned().unwrap_or_default();
                if connections.iter().any(|connection| connection["name"] == "apiproxy") {
                    return Ok(place);
                }
            }
            Err("no broker has a gateway")
        })
        .await
    }

    fn place(&self, name: &Value) -> Option<usize> {
        self.cluster.iter().position(|broker| name == broker.name())
    }

    /// Keeps what the brokers wrote.
    pub(super) fn keep_logs(&self) -> anyhow::Result<()> {
        for (place, broker) in self.cluster.iter().enumerate() {
            std::fs::write(self.directory.join(format!("broker-{place}.log")), broker.log())?;
        }
        Ok(())
    }
}

/// A client as our programs have it: it notices a frozen server, and reconnects to whichever is
/// there.
pub(super) async fn connect(urls: &str, name: &str) -> anyhow::Result<Client> {
    BrokerConfig::new(urls)?.connect(name, "_INBOX_prove").await.context("connect to the brokers")
}
