//! Bodies that go on, connections and calls by gRPC, from clients through a real gateway to workers
//! of this library.

mod bodies;
mod certificates;
mod client;
mod conditional;
mod disconnects;
mod grpc;
mod leaving;
mod limits;
mod losses;
mod pipes;
mod upgrades;
mod versions;

use std::time::Duration;

use axum::Router;
use natsway_testkit::{Process, TestBroker, eventually, free_port, workspace_binary};
use natsway_worker::Options;
use tokio::sync::mpsc;

use self::client::get;
use crate::stage::{Form, SUBJECT, Worker, options};

/// Generous: for a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// How soon a handler is dropped whose client left.
const SOON: Duration = Duration::from_secs(5);

/// A broker, a gateway and a worker.
struct Stage {
    /// Where clients connect.
    port: u16,
    admin_port: u16,
    worker: Worker,
    gateway: Process,
    broker: TestBroker,
}

impl Stage {
    /// Both ends as they are by default.
    async fn new(router: Router) -> Self {
        Self::with(&[], |options| options, router).await
    }

    /// A gateway with further arguments, and a worker with further options.
    async fn with(
        arguments: &[&str],
        further: impl FnOnce(Options) -> Options,
        router: Router,
    ) -> Self {
        Self::of_route("timeout = \"15s\"\n", arguments, further, router).await
    }

    /// With further lines of the route, too.
    async fn of_route(
        lines: &str,
        arguments: &[&str],
        further: impl FnOnce(Options) -> Options,
        router: Router,
    ) -> Self {
        let broker = TestBroker::start().await;
        Self::at_broker(broker, lines, arguments, further, router).await
    }

    /// At a broker of its own kind.
    async fn at_broker(
        broker: TestBroker,
        lines: &str,
        arguments: &[&str],
        further: impl FnOnce(Options) -> Options,
        router: Router,
    ) -> Self {
        let ((port, admin_port), gateway) = Self::gateway_at(&broker, lines, arguments).await;
        let options = further(options(&broker.url()));
        let nats = broker.connect().await;
        let worker = Worker::start(&nats, Form::Spawned, options, router).await;
        let stage = Self { port, admin_port, worker, gateway, broker };
        eventually(DEADLINE, async || match get(admin_port, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        stage
    }

    /// One more worker of the same subject.
    async fn another_worker(
        &self,
        further: impl FnOnce(Options) -> Options,
        router: Router,
    ) -> Worker {
        let options = further(options(&self.broker.url()));
        Worker::start(&self.broker.connect().await, Form::Spawned, options, router).await
    }

    /// A gateway and its two ports.
    async fn gateway_at(
        broker: &TestBroker,
        lines: &str,
        arguments: &[&str],
    ) -> ((u16, u16), Process) {
        let program = tokio::task::spawn_blocking(|| workspace_binary("apiproxy")).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let routes = directory.path().join("routes.toml");
        let route = "[[route]]\nname = \"test\"\npath = \"/{*rest}\"\n";
        let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
        std::fs::write(&routes, [route, lines, &target].concat()).unwrap();
        let (port, admin_port) = (free_port(), free_port());
        let gateway = Process::builder(program)
            .args(["--static-routes", "--nats-url", &broker.url()])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .arg("--routes")
            .arg(&routes)
            .args(arguments)
            .start();
        // It has read them by the time it listens.
        eventually(DEADLINE, async || get(admin_port, "/livez").await.map(drop)).await;
        ((port, admin_port), gateway)
    }

    /// Waits until the worker has so many streams, those that are yet to come included.
    async fn has_worker_streams(&self, expected: i64) {
        self.has("natsway_worker_streams{", expected).await;
    }

    /// Waits until a figure of the gateway, or of the worker, is as it should be.
    async fn has(&self, name: &str, expected: i64) {
        eventually(DEADLINE, async || match self.metric(name).await? {
            value if value == expected => Ok(()),
            other => Err(format!("{name}: {other}")),
        })
        .await;
    }

    /// A figure whose line begins so.
    async fn metric(&self, name: &str) -> Result<i64, String> {
        metric(self.admin_port, name).await
    }

    /// Waits until the gateway holds nothing for streams any more.
    async fn all_let_go(&self) {
        let gauges = [r#"natsway_streams_open{route="test",version="blue"}"#, "natsway_held_bytes"];
        eventually(DEADLINE, async || {
            let (_, page) = get(self.admin_port, "/metrics").await.map_err(|e| e.to_string())?;
            let value = |gauge: &&str| page.lines().find_map(|line| line.strip_prefix(*gauge));
            let held: Vec<_> =
                gauges.iter().map(|gauge| (gauge, value(gauge).map(str::to_owned))).collect();
            let held: Vec<_> =
                held.into_iter().filter(|(_, value)| value.as_deref() != Some(" 0")).collect();
            if held.is_empty() { Ok(()) } else { Err(format!("{held:?}")) }
        })
        .await;
    }
}

/// A figure whose line begins so, of the gateway with this admin port.
async fn metric(admin_port: u16, name: &str) -> Result<i64, String> {
    let (_, page) = get(admin_port, "/metrics").await.map_err(|e| e.to_string())?;
    let line = page.lines().find(|line| line.starts_with(name)).ok_or("it is not there")?;
    let value = line.rsplit(' ').next().and_then(|value| value.parse().ok());
    value.ok_or_else(|| line.to_owned())
}

/// Says when it is dropped: it lives in a handler.
struct Guard(mpsc::UnboundedSender<()>);

/// Where a [`Guard`] says it.
struct Dropped(mpsc::UnboundedReceiver<()>);

fn guards() -> (impl Fn() -> Guard + Clone + Send + Sync + 'static, Dropped) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (move || Guard(sender.clone()), Dropped(receiver))
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

impl Dropped {
    /// Waits until a handler is dropped, for a while.
    async fn soon(&mut self) {
        let dropped = tokio::time::timeout(SOON, self.0.recv()).await;
        assert_eq!(dropped.expect("its handler is dropped soon"), Some(()));
    }

    /// Waits until a handler is dropped, however slow the machine is.
    async fn at_last(&mut self) {
        let dropped = tokio::time::timeout(DEADLINE, self.0.recv()).await;
        assert_eq!(dropped.expect("its handler is dropped when its client has left"), Some(()));
    }

    /// Nobody dropped a handler yet.
    fn not_yet(&mut self) {
        assert!(self.0.try_recv().is_err(), "a handler is at work");
    }
}
