//! An app, and what stands before it: nothing, nginx, and the sidecar behind a gateway.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use natsway_testkit::{
    Process, ProcessBuilder, TestBroker, eventually, free_port, repository_root, workspace_binary,
};

use crate::harness::meter::Watched;
use crate::results::Role;
use crate::scenario::arrangement::Proxy;

const START: Duration = Duration::from_secs(60);

/// An app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum App {
    Go,
    FastApi,
}

/// A way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Nginx,
    /// Gateway and sidecar, small requests by tunnels.
    Tunnels,
    /// The same by the broker.
    Broker,
}

/// An app, and every way to it.
pub(super) struct Stage {
    app: Process,
    app_port: u16,
    nginx: Option<(Process, u16)>,
    tunnels: Sidecar,
    broker: Sidecar,
}

/// A gateway and a sidecar on a broker.
struct Sidecar {
    broker: TestBroker,
    gateway: Process,
    sidecar: Process,
    port: u16,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Direct, Self::Nginx, Self::Tunnels, Self::Broker];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Tunnels => "sidecar by tunnels",
            Self::Broker => "sidecar by the broker",
        }
    }
}

impl App {
    pub(super) const ALL: [Self; 2] = [Self::Go, Self::FastApi];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::FastApi => "fastapi",
        }
    }

    /// Installs the app and starts it with all that stands before it.
    ///
    /// # Errors
    /// What has to be installed first. Without nginx it is left out.
    pub(super) async fn start(self, directory: &Path) -> Result<Stage> {
        let app_port = free_port();
        let app = self.command(directory, app_port).await?.start();
        answers(app_port).await;
        let port = free_port();
        let nginx = match Proxy::Nginx.command(port, &[app_port], None, directory) {
            Ok(command) => {
                let nginx = command.start();
                answers(port).await;
                Some((nginx, port))
            }
            Err(error) => {
                eprintln!("nginx: skipped, {error:#}");
                None
            }
        };
        let tunnels = Sidecar::start(directory, app_port, "auto").await?;
        let broker = Sidecar::start(directory, app_port, "broker").await?;
        Ok(Stage { app, app_port, nginx, tunnels, broker })
    }

    async fn command(self, directory: &Path, port: u16) -> Result<ProcessBuilder> {
        let port = port.to_string();
        let apps = repository_root().join("bench/apps");
        Ok(match self {
            Self::Go => {
                let program = directory.join("app");
                let mut build = tokio::process::Command::new("go");
                build.arg("build").arg("-C").arg(apps.join("go")).arg("-o").arg(&program);
                ensure!(build.status().await.context("go")?.success(), "go could not build it");
                Process::builder(program).env("PORT", port)
            }
            Self::FastApi => {
                let home = natsway_proofs::apps::install_fastapi().await?;
                Process::builder(home.join("venv/bin/python"))
                    .args(["-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1"])
                    .args(["--no-access-log", "--log-level", "warning", "--port", &port])
                    .env("PYTHONDONTWRITEBYTECODE", "1")
                    .current_dir(apps)
            }
        })
    }
}

impl Sidecar {
    async fn start(directory: &Path, app_port: u16, transport: &str) -> Result<Self> {
        const SUBJECT: &str = "svc.bench.blue";
        let broker = TestBroker::start().await;
        let routes = directory.join(format!("routes-{transport}.toml"));
        let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
        let route = format!(
            "[[route]]\nname = \"bench\"\npath = \"/{{*rest}}\"\ntimeout = \"60s\"\ntransport = \
             \"{transport}\"\n"
        );
        std::fs::write(&routes, route + &target)?;
        let (port, admin) = (free_port(), free_port());
        let gateway = Process::builder(workspace_binary("apiproxy"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin}")])
            .args(["--nats-url", &broker.url(), "--static-routes", "--log", "warn"])
            .arg("--routes")
            .arg(&routes)
            .start();
        let sidecar = Process::builder(workspace_binary("worker"))
            .args(["--nats-url", &broker.url(), "--subject", SUBJECT, "--log", "warn"])
            .args(["--upstream", &format!("http://127.0.0.1:{app_port}")])
            .start();
        answers(port).await;
        Ok(Self { broker, gateway, sidecar, port })
    }

    fn watched(&self) -> Vec<Watched> {
        vec![
            watched("gateway", Role::Gateway, self.gateway.pid()),
            watched("sidecar", Role::Gateway, self.sidecar.pid()),
            watched("broker", Role::Broker, self.broker.pid()),
        ]
    }
}

impl Stage {
    /// Where clients connect; `None` for what is not installed.
    pub(super) fn port(&self, way: Way) -> Option<u16> {
        match way {
            Way::Direct => Some(self.app_port),
            Way::Nginx => self.nginx.as_ref().map(|(_, port)| *port),
            Way::Tunnels => Some(self.tunnels.port),
            Way::Broker => Some(self.broker.port),
        }
    }

    /// What is metered.
    pub(super) fn watched(&self, way: Way) -> Vec<Watched> {
        let mut before = match way {
            Way::Direct => Vec::new(),
            Way::Nginx => {
                let nginx = self.nginx.iter();
                nginx.map(|(nginx, _)| watched("nginx", Role::Gateway, nginx.pid())).collect()
            }
            Way::Tunnels => self.tunnels.watched(),
            Way::Broker => self.broker.watched(),
        };
        before.push(watched("app", Role::Service, self.app.pid()));
        before
    }
}

fn watched(name: &str, role: Role, pid: u32) -> Watched {
    Watched { name: name.to_owned(), role, pid }
}

/// Waits until small requests are answered.
async fn answers(port: u16) {
    eventually(START, async || match natsway_proofs::probe::get(port, "/").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
