//! A real nats-server that belongs to one test.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::eventually::eventually;
use crate::group::Group;
use crate::ports::free_port;
use crate::process::print_tail;
use crate::tools::nats_server;

/// Enough for a cold start on a machine that compiles at the same time.
const READY: Duration = Duration::from_secs(30);
/// nats-server answers SIGTERM at once; a lame duck takes longer, and so is not waited for with
/// this.
const STOP: Duration = Duration::from_secs(20);
/// How many pairs of ports are tried when somebody else listens on them.
const PORT_TRIES: u32 = 5;

/// What a broker is started with; [`TestBroker::builder`] makes one.
#[derive(Debug, Clone, Default)]
pub struct BrokerBuilder {
    jetstream: bool,
    port: Option<u16>,
    max_payload_bytes: Option<u32>,
    config_lines: String,
    cluster: Option<Membership>,
}

/// Routes between two brokers for the messages of clients. While they are being made, messages move
/// from one to another.
pub(crate) const POOLED_ROUTES: usize = 3;

/// A server's place in a cluster: its own route port and those of all members.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    pub(crate) port: u16,
    pub(crate) all: Vec<u16>,
}

/// A running nats-server (or one that was stopped and can be started again) with its own ports,
/// configuration and store.
///
/// It pings its clients every 2 s and gives them up after 2 missed pings, as our deployments do.
/// Lame duck mode closes the clients within 30 s (the server accepts no less) after 1 s of grace.
/// Dropped, it is killed and its directory removed; if the test is panicking, the end of its log is
/// printed first.
#[derive(Debug)]
pub struct TestBroker {
    binary: &'static Path,
    settings: BrokerBuilder,
    name: String,
    port: u16,
    monitor_port: u16,
    directory: TempDir,
    group: Option<Group>,
}

impl BrokerBuilder {
    /// Turns JetStream on, with a store that lives as long as the [`TestBroker`], restarts
    /// included.
    pub fn jetstream(mut self) -> Self {
        self.jetstream = true;
        self
    }

    /// Listens for clients on this port of 127.0.0.1 in place of a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The largest message in bytes, headers included. The server's default is 1 MiB.
    pub fn max_payload(mut self, bytes: u32) -> Self {
        self.max_payload_bytes = Some(bytes);
        self
    }

    /// Adds lines to the server's configuration file; they win over the lines set here.
    pub fn config_lines(mut self, lines: &str) -> Self {
        self.config_lines.push_str(lines);
        self.config_lines.push('\n');
        self
    }

    /// Starts the broker; it accepts clients when this returns.
    ///
    /// # Panics
    /// When no nats-server can be had, or it does not start: the panic has the end of its log.
    pub async fn start(self) -> TestBroker {
        let mut broker = TestBroker::prepare(self);
        broker.start_again().await;
        broker
    }

    pub(crate) fn member(mut self, of: Membership) -> Self {
        assert!(self.port.is_none(), "the brokers of a cluster cannot share one port");
        self.cluster = Some(of);
        self
    }

    /// The text of the configuration file; ports are arguments. (The name may not change with a
    /// reload, which forgets one that was an argument.)
    fn config(&self, directory: &Path, name: &str) -> String {
        let mut text = format!(
            "server_name: \"{name}\"\nping_interval: \"2s\"\nping_max: 2\n\
             lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"\n",
        );
        if let Some(bytes) = self.max_payload_bytes {
            // The server wants the pending limit above it, and refuses to start otherwise.
            let pending = u64::from(bytes).max(64 << 20);
            text += &format!("max_payload: {bytes}\nmax_pending: {pending}\n");
        }
        if self.jetstream {
            text +=
                &format!("jetstream {{ store_dir: \"{}\" }}\n", directory.join("store").display());
        }
        if let Some(Membership { port, all }) = &self.cluster {
            let routes = all
                .iter()
                .map(|port| format!("\"nats://127.0.0.1:{port}\""))
                .collect::<Vec<_>>()
                .join(", ");
            text += &format!(
                "cluster {{ name: test, pool_size: {POOLED_ROUTES}, listen: \"127.0.0.1:{port}\", \
                 routes: [{routes}] }}\n"
            );
        }
        text + &self.config_lines
    }
}

