//! A broker, a gateway process in front of it, and what a test needs to look at them.

use std::path::PathBuf;
use std::time::Duration;

use natsway_testkit::{Process, ProcessBuilder, TestBroker, eventually, free_port};
use tempfile::TempDir;

use crate::client::{Client, Reply};

/// Generous: a deadline is for a hang, not for a slow machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// One route to `svc.test.blue` with short times, so that tests of time-outs are short too. What is
/// longer than a message is refused: the backends here take no streams.
pub const ROUTES: &str = r#"
    [[route]]
    name = "test"
    path = "/{*rest}"
    timeout = "5s"
    try_timeout = "300ms"
    retry_window = "1s"
    max_body_bytes = 65536
    target = [{ version = "blue", subject = "svc.test.blue" }]
"#;

pub struct Gateway {
    pub process: Process,
    pub port: u16,
    pub admin_port: u16,
    _routes: TempDir,
}

impl Gateway {
    /// A gateway that is starting: `broker_url` may lead nowhere yet.
    pub fn launch(broker_url: &str, routes: &str, arguments: &[&str]) -> Self {
        Self::launch_with(broker_url, routes, &[&["--static-routes"], arguments].concat())
    }

    /// The same, with its routes in the bucket.
    pub fn launch_live(broker: &TestBroker, routes: &str) -> Self {
        Self::launch_with(&broker.url(), routes, &[])
    }

    /// A gateway that is ready, with these limits on open files.
    pub async fn start_with_open_files(
        broker: &TestBroker,
        routes: &str,
        soft: usize,
        hard: usize,
    ) -> Self {
        // Soft first: the hard limit cannot go below it.
        let limit = format!("ulimit -S -n {soft} && ulimit -H -n {hard} && exec \"$0\" \"$@\"");
        let shell = Process::builder("/bin/sh").name("apiproxy").args(["-c", &limit]);
        let shell = shell.arg(env!("CARGO_BIN_EXE_apiproxy"));
        let gateway = Self::launch_by(shell, &broker.url(), routes, &["--static-routes"]);
        gateway.ready().await;
        gateway
    }

    fn launch_with(broker_url: &str, routes: &str, arguments: &[&str]) -> Self {
        Self::launch_by(
            Process::builder(env!("CARGO_BIN_EXE_apiproxy")),
            broker_url,
            routes,
            arguments,
        )
    }

    fn launch_by(
        program: ProcessBuilder,
        broker_url: &str,
        routes: &str,
        arguments: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file: PathBuf = directory.path().join("routes.toml");
        std::fs::write(&file, routes).unwrap();
        let (port, admin_port) = (free_port(), free_port());
        let program = program
            .args([
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--admin-listen",
                &format!("127.0.0.1:{admin_port}"),
            ])
            .args(["--nats-url", broker_url, "--shards", "2", "--log", "debug"])
            .args(arguments);
        // A file without a route is refused, and none is not.
        let program = if routes.is_empty() { program } else { program.arg("--routes").arg(&file) };
        Self { process: program.start(), port, admin_port, _routes: directory }
    }

    /// A gateway that is ready.
    pub async fn start(broker: &TestBroker, routes: &str, arguments: &[&str]) -> Self {
        let gateway = Self::launch(&broker.url(), routes, arguments);
        gateway.ready().await;
        gateway
    }

    pub async fn ready(&self) {
        eventually(DEADLINE, async || match self.admin("/readyz").await {
            Some(reply) if reply.status == 200 => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// What the admin address answers, if it does.
    pub async fn admin(&self, path: &str) -> Option<Reply> {
        Client::connect(self.admin_port).await.ok()?.get(path).await.ok()
    }

    /// A connection to the gateway.
    pub async fn client(&self) -> Client {
        Client::connect(self.port).await.expect("the gateway listens")
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, path: &str) -> Reply {
        self.client().await.get(path).await.expect("the gateway answers")
    }

    /// One POST on a connection of its own.
    pub async fn post(&self, path: &str, body: &str) -> Reply {
        self.client().await.post(path, body).await.expect("the gateway answers")
    }

    /// A figure of `/metrics` by its name and labels, 0 when it is not there.
    pub async fn metric(&self, sample: &str) -> f64 {
        let page = self.admin("/metrics").await.expect("the admin address answers").text();
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }
}
