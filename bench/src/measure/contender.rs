//! What is measured: each contender answers the same 39 bytes at `/` of a port, by other means.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use natsway_testkit::{Broker, Process, ProcessBuilder, eventually, free_port, workspace_binary};

use super::direct::GREETING;
use super::peers;
use super::processes::Role;
use crate::probe;

/// The contender that all others are compared with.
pub const BASELINE: &str = "direct";

/// Generous: for a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(30);

const SUBJECT: &str = "svc.demo.blue";

const ROUTES: &str = r#"
[[route]]
name = "demo"
path = "/{*rest}"
target = [{ version = "blue", subject = "svc.demo.blue" }]
"#;

/// One way to get the answer.
#[derive(Clone, Debug)]
pub struct Contender {
    /// Short, for raw data and the command line.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Direct,
    Natsway(Natsway),
    Nginx,
    GoDirect,
    GoGateway { connections: u32 },
}

/// How the gateway and its workers are started.
#[derive(Clone, Copy, Debug)]
struct Natsway {
    workers: u32,
    /// Handlers on the threads that read, in place of the multi-thread runtime.
    per_core: bool,
    /// Threads of a worker that read, each with a broker connection; as many as its form has when it is not said.
    readers: Option<u32>,
    /// Threads of the gateway; one for each processor when it is not said.
    cores: Option<u32>,
    connections_per_core: u32,
}

const NATSWAY: Natsway =
    Natsway { workers: 1, per_core: false, readers: None, cores: None, connections_per_core: 1 };

/// Every contender, in the order of the table.
pub fn all(quick: bool) -> Vec<Contender> {
    let contender = |name, title, kind| Contender { name, title, kind };
    let natsway = |name, title, natsway| contender(name, title, Kind::Natsway(natsway));
    let mut all = vec![
        contender(BASELINE, "direct axum", Kind::Direct),
        natsway("natsway-1", "gateway, 1 worker", NATSWAY),
        natsway("natsway-2", "gateway, 2 workers", Natsway { workers: 2, ..NATSWAY }),
        natsway("natsway-4", "gateway, 4 workers", Natsway { workers: 4, ..NATSWAY }),
        natsway("natsway-percore", "gateway, 1 worker, per core", Natsway { per_core: true, ..NATSWAY }),
    ];
    if !quick {
        let one_reader = Natsway { per_core: true, readers: Some(1), ..NATSWAY };
        let fewest_threads = Natsway { cores: Some(1), ..one_reader };
        let four_connections = Natsway { connections_per_core: 4, ..NATSWAY };
        all.extend([
            natsway(
                "natsway-percore-4",
                "gateway, 4 workers, per core",
                Natsway { per_core: true, workers: 4, ..NATSWAY },
            ),
            natsway("natsway-1reader", "gateway, 1 worker, per core of 1 reader", one_reader),
            natsway("natsway-1thread", "gateway of 1 thread, 1 worker, per core of 1 reader", fewest_threads),
            natsway("natsway-4conn", "gateway of 4 connections a thread, 1 worker", four_connections),
        ]);
    }
    all.push(contender("nginx", "nginx -> axum", Kind::Nginx));
    if !quick {
        all.extend([
            contender("go-direct", "direct Go fiber", Kind::GoDirect),
            contender("go-1", "the article's Go gateway and worker", Kind::GoGateway { connections: 1 }),
            contender("go-8", "the same, 8 connections in turn", Kind::GoGateway { connections: 8 }),
        ]);
    }
    all
}

/// A contender's processes. Dropped, they are killed.
#[derive(Debug)]
pub struct Running {
    /// Where it answers, on 127.0.0.1.
    pub port: u16,
    processes: Vec<(Role, Process)>,
    broker: Option<Broker>,
}

