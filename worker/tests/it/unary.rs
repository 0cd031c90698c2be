//! Whole requests by tunnels: from clients through a real gateway to workers of this library.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path;
use axum::routing::{get, post};
use natsway_testkit::{Process, TcpLink, TestBroker, eventually, free_port, workspace_binary};
use natsway_wire::frame::LEASE;
use natsway_worker::{Options, TunnelMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{FORMS, Form, SUBJECT, Worker, options};

/// Generous: for a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A broker and a gateway.
struct Stage {
    port: u16,
    admin_port: u16,
    broker: TestBroker,
    gateway: Process,
}

impl Stage {
    /// One with a route of this transport, and further arguments of the gateway.
    async fn new(transport: &str, arguments: &[&str]) -> Self {
        let broker = TestBroker::start().await;
        let url = broker.url();
        Self::by(&url, broker, transport, arguments).await
    }

    /// The same with a gateway that reaches the broker at `url`.
    async fn by(url: &str, broker: TestBroker, transport: &str, arguments: &[&str]) -> Self {
        let program = tokio::task::spawn_blocking(|| workspace_binary("apiproxy")).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let routes = directory.path().join("routes.toml");
        let text = format!(
            "[[route]]\nname = \"test\"\npath = \"/{{*rest}}\"\ntimeout = \"15s\"\n\
             transport = \"{transport}\"\n\
             [[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n"
        );
        std::fs::write(&routes, text).unwrap();
        let (port, admin_port) = (free_port(), free_port());
        let gateway = Process::builder(program)
            .args(["--static-routes", "--nats-url", url, "--shards", "1"])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .arg("--routes")
            .arg(&routes)
            .args(arguments)
            .start();
        let stage = Self { port, admin_port, broker, gateway };
        eventually(DEADLINE, async || match fetch(stage.admin_port, "GET", "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        stage
    }

    async fn worker(&self, form: Form, router: Router) -> Worker {
        self.worker_with(form, |options| options, router).await
    }

    async fn worker_with(
        &self,
        form: Form,
        further: impl FnOnce(Options) -> Options,
        router: Router,
    ) -> Worker {
        let options = further(options(&self.broker.url()));
        Worker::start(&self.broker.connect().await, form, options, router).await
    }

    async fn send(&self, method: &str, path: &str) -> (u16, String) {
        fetch(self.port, method, path).await.unwrap()
    }

    async fn metric(&self, name: &str) -> u64 {
        let (_, page) = fetch(self.admin_port, "GET", "/metrics").await.unwrap();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} in {page}")).parse().unwrap()
    }

    /// Sends requests until so many workers have a tunnel.
    async fn joined(&self, workers: u64) {
        eventually(DEADLINE, async || {
            self.send("GET", "/hello").await;
            match self.metric("natsway_unary_tunnels").await {
                open if open == workers => Ok(()),
                open => Err(open),
            }
        })
        .await;
    }
}

/// The status and body of a request on a connection of its own.
async fn fetch(port: u16, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
    let text =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{length}connection: close\r\n\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()))
}

/// How often each nonce ran, in all workers.
type Runs = Arc<Mutex<HashMap<u64, u32>>>;

/// A service that says hello, and counts nonces after a moment.
fn service(runs: &Runs) -> Router {
    let runs = Arc::clone(runs);
    let once = async move |Path(nonce): Path<u64>| {
        *runs.lock().unwrap().entry(nonce).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
        nonce.to_string()
    };
    Router::new().route("/hello", get(async || "hello")).route("/once/{nonce}", post(once))
}

