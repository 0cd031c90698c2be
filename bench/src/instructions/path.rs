//! The programs on a request's way, one of which is counted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use natsway_proofs::probe;
use natsway_testkit::{
    Process, ProcessBuilder, TestBroker, eventually, free_port, workspace_binary,
};

use super::callgrind::Counted;
use super::{Args, WARM_UP, load};
use crate::service::GREETING;

/// Generous: for a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where the worker listens.
const SUBJECT: &str = "svc.count.blue";

/// The one route. Its times leave room for a program that is fifty times slower than it is in use.
const ROUTES: &str = r#"
[[route]]
name = "count"
path = "/{*rest}"
timeout = "60s"

[[route.target]]
version = "blue"
subject = "svc.count.blue"
"#;

/// A program on a request's way, in one of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CountedPath {
    GatewayByBroker,
    Worker,
    WorkerPerCore,
}

impl CountedPath {
    pub(super) const ALL: [Self; 3] = [Self::GatewayByBroker, Self::Worker, Self::WorkerPerCore];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GatewayByBroker => "gateway by broker",
            Self::Worker => "worker",
            Self::WorkerPerCore => "worker per core",
        }
    }

    /// Threads of the worker. They are said, for else they would be as many as the machine has
    /// processors.
    fn worker_threads(self) -> &'static [&'static str] {
        match self {
            Self::GatewayByBroker | Self::WorkerPerCore => &["--per-core", "--readers", "1"],
            Self::Worker => &["--threads", "2", "--readers", "1"],
        }
    }

    /// Gives the instructions that its program takes for as many requests as are asked for;
    /// callgrind's files go to `directory`.
    ///
    /// # Errors
    /// A request is not answered as it should, or callgrind does not do as it is told.
    pub(super) async fn count(self, args: &Args, directory: &Path) -> anyhow::Result<u64> {
        let broker = TestBroker::start().await;
        let url = broker.url();
        let run = |name: &str, is_counted: bool| {
            let program = workspace_binary(name);
            let builder = match is_counted {
                true => Counted::builder(&program, directory),
                false => Process::builder(&program),
            };
            builder.args(["--nats-url", &url])
        };
        let counts_gateway = self == Self::GatewayByBroker;
        let worker =
            run("worker", !counts_gateway).args(["--subject", SUBJECT]).args(self.worker_threads());
        let (port, admin_port) = (free_port(), free_port());
        let gateway = gateway(run("apiproxy", counts_gateway), port, admin_port, directory)?;

        let (gateway, worker) = (gateway.start(), worker.start());
        ready(port, admin_port).await;
        let (counted, _other) = if counts_gateway { (gateway, worker) } else { (worker, gateway) };
        let counted = Counted::new(counted, directory);
        load::ask(port, args.connections, WARM_UP).await.context("warm up")?;
        counted.zero().await?;
        load::ask(port, args.connections, args.requests).await?;
        let total = counted.instructions().await?;
        ensure!(total > 0, "callgrind counted nothing");
        Ok(total)
    }
}

/// A gateway with one thread, for else there would be as many as the machine has processors.
fn gateway(
    gateway: ProcessBuilder,
    port: u16,
    admin_port: u16,
    directory: &Path,
) -> anyhow::Result<ProcessBuilder> {
    let routes = directory.join("routes.toml");
    fs::write(&routes, ROUTES).with_context(|| format!("write {}", routes.display()))?;
    let listen = ["--listen".to_owned(), format!("127.0.0.1:{port}")];
    let admin = ["--admin-listen".to_owned(), format!("127.0.0.1:{admin_port}")];
    Ok(gateway
        .args(listen)
        .args(admin)
        .args(["--static-routes", "--routes"])
        .arg(routes)
        .env("NATSWAY_SHARDS", "1")
        // As releases before call it, which would refuse the flag.
        .env("NATSWAY_CORES", "1"))
}

/// Waits until the gateway is ready and the worker answers through it.
async fn ready(port: u16, admin_port: u16) {
    eventually(DEADLINE, async || {
        let gateway = probe::get(admin_port, "/readyz").await.map_err(|error| error.to_string())?;
        let worker = probe::get(port, "/").await.map_err(|error| error.to_string())?;
        match (gateway.0, worker) {
            (200, (200, body)) if body == GREETING => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
