//! deploy/nats/accounts.conf: gateways and a team's workers in accounts of their own, on a real
//! broker.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use futures_util::StreamExt;
use natsway_boot::{BrokerConfig as Place, Credentials, Tls};
use natsway_routes::peers::attributed;
use natsway_routes::report::{Report, Role};
use natsway_testkit::{
    Process, TestBroker, eventually, free_port, repository_root, workspace_binary,
};
use natsway_wire::Limits;
use natsway_wire::control::{self, Directive};
use natsway_wire::envelope::{Reply, RequestEncoder, Signal, decode_reply, with_reply_subject};
use natsway_worker::{Options, serve_scaled};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::DEADLINE;

const PASSWORD: &str = "p";

/// What is shipped, in one file and with one password.
fn shipped() -> String {
    let read = |name: &str| {
        std::fs::read_to_string(repository_root().join("deploy/nats").join(name)).unwrap()
    };
    let text =
        read("accounts.conf").replace("include ./permissions.conf\n", &read("permissions.conf"));
    let mut parts = text.split("$NATSWAY_");
    let mut filled = parts.next().unwrap().to_owned();
    for part in parts {
        let end = part.find("_PASSWORD").unwrap() + "_PASSWORD".len();
        filled = filled + PASSWORD + &part[end..];
    }
    filled
}

fn place(broker: &TestBroker, user: &str) -> Place {
    let credentials = Credentials::UserPassword(user.to_owned(), PASSWORD.to_owned());
    Place::with(&broker.url(), credentials, Tls::default()).unwrap()
}

async fn client(broker: &TestBroker, user: &str, inbox: &str) -> async_nats::Client {
    place(broker, user).connect(user, inbox).await.unwrap()
}