/// What became of requests of several clients that send nonces until told to stop.
struct Load {
    stop: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<Vec<(u64, u16)>>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let stop = Arc::<AtomicU64>::default();
        let client = |number: u64| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let mut sent = Vec::new();
                while stop.load(Relaxed) == 0 {
                    let nonce = number * 1_000_000 + sent.len() as u64;
                    let answered = fetch(port, "POST", &format!("/once/{nonce}")).await;
                    sent.push((nonce, answered.map_or(0, |(status, _)| status)));
                }
                sent
            })
        };
        Self { clients: (0..8).map(client).collect(), stop }
    }

    /// Every nonce and the status that it was answered with.
    async fn end(self) -> Vec<(u64, u16)> {
        self.stop.store(1, Relaxed);
        let mut sent = Vec::new();
        for client in self.clients {
            sent.extend(client.await.unwrap());
        }
        sent
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_by_a_tunnel_and_one_a_second_by_the_broker() {
    for form in FORMS {
        let stage = Stage::new("auto", &[]).await;
        let runs = Runs::default();
        // One reader, and so one tunnel, in either form.
        let one = |options: Options| options.readers(std::num::NonZeroUsize::MIN);
        let worker = stage.worker_with(form, one, service(&runs)).await;
        stage.joined(1).await;
        for nonce in 0..100 {
            let answer = stage.send("POST", &format!("/once/{nonce}")).await;
            assert_eq!(answer, (200, nonce.to_string()));
        }
        let by_tunnel = stage.metric("natsway_tunnel_requests_total").await;
        assert!(by_tunnel > 30, "{form:?}: {by_tunnel} of 100");
        assert!(runs.lock().unwrap().values().all(|count| *count == 1));
        let summary = worker.leave().await;
        assert!(summary.requests >= 101 && summary.unfinished == 0, "{summary:?}");
        eventually(DEADLINE, async || match stage.metric("natsway_unary_tunnels").await {
            0 => Ok(()),
            open => Err(open),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_no_tunnel_has_none() {
    let runs = Runs::default();
    for (transport, mode, arguments) in [
        ("broker", TunnelMode::Auto, &[][..]),
        ("auto", TunnelMode::Off, &[]),
        // Pipes are for streams alone.
        ("auto", TunnelMode::Broker, &[]),
        ("auto", TunnelMode::Auto, &["--tunnel-listen", "broker"]),
    ] {
        let stage = Stage::new(transport, arguments).await;
        let off = |options: Options| options.tunnels(mode);
        let _worker = stage.worker_with(Form::Spawned, off, service(&runs)).await;
        for _ in 0..20 {
            assert_eq!(stage.send("GET", "/hello").await.0, 200);
        }
        assert_eq!(stage.metric("natsway_unary_tunnels_opened_total").await, 0, "{transport}");
        assert_eq!(stage.metric("natsway_tunnel_requests_total").await, 0, "{transport}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_and_leave_under_load_and_nothing_is_lost() {
    let stage = Stage::new("auto", &[]).await;
    let runs = Runs::default();
    let mut worker = stage.worker(Form::Spawned, service(&runs)).await;
    stage.joined(1).await;
    let load = Load::start(stage.port);
    for round in 0..4 {
        let form = FORMS[round % 2];
        let next = stage.worker(form, service(&runs)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let summary = std::mem::replace(&mut worker, next).leave().await;
        assert_eq!(summary.unfinished, 0);
    }
    let sent = load.end().await;
    let failed: Vec<_> = sent.iter().filter(|(_, status)| *status != 200).collect();
    assert!(failed.is_empty(), "{failed:?} of {}", sent.len());
    let ran_once = |nonce| runs.lock().unwrap().get(nonce) == Some(&1);
    assert!(sent.iter().all(|(nonce, _)| ran_once(nonce)));
    let by_tunnel = stage.metric("natsway_tunnel_requests_total").await;
    assert!(by_tunnel > 50, "{by_tunnel} of {}", sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_cut_costs_what_was_out_on_it_and_no_post_runs_twice() {
    let tunnel_port = free_port();
    let mut link = TcpLink::to_port(tunnel_port).await;
    let listen = format!("127.0.0.1:{tunnel_port}");
    let address = format!("127.0.0.1:{}", link.port());
    let stage =
        Stage::new("auto", &["--tunnel-listen", &listen, "--tunnel-address", &address]).await;
    let runs = Runs::default();
    let _worker = stage.worker(Form::Spawned, service(&runs)).await;
    let load = Load::start(stage.port);
    for round in 1..=4 {
        eventually(DEADLINE, async || {
            let opened = stage.metric("natsway_unary_tunnels_opened_total").await;
            let open = stage.metric("natsway_unary_tunnels").await;
            if opened >= round && open >= 1 { Ok(()) } else { Err((opened, open)) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        link.cut().await;
        link.resume().await;
    }
    let sent = load.end().await;
    let (answered, others): (Vec<_>, Vec<_>) = sent.iter().partition(|(_, status)| *status == 200);
    assert!(answered.len() > 100, "{} of {}", answered.len(), sent.len());
    // At most what was out: one request of each client at each cut.
    assert!(others.len() <= 8 * 4, "{others:?}");
    assert!(others.iter().all(|(_, status)| *status == 502), "{others:?}");
    let runs = runs.lock().unwrap();
    assert!(runs.values().all(|count| *count == 1), "{runs:?}");
    assert!(answered.iter().all(|(nonce, _)| runs.contains_key(nonce)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_cut_off_uses_tunnels_no_longer_than_its_lease() {
    let broker = TestBroker::start().await;
    let mut link = TcpLink::to_port(broker.port()).await;
    let stage = Stage::by(&link.url(), broker, "auto", &[]).await;
    let one = |options: Options| options.readers(std::num::NonZeroUsize::MIN);
    let _worker = stage.worker_with(Form::Spawned, one, service(&Runs::default())).await;
    stage.joined(1).await;
    // It is full of lease, and knows that all members have a tunnel.
    for _ in 0..200 {
        assert_eq!(stage.send("GET", "/hello").await.0, 200);
    }
    link.cut().await;
    let cut = Instant::now();
    let (mut answered, mut last) = (0, cut);
    eventually(DEADLINE, async || {
        let asked = Instant::now();
        match stage.send("GET", "/hello").await.0 {
            200 => (answered, last) = (answered + 1, asked),
            503 => {}
            other => panic!("{other}"),
        }
        match cut.elapsed() > LEASE + Duration::from_secs(1) {
            true => Ok(()),
            false => Err(answered),
        }
    })
    .await;
    assert!(answered > 10, "only {answered} went by the tunnel");
    assert!(last < cut + LEASE, "one went {:?} after the cut", last - cut);
    assert_eq!(stage.metric("natsway_unary_tunnels").await, 1, "it is there and not used");
    link.resume().await;
    let before = stage.metric("natsway_tunnel_requests_total").await;
    eventually(DEADLINE, async || {
        stage.send("GET", "/hello").await;
        match stage.metric("natsway_tunnel_requests_total").await {
            now if now > before => Ok(()),
            now => Err(now),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_has_its_handler_dropped_within_a_moment() {
    let stage = Stage::new("auto", &[]).await;
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let (dropped, mut drops) = tokio::sync::mpsc::unbounded_channel();
    let endless = async move || {
        let _guard = Guard(dropped.clone());
        begun.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    let router = service(&Runs::default()).route("/endless", get(endless));
    let one = |options: Options| options.readers(std::num::NonZeroUsize::MIN);
    let _worker = stage.worker_with(Form::Spawned, one, router).await;
    stage.joined(1).await;
    // Until the gateway knows that all members have a tunnel.
    for _ in 0..100 {
        stage.send("GET", "/hello").await;
    }
    let mut by_tunnel = 0;
    for _ in 0..20 {
        let before = stage.metric("natsway_tunnel_requests_total").await;
        let client = tokio::spawn(fetch(stage.port, "GET", "/endless"));
        tokio::time::timeout(DEADLINE, begins.recv()).await.unwrap().unwrap();
        by_tunnel += stage.metric("natsway_tunnel_requests_total").await - before;
        client.abort();
        let left = Instant::now();
        tokio::time::timeout(DEADLINE, drops.recv()).await.unwrap().unwrap();
        assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    }
    assert!(by_tunnel >= 5, "{by_tunnel} of 20");
}

/// Says when it is dropped.
struct Guard(tokio::sync::mpsc::UnboundedSender<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_leaves_answers_what_came_by_tunnels() {
    let mut stage = Stage::new("auto", &["--drain-timeout", "5s"]).await;
    let slow = get(async || {
        tokio::time::sleep(Duration::from_millis(700)).await;
        "slow"
    });
    let router = service(&Runs::default()).route("/slow", slow);
    let _worker = stage.worker(Form::Spawned, router).await;
    stage.joined(1).await;
    let slow: Vec<_> = (0..8).map(|_| tokio::spawn(fetch(stage.port, "GET", "/slow"))).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    stage.gateway.terminate();
    for answer in slow {
        assert_eq!(answer.await.unwrap().unwrap(), (200, "slow".to_owned()));
    }
    assert!(stage.gateway.wait_exit(DEADLINE).await.success());
}

/// A worker in a process of its own.
async fn worker_process(stage: &Stage) -> Process {
    let program = tokio::task::spawn_blocking(|| workspace_binary("worker")).await.unwrap();
    let mut process = Process::builder(program)
        .args(["--nats-url", &stage.broker.url(), "--subject", SUBJECT])
        .start();
    process.wait_for_line("serving", DEADLINE).await;
    process
}

/// A gateway, a worker here and one in a process, both with a tunnel.
async fn with_process() -> (Stage, Worker, Process) {
    let stage = Stage::new("auto", &[]).await;
    let slow = post(async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        "slow"
    });
    let router = service(&Runs::default()).route("/slow", slow).route("/", get(async || "hello"));
    let one = |options: Options| options.readers(std::num::NonZeroUsize::MIN);
    let worker = stage.worker_with(Form::Spawned, one, router).await;
    let process = worker_process(&stage).await;
    eventually(DEADLINE, async || {
        stage.send("GET", "/").await;
        match stage.metric("natsway_unary_tunnels").await {
            2 => Ok(()),
            open => Err(open),
        }
    })
    .await;
    for _ in 0..200 {
        assert_eq!(stage.send("GET", "/").await.0, 200);
    }
    (stage, worker, process)
}

/// How a request was answered, and when.
type Answered = (u16, Instant);

/// Requests that take a second each, so that both workers have some.
async fn slow_posts(stage: &Stage) -> Vec<tokio::task::JoinHandle<Answered>> {
    let before = stage.metric("natsway_tunnel_requests_total").await;
    let port = stage.port;
    let send = |_| {
        tokio::spawn(async move {
            let (status, _) = fetch(port, "POST", "/slow?ms=1000").await.unwrap();
            (status, Instant::now())
        })
    };
    let posts: Vec<_> = (0..12).map(send).collect();
    eventually(DEADLINE, async || {
        match stage.metric("natsway_tunnel_requests_total").await - before {
            // Some go by the broker.
            6.. => Ok(()),
            sent => Err(sent),
        }
    })
    .await;
    posts
}

/// The other worker answers what it has. What was out on the tunnel may have run, and that is said
/// within the limit; what went by the broker is waited for until its time is over.
async fn are_honest(
    posts: Vec<tokio::task::JoinHandle<Answered>>,
    since: Instant,
    within: Duration,
) {
    let (mut answered, mut lost) = (0, Vec::new());
    for post in posts {
        match post.await.unwrap() {
            (200, _) => answered += 1,
            (502, at) => lost.push(at.duration_since(since)),
            (status, _) => assert_eq!(status, 504),
        }
    }
    assert!((3..12).contains(&answered), "{answered}");
    assert!(!lost.is_empty() && lost.iter().all(|took| *took < within), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_costs_what_it_had_and_nothing_else() {
    let (stage, _worker, mut process) = with_process().await;
    let posts = slow_posts(&stage).await;
    process.kill9();
    let killed = Instant::now();
    for _ in 0..100 {
        assert_eq!(stage.send("GET", "/").await.0, 200);
    }
    are_honest(posts, killed, Duration::from_secs(10)).await;
    assert_eq!(stage.metric("natsway_unary_tunnels").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_frozen_is_avoided_and_then_lost() {
    let (stage, _worker, mut process) = with_process().await;
    let posts = slow_posts(&stage).await;
    process.freeze();
    let frozen = Instant::now();
    // Three pings, then three questions by the broker.
    are_honest(posts, frozen, Duration::from_secs(12)).await;
    eventually(DEADLINE, async || match stage.metric("natsway_unary_tunnels").await {
        1 => Ok(()),
        open => Err(open),
    })
    .await;
    for _ in 0..20 {
        assert_eq!(stage.send("GET", "/").await.0, 200);
    }
    process.thaw();
    eventually(DEADLINE, async || {
        stage.send("GET", "/").await;
        match stage.metric("natsway_unary_tunnels").await {
            2 => Ok(()),
            open => Err(open),
        }
    })
    .await;
}