impl TestBroker {
    /// Starts a broker without JetStream on a free port.
    ///
    /// # Panics
    /// As [`BrokerBuilder::start`].
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Settings to change before the start.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::default()
    }

    fn prepare(settings: BrokerBuilder) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self {
            binary: nats_server(),
            name: format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
            port: settings.port.unwrap_or_else(free_port),
            monitor_port: free_port(),
            directory: tempfile::Builder::new()
                .prefix("natsway-broker-")
                .tempdir()
                .expect("a temporary directory can be made"),
            group: None,
            settings,
        }
    }

    /// The address for clients, `nats://127.0.0.1:<port>`; it stays the same for the life of this
    /// value.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port for clients on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The base of the monitoring pages, `http://127.0.0.1:<port>`.
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor_port)
    }

    /// The server's name, as clients see it in INFO.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server's process.
    ///
    /// # Panics
    /// When it was stopped or killed.
    pub fn pid(&self) -> u32 {
        self.group.as_ref().expect("the broker is running").pid()
    }

    /// A new client, with the default settings of async-nats.
    ///
    /// # Panics
    /// When the broker does not accept it.
    pub async fn connect(&self) -> Client {
        self.connect_with(ConnectOptions::new()).await
    }

    /// A new client with these settings.
    ///
    /// # Panics
    /// When the broker does not accept it.
    pub async fn connect_with(&self, options: ConnectOptions) -> Client {
        match options.connect(self.url()).await {
            Ok(client) => client,
            Err(error) => panic!("cannot connect to the broker at {}: {error}", self.url()),
        }
    }

    /// A monitoring page, say `/varz` or `/connz?subs=1`.
    ///
    /// # Errors
    /// When the server cannot be reached, or the answer is not 200 with JSON.
    pub async fn monitor(&self, page: &str) -> io::Result<serde_json::Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitor_port)).await?;
        // HTTP/1.0: the body ends with the connection, and is never chunked.
        stream.write_all(format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if head.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(format!("{page}: {}", answer.trim_end())));
        }
        Ok(serde_json::from_str(body)?)
    }

    /// The server's log so far, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Stops the server and starts it again on the same port, with the same store.
    ///
    /// # Panics
    /// As [`stop`](Self::stop) and [`start_again`](Self::start_again).
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Replaces the lines that were added to the configuration file and has the running server read
    /// it again; they are in force when this returns.
    ///
    /// # Panics
    /// When it was stopped, or does not take them.
    pub async fn reload(&mut self, config_lines: &str) {
        const RELOADED: &str = "Reloaded server configuration";
        let reloads = |broker: &Self| broker.log().matches(RELOADED).count();
        let before = reloads(self);
        self.settings.config_lines = config_lines.to_owned();
        self.write_config();
        self.signal(Signal::SIGHUP);
        let this = &*self;
        eventually(READY, async || {
            (reloads(this) > before).then_some(()).ok_or_else(|| this.log())
        })
        .await;
    }

    /// Stops the server with SIGTERM. It can be started again.
    ///
    /// # Panics
    /// When it does not end, for instance because it is frozen.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        self.wait_exit(STOP).await;
        self.group = None;
    }

    /// Starts a server that was stopped or killed again, on the same port, with the same store.
    ///
    /// # Panics
    /// When it is running, or does not start: the panic has the end of its log.
    pub async fn start_again(&mut self) {
        assert!(
            self.group.as_mut().is_none_or(|group| group.try_exit().is_some()),
            "the broker is running already"
        );
        // Only the first start may look for other ports: after it they are known to clients.
        let first = self.group.is_none() && !self.log_path().exists();
        for _ in 0..PORT_TRIES {
            self.spawn();
            match self.ready().await {
                Ok(()) => return,
                Err(log) if first && log.contains("address already in use") => {
                    self.port = self.settings.port.unwrap_or_else(free_port);
                    self.monitor_port = free_port();
                }
                Err(log) => panic!("nats-server did not start:\n{log}"),
            }
        }
        panic!("nats-server did not start, its ports are in use:\n{}", self.log());
    }

    /// Kills the server with SIGKILL; it is gone when this returns, and can be started again.
    pub fn kill9(&mut self) {
        if let Some(mut group) = self.group.take() {
            group.kill9();
        }
    }

    /// Removes what a server that was stopped or killed has stored.
    ///
    /// # Panics
    /// When it is running.
    pub fn forget(&mut self) {
        assert!(self.group.is_none(), "the broker is running");
        fs::remove_dir_all(self.directory.path().join("store")).ok();
    }

    /// Stops the server's time (SIGSTOP): connections stay open, nothing answers, from the moment
    /// this returns.
    pub fn freeze(&mut self) {
        self.group.as_mut().expect("the broker is running").freeze();
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self) {
        self.signal(Signal::SIGCONT);
    }

    /// Puts the server into lame duck mode: it tells its clients, closes them one by one after 1 s,
    /// and ends.
    pub fn lame_duck(&mut self) {
        self.signal(Signal::SIGUSR2);
    }

    /// Sends a signal to the server.
    ///
    /// # Panics
    /// When it was stopped or killed.
    pub fn signal(&mut self, signal: Signal) {
        self.group.as_mut().expect("the broker is running").signal(signal);
    }

    /// Waits until the server has ended by itself, say as a lame duck.
    ///
    /// # Panics
    /// When it is still running after the deadline.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let group = self.group.as_mut().expect("the broker was started");
        match group.wait_exit(deadline).await {
            Some(status) => status,
            None => panic!("nats-server (pid {}) still runs after {deadline:?}", group.pid()),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    fn write_config(&self) -> PathBuf {
        let directory = self.directory.path();
        let config = directory.join("server.conf");
        fs::write(&config, self.settings.config(directory, &self.name))
            .expect("the broker's directory can be written");
        config
    }

    fn spawn(&mut self) {
        let config = self.write_config();
        let log = OpenOptions::new().create(true).append(true).open(self.log_path());
        let log = log.expect("the broker's directory can be written");
        let mut command = Command::new(self.binary);
        command.args(["--addr", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--http_port", &self.monitor_port.to_string()]);
        command.arg("--config").arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file can be opened twice")).stderr(log);
        self.group = Some(
            Group::spawn(&mut command).expect("nats-server starts, it told its version before"),
        );
    }

    /// Waits until clients are accepted and JetStream is up; when the server ends before, returns
    /// its log.
    async fn ready(&mut self) -> Result<(), String> {
        let mut group = self.group.take().expect("it was just started");
        let this = &*self;
        let outcome = eventually(READY, async || {
            if group.try_exit().is_some() {
                return Ok(Err(this.log()));
            }
            this.look().await.map(Ok).map_err(|error| format!("{error}\n{}", this.log()))
        })
        .await;
        self.group = Some(group);
        outcome
    }

    /// One look whether it is this server that listens, and whether it is healthy.
    async fn look(&self) -> io::Result<()> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        let info: serde_json::Value = serde_json::from_str(line.trim_start_matches("INFO "))?;
        if info["server_name"] != self.name {
            return Err(io::Error::other(format!(
                "port {} belongs to server {}",
                self.port, info["server_name"]
            )));
        }
        // The members of a cluster become healthy only together: the cluster waits for that.
        if self.settings.cluster.is_none() {
            self.monitor("/healthz").await?;
        }
        Ok(())
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_tail(&format!("nats-server {}", self.name), &self.log_path());
        }
        // Before its directory goes, or it would write into it again.
        self.kill9();
    }
}
