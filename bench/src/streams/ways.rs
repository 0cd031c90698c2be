//! The ways to the service: straight, over a tunnel, and through proxies.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use natsway_testkit::{Process, TestBroker, eventually, free_port, workspace_binary};

use super::clients::Load;
use crate::harness::meter::Watched;
use crate::results::Role;
use crate::scenario::arrangement::Proxy;

const SUBJECT: &str = "svc.bench.blue";
const START: Duration = Duration::from_secs(30);

/// What nginx needs for bodies of any size and WebSockets, beside what it has for small requests.
const NGINX_STREAMS: &str = "proxy_http_version 1.1;
            client_max_body_size 0;
            proxy_set_header Upgrade $http_upgrade;";

/// Has workers take pipes, at any rate.
const BY_PIPES: [&str; 4] = ["--tunnel-listen", "broker", "--tunnel-pipe-rate", "0"];

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Tunnel,
    /// A tunnel by a pipe on the broker, whose rate is not bounded here.
    Pipe,
    Nginx {
        is_buffered: bool,
    },
    Haproxy,
    Traefik,
}

/// A way that is there.
pub(super) struct Started {
    port: u16,
    /// The service itself.
    service: Process,
    gateway: Option<Process>,
    broker: Option<TestBroker>,
}

impl Way {
    pub(super) fn all() -> [Self; 7] {
        [
            Self::Direct,
            Self::Tunnel,
            Self::Pipe,
            Self::Nginx { is_buffered: true },
            Self::Nginx { is_buffered: false },
            Self::Haproxy,
            Self::Traefik,
        ]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Pipe => "pipe",
            Self::Nginx { is_buffered: true } => "nginx",
            Self::Nginx { is_buffered: false } => "nginx-unbuffered",
            Self::Haproxy => "haproxy",
            Self::Traefik => "traefik",
        }
    }

    /// Whether it is set up for a load: proxies are for HTTP/1.1 here, and nginx for no upgrade
    /// beside connections that are kept.
    pub(super) fn carries(self, load: &Load) -> bool {
        match load {
            Load::Call(_) => matches!(self, Self::Direct | Self::Tunnel | Self::Pipe),
            Load::Echo(_) => !matches!(self, Self::Nginx { .. }),
            _ => true,
        }
    }

    /// Starts the service, and what stands before it.
    ///
    /// # Errors
    /// What has to be installed first.
    pub(super) async fn start(self, directory: &Path, window: u32) -> Result<Started> {
        let bench = std::env::current_exe().context("this program")?;
        match self {
            Self::Tunnel => return tunnel(&bench, directory, window, &[]).await,
            Self::Pipe => return tunnel(&bench, directory, window, &BY_PIPES).await,
            _ => {}
        }
        let service_port = free_port();
        let listen = format!("127.0.0.1:{service_port}");
        let service = Process::builder(&bench).args(["serve-direct", &listen]).start();
        answers(service_port).await;
        let proxy = match self {
            Self::Direct | Self::Tunnel | Self::Pipe => None,
            Self::Nginx { .. } => Some(Proxy::Nginx),
            Self::Haproxy => Some(Proxy::Haproxy),
            Self::Traefik => Some(Proxy::Traefik),
        };
        let Some(proxy) = proxy else {
            return Ok(Started { port: service_port, service, gateway: None, broker: None });
        };
        let port = free_port();
        let command = proxy.command(port, &[service_port], None, directory)?;
        if let Self::Nginx { is_buffered } = self {
            let path = directory.join("nginx.conf");
            let config = std::fs::read_to_string(&path)?;
            let buffering = "proxy_buffering off; proxy_request_buffering off;";
            let more = if is_buffered { "" } else { buffering };
            let streams = format!("{NGINX_STREAMS} {more}");
            std::fs::write(&path, config.replace("proxy_http_version 1.1;", &streams))?;
        }
        let gateway = command.start();
        answers(port).await;
        Ok(Started { port, service, gateway: Some(gateway), broker: None })
    }
}

async fn tunnel(bench: &Path, directory: &Path, window: u32, further: &[&str]) -> Result<Started> {
    let broker = TestBroker::start().await;
    let routes = directory.join("routes.toml");
    let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
    let route = "[[route]]\nname = \"bench\"\npath = \"/{*rest}\"\ntimeout = \"60s\"\n";
    std::fs::write(&routes, route.to_owned() + &target)?;
    let (port, admin) = (free_port(), free_port());
    let gateway = Process::builder(workspace_binary("apiproxy"))
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--admin-listen", &format!("127.0.0.1:{admin}")])
        .args(["--nats-url", &broker.url(), "--static-routes", "--log", "warn"])
        .args(["--tunnel-window", &window.to_string()])
        .args(further)
        .arg("--routes")
        .arg(&routes)
        .start();
    let service = Process::builder(bench)
        .args(["serve-worker", "--nats-url", &broker.url(), "--subjects", SUBJECT])
        .args(["--tunnel-window", &window.to_string()])
        .start();
    answers(port).await;
    Ok(Started { port, service, gateway: Some(gateway), broker: Some(broker) })
}

/// Waits until small requests are answered.
async fn answers(port: u16) {
    eventually(START, async || match natsway_proofs::probe::get(port, "/").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

impl Started {
    /// Where clients connect.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What is metered.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let watched = |name: &str, role, pid| Watched { name: name.to_owned(), role, pid };
        let service = watched("service", Role::Service, self.service.pid());
        let gateway =
            self.gateway.as_ref().map(|process| watched("gateway", Role::Gateway, process.pid()));
        let broker =
            self.broker.as_ref().map(|broker| watched("broker", Role::Broker, broker.pid()));
        [Some(service), gateway, broker].into_iter().flatten().collect()
    }
}