/// `GET path`, by a connection of its own: the status and the body.
async fn http(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

async fn metric(admin: &str, sample: &str) -> f64 {
    let (_, page) = http(admin, "/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix(sample));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// Handlers that never end by themselves: how many have begun, and how many were dropped.
#[derive(Default)]
struct Endless {
    begun: AtomicUsize,
    dropped: AtomicUsize,
}

struct Running(Arc<Endless>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

struct Team {
    stop: CancellationToken,
    _serving: AbortOnDropHandle<()>,
}

/// A worker of team a.
fn worker(broker: &TestBroker, subject: &'static str, endless: &Arc<Endless>) -> Team {
    let endless = Arc::clone(endless);
    let slow = async move || {
        let running = Running(endless);
        running.0.begun.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<()>().await;
    };
    let router = Router::new().route("/", get(async move || subject)).route("/slow", get(slow));
    let stop = CancellationToken::new();
    let options = Options::new(subject).broker(place(broker, "team-a-worker")).namespace("team-a");
    let serving = serve_scaled(
        options,
        NonZeroUsize::new(2).unwrap(),
        router,
        stop.clone().cancelled_owned(),
    );
    let serving = async move {
        serving.await.unwrap();
    };
    Team { stop, _serving: AbortOnDropHandle::new(tokio::spawn(serving)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_cancels_rollouts_tombstones_and_directives_cross_accounts_and_nothing_else_does()
{
    let program = tokio::task::spawn_blocking(|| workspace_binary("apiproxy")).await.unwrap();
    let broker = TestBroker::builder().jetstream().config_lines(&shipped()).start().await;
    let as_user = |user: &str| {
        Process::builder(&program)
            .env("NATS_URL", broker.url())
            .env("NATS_USER", user)
            .env("NATS_PASSWORD", PASSWORD)
    };
    let done = async |mut process: Process| {
        assert!(process.wait_exit(3 * DEADLINE).await.success(), "{}", process.stderr());
    };
    done(as_user("admin").args(["setup"]).start()).await;

    let directory = tempfile::tempdir().unwrap();
    let routes = directory.path().join("routes.toml");
    let text = r#"[[route]]
name = "demo"
path = "/{*rest}"
[[route.target]]
version = "blue"
subject = "svc.team-a.demo.blue"
[[route.target]]
version = "green"
subject = "svc.team-a.demo.green"
weight = 0
"#;
    std::fs::write(&routes, text).unwrap();
    let [listen, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let gateway = as_user("gateway")
        .args(["--routes", routes.to_str().unwrap(), "--across-accounts", "--shards", "1"])
        .args(["--listen", &listen, "--admin-listen", &admin])
        .start();
    let mut stand_in = as_user("team-a-stand-in").args(["stand-in"]).start();
    let endless = Arc::<Endless>::default();
    let _blue = worker(&broker, "svc.team-a.demo.blue", &endless);

    // A request, there and back.
    let says = async |subject: &str| {
        eventually(DEADLINE, async || {
            let answer = match TcpStream::connect(&listen).await {
                Ok(_) => http(&listen, "/").await,
                Err(error) => (0, error.to_string()),
            };
            if answer == (200, subject.to_owned()) { Ok(()) } else { Err(answer) }
        })
        .await;
    };
    says("svc.team-a.demo.blue").await;

    // A cancel: the client of a request that runs goes away.
    let mut impatient = TcpStream::connect(&listen).await.unwrap();
    impatient.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let counts = async |counter: &AtomicUsize| {
        eventually(DEADLINE, async || match counter.load(Ordering::SeqCst) {
            1 => Ok(()),
            other => Err(other),
        })
        .await;
    };
    counts(&endless.begun).await;
    assert_eq!(endless.dropped.load(Ordering::SeqCst), 0);
    drop(impatient);
    counts(&endless.dropped).await;

    // Two senders whose clocks are an hour apart: the broker shows both by the same subject, and
    // each is known for itself.
    let other = client(&broker, "gateway", "_INBOX_apiproxy").await;
    eventually(DEADLINE, async || {
        let inbox = format!("{}.x", other.new_inbox());
        let mut answers = other.subscribe(inbox.clone()).await.unwrap();
        let behind = natsway_boot::Clock::start().unix_ms_at(Instant::now()) - 3_600_000;
        let request = RequestEncoder::new(2_000, behind, "GET", "/", 64).unwrap().finish(b"");
        // One and the same sender in all of these.
        let sender = "_INBOX_apiproxy.behind.x";
        let request = with_reply_subject(&request, b"", sender).unwrap();
        other.publish_with_reply("svc.team-a.demo.blue", inbox, request).await.unwrap();
        let answer = answers.next().await.unwrap();
        match decode_reply(&answer.payload, Limits::DEFAULT) {
            Ok(Reply::Response(response)) if response.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for _ in 0..20 {
        assert_eq!(http(&listen, "/").await.0, 200);
    }
    assert_eq!(metric(&admin, "natsway_failed_attempts_total{reason=\"expired\"}").await, 0.0);

    // A directive is obeyed by one worker.
    let provisioner = client(&broker, "provisioner", "_INBOX_provisioner").await;
    let subject = "svc.team-a.demo.blue".parse().unwrap();
    let directive = control::directive_subject(Directive::ScaleOut, &subject);
    let sets = eventually(DEADLINE, async || {
        provisioner.request(directive.clone(), r#"{"directive":"scale-out"}"#.into()).await
    })
    .await;
    assert!(String::from_utf8_lossy(&sets.payload).contains(r#""sets":2"#), "{sets:?}");
    let inbox = provisioner.new_inbox();
    let mut present = provisioner.subscribe(inbox.clone()).await.unwrap();
    eventually(DEADLINE, async || {
        let question = control::presence_subject(&subject);
        provisioner.publish_with_reply(question, inbox.clone(), "".into()).await.unwrap();
        let mut ids = std::collections::HashSet::new();
        while let Ok(Some(answer)) =
            tokio::time::timeout(Duration::from_millis(200), present.next()).await
        {
            ids.insert(answer.payload);
        }
        if ids.len() == 2 { Ok(()) } else { Err(ids) }
    })
    .await;

    // What a team reports is the team's; it cannot say that it is a gateway, nor does another team
    // hear or reach anything.
    let operator = client(&broker, "operator", "_INBOX_operator").await;
    let mut metrics = operator.subscribe(control::metrics_subject("*", "*")).await.unwrap();
    operator.flush().await.unwrap();
    let (a, b) = (
        client(&broker, "team-a-worker", "_INBOX_worker").await,
        client(&broker, "team-b-worker", "_INBOX_worker").await,
    );
    let report =
        Report { id: "forged".to_owned(), role: Role::Gateway, leaving: true, ..Report::default() };
    for source in ["gateway", "caller"] {
        for sender in [&a, &b] {
            let subject = control::metrics_subject(source, "forged");
            sender.publish(subject, report.messages()[0].clone()).await.unwrap();
            sender.flush().await.unwrap();
        }
    }
    let mut overheard = b.subscribe("natsway.worker.team-b.*").await.unwrap();
    b.publish("svc.team-a.demo.blue", "x".into()).await.unwrap();
    let mut forged = std::collections::BTreeSet::new();
    while forged.len() < 2 {
        let message = tokio::time::timeout(DEADLINE, metrics.next()).await.unwrap().unwrap();
        if message.subject.ends_with(".forged") {
            assert!(
                attributed(&message.subject, &message.payload).is_none(),
                "no team is a gateway"
            );
            forged.insert(message.subject.to_string());
        }
    }
    assert_eq!(
        Vec::from_iter(forged),
        ["natsway.metrics.team-a.forged", "natsway.metrics.team-b.forged"]
    );

    // A rollout: the new version is found, senders' metrics let the drain end, and the old
    // version's workers are asked to leave.
    let green = worker(&broker, "svc.team-a.demo.green", &endless);
    let rollout = [
        "rollout",
        "start",
        "demo",
        "--to",
        "green",
        "--strategy",
        "blue-green",
        "--stop-old",
        "--follow",
    ];
    done(as_user("operator").args(rollout).start()).await;
    says("svc.team-a.demo.green").await;
    eventually(DEADLINE, async || {
        let answer = other.request("svc.team-a.demo.blue", "".into()).await;
        match answer {
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => Ok(()),
            // The stand-in, for the last of the old workers.
            Ok(answer) if is_moved(&answer.payload) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // The last worker leaves, and somebody in its account says that it has moved.
    green.stop.cancel();
    stand_in.wait_for_line("standing in for the last worker", DEADLINE).await;
    eventually(DEADLINE, async || {
        let answer = other.request("svc.team-a.demo.green", "".into()).await;
        let is_moved = answer.as_ref().is_ok_and(|answer| is_moved(&answer.payload));
        if is_moved { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!(http(&listen, "/").await.0, 503);
    assert!(metric(&admin, "natsway_failed_attempts_total{reason=\"moved\"}").await > 0.0);
    assert!(
        futures_util::FutureExt::now_or_never(overheard.next()).is_none(),
        "another team hears nothing of it"
    );
    drop((gateway, stand_in));
}

fn is_moved(payload: &bytes::Bytes) -> bool {
    let moved = natsway_wire::envelope::NotRun::Moved;
    matches!(decode_reply(payload, Limits::DEFAULT), Ok(Reply::Signal(Signal::NotRun(reason))) if reason == moved)
}