impl Contender {
    /// Has what [`start`](Self::start) needs built or found.
    ///
    /// # Errors
    /// It is not installed; the error says how to get it.
    pub fn prepare(&self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Direct => {}
            Kind::Natsway(_) => {
                workspace_binary("apiproxy");
                workspace_binary("worker");
            }
            Kind::Nginx => peers::find_nginx().map(drop)?,
            Kind::GoDirect | Kind::GoGateway { .. } => peers::build_go().map(drop)?,
        }
        Ok(())
    }

    /// Starts its processes; it answers when this returns.
    ///
    /// # Errors
    /// Something is not installed or cannot be written.
    ///
    /// # Panics
    /// When a process does not come up within half a minute.
    pub async fn start(&self, directory: &Path) -> anyhow::Result<Running> {
        let mut running = Running { port: free_port(), processes: Vec::new(), broker: None };
        match self.kind {
            Kind::Direct => running.direct(running.port)?,
            Kind::Natsway(natsway) => running.natsway(natsway, directory).await?,
            Kind::Nginx => {
                let service = free_port();
                running.direct(service)?;
                running.add(Role::Gateway, peers::nginx(running.port, service, directory)?);
            }
            Kind::GoDirect => {
                let server = peers::go("direct")?.args(["-listen", &format!("127.0.0.1:{}", running.port)]);
                running.add(Role::Service, server);
            }
            Kind::GoGateway { connections } => running.go(connections).await?,
        }
        running.ready().await;
        Ok(running)
    }
}

impl Running {
    fn add(&mut self, role: Role, process: ProcessBuilder) {
        self.processes.push((role, process.start()));
    }

    fn direct(&mut self, port: u16) -> anyhow::Result<()> {
        let server = Process::builder(std::env::current_exe()?).name("direct");
        self.add(Role::Service, server.arg("serve-direct").arg(format!("127.0.0.1:{port}")));
        Ok(())
    }

    async fn broker(&mut self) -> String {
        let broker = Broker::start().await;
        let url = broker.url();
        self.broker = Some(broker);
        url
    }

    async fn natsway(&mut self, natsway: Natsway, directory: &Path) -> anyhow::Result<()> {
        let Natsway { workers, per_core, readers, cores, connections_per_core } = natsway;
        let url = self.broker().await;
        for number in 0..workers {
            let worker = Process::builder(workspace_binary("worker")).name(format!("worker {number}"));
            let mut worker = worker.args(["--nats-url", &url, "--subject", SUBJECT]);
            if per_core {
                worker = worker.arg("--per-core");
            }
            if let Some(readers) = readers {
                worker = worker.args(["--readers", &readers.to_string()]);
            }
            self.add(Role::Service, worker);
        }
        for (_, worker) in &mut self.processes {
            worker.wait_for_line("serving", DEADLINE).await;
        }
        let routes = directory.join("routes.toml");
        std::fs::write(&routes, ROUTES)?;
        let mut gateway = Process::builder(workspace_binary("apiproxy"))
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", free_port())])
            .args(["--nats-url", &url, "--connections-per-core", &connections_per_core.to_string()])
            .args(["--static-routes", "--routes"])
            .arg(routes);
        if let Some(cores) = cores {
            gateway = gateway.args(["--cores", &cores.to_string()]);
        }
        self.add(Role::Gateway, gateway);
        Ok(())
    }

    async fn go(&mut self, connections: u32) -> anyhow::Result<()> {
        let url = self.broker().await;
        self.add(Role::Service, peers::go("worker")?.args(["-nats", &url]));
        let gateway = peers::go("gateway")?
            .args(["-nats", &url, "-connections", &connections.to_string()])
            .args(["-listen", &format!("127.0.0.1:{}", self.port)]);
        self.add(Role::Gateway, gateway);
        Ok(())
    }

    async fn ready(&self) {
        eventually(DEADLINE, async || self.check().await).await;
    }

    /// Asks once and compares the answer byte for byte.
    ///
    /// # Errors
    /// Another answer, or none.
    pub async fn check(&self) -> anyhow::Result<()> {
        let (status, body) = probe::get(self.port, "/").await?;
        ensure!(status == 200 && body == GREETING, "the answer is {status} {body:?}");
        Ok(())
    }

    /// Its processes; what they started themselves counts with them.
    pub fn processes(&self) -> Vec<(Role, u32)> {
        let broker = self.broker.iter().map(|broker| (Role::Broker, broker.pid()));
        self.processes.iter().map(|(role, process)| (*role, process.pid())).chain(broker).collect()
    }

    /// Takes everything down; nothing is left when this returns.
    pub async fn stop(mut self) {
        for (_, process) in &mut self.processes {
            process.kill9();
        }
        drop(self.broker.take());
    }
}
