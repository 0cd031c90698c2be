//! Routes that keep results: a real worker takes requests from a stream, and any gateway tells what
//! became of them to who knows the status URL.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, Context};
use natsway_stores::definitions;
use natsway_testkit::{Process, TestBroker, eventually, workspace_binary};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::client::{Client, Reply};
use crate::durable::{administrator, permissions};
use crate::fixture::{DEADLINE, Gateway};

/// All paths are the demonstration's, by POST; and a second route with results of its own.
const ROUTES: &str = r#"
    [[route]]
    name = "jobs"
    path = "/{*rest}"
    mode = "enqueue"
    [route.publish]
    subject = "jobs.demo"
    expect_stream = "JOBS"
    status_path = "/results/{id}"
    ack_timeout = "15s"

    [[route]]
    name = "others"
    path = "/others"
    mode = "enqueue"
    [route.publish]
    subject = "jobs.others"
    status_path = "/others/{id}"
"#;

/// How long a result is kept, where nothing is to expire.
const LASTING: Duration = Duration::from_secs(600);

struct Stand {
    broker: TestBroker,
    context: Context,
    directory: TempDir,
}

impl Stand {
    /// A broker with the stream, and with the bucket as an administrator makes it.
    async fn start(results_last: Duration) -> Self {
        let broker = TestBroker::builder().jetstream().start().await;
        let context = jetstream::new(broker.connect().await);
        Self::with(broker, context, results_last).await
    }

    async fn with(broker: TestBroker, context: Context, results_last: Duration) -> Self {
        let jobs = Config {
            name: "JOBS".to_owned(),
            subjects: vec!["jobs.>".to_owned()],
            retention: RetentionPolicy::WorkQueue,
            ..Config::default()
        };
        context.create_stream(jobs).await.unwrap();
        context.create_stream(definitions::results(results_last, None, 1)).await.unwrap();
        Self { broker, context, directory: tempfile::tempdir().unwrap() }
    }

    async fn gateway(&self) -> Gateway {
        Gateway::start(&self.broker, ROUTES, &[]).await
    }

    fn run_log(&self) -> PathBuf {
        self.directory.path().join("runs")
    }

    /// A worker of the demonstration that takes requests from the stream.
    fn worker(&self, arguments: &[&str]) -> Process {
        self.worker_at(&self.broker.url(), arguments)
    }

    fn worker_at(&self, url: &str, arguments: &[&str]) -> Process {
        Process::builder(workspace_binary("worker"))
            .args(["--nats-url", url, "--subject", "svc.demo.blue"])
            .args(["--work-stream", "JOBS", "--work-ack-wait", "1s"])
            .arg("--run-log")
            .arg(self.run_log())
            .args(arguments)
            .start()
    }

    /// How often requests with this nonce ran.
    fn runs(&self, nonce: &str) -> usize {
        let log = std::fs::read_to_string(self.run_log()).unwrap_or_default();
        log.lines().filter(|line| *line == nonce).count()
    }

    /// Messages that nobody has acknowledged.
    async fn waiting(&self) -> u64 {
        let mut stream = self.context.get_stream("JOBS").await.unwrap();
        stream.info().await.unwrap().state.messages
    }
}

async fn post(gateway: &Gateway, path: &str, fields: &str) -> Reply {
    let text = format!("POST {path} HTTP/1.1\r\nhost: a\r\n{fields}content-length: 0\r\n\r\n");
    gateway.client().await.exchange(&text).await.unwrap()
}

/// Where the result of an accepted request will be.
fn accepted(reply: &Reply) -> String {
    assert_eq!(reply.status, 202, "{}", reply.text());
    let location = reply.header("location").expect("it says where").to_owned();
    let receipt: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(receipt["status"], location.as_str());
    location
}

async fn ask(gateway: &Gateway, location: &str, fields: &str) -> Reply {
    let text = format!("GET {location} HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    gateway.client().await.exchange(&text).await.unwrap()
}

fn is_pending(reply: &Reply) -> bool {
    let state = reply.header("natsway-result");
    if reply.status == 202 && state == Some("pending") {
        assert_eq!(reply.text(), r#"{"state":"pending"}"#);
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        return true;
    }
    false
}

/// The result, once it is there.
async fn result(gateway: &Gateway, location: &str) -> Reply {
    eventually(DEADLINE, async || {
        let reply = ask(gateway, location, "prefer: wait=5\r\n").await;
        match reply.header("natsway-result") {
            Some("done") => Ok(reply),
            _ => Err(format!("{} {}", reply.status, reply.text())),
        }
    })
    .await
}

#[tokio::test]
async fn a_result_is_pending_until_a_worker_comes_and_then_the_response_as_it_was() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let location = accepted(&post(&gateway, "/status/418?x=1", "x-nonce: a\r\n").await);
    assert!(location.starts_with("/results/") && location.len() == "/results/".len() + 32);
    assert!(is_pending(&ask(&gateway, &location, "").await));
    let head = format!("HEAD {location} HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(gateway.client().await.exchange(&head).await.unwrap().status, 202);

    let mut worker = stand.worker(&[]);
    let done = result(&gateway, &location).await;
    assert_eq!(done.status, 418, "the response is the handler's, whatever it says");
    assert_eq!(done.header("cache-control"), Some("no-store"));
    let again = ask(&gateway, &location, "").await;
    assert_eq!((again.status, &again.body), (418, &done.body), "it stays");
    eventually(DEADLINE, async || stand.waiting().await == 0).await;
    assert_eq!(stand.runs("a"), 1);
    for (state, least) in [("pending", 2.0), ("done", 2.0)] {
        let sample = format!("natsway_results_total{{state=\"{state}\"}}");
        assert!(gateway.metric(&sample).await >= least, "{state}");
    }
    worker.terminate();
    assert!(worker.wait_exit(DEADLINE).await.success());
}

#[tokio::test]
async fn who_waits_is_woken_by_the_result_at_any_gateway() {
    let stand = Stand::start(LASTING).await;
    let (first, second) = (stand.gateway().await, stand.gateway().await);
    let _worker = stand.worker(&[]);
    let location = accepted(&post(&first, "/slow?ms=1500", "").await);
    let began = Instant::now();
    let done = ask(&second, &location, "prefer: wait=30\r\n").await;
    assert_eq!((done.status, done.header("natsway-result")), (200, Some("done")));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());

    let location = accepted(&post(&first, "/slow?ms=60000", "").await);
    let began = Instant::now();
    assert!(is_pending(&ask(&second, &location, "prefer: wait=1\r\n").await));
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn events_say_that_it_is_pending_and_then_that_it_is_done() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let location = accepted(&post(&gateway, "/status/201", "").await);
    let mut reader = Client::connect(gateway.port).await.unwrap();
    let text = format!("GET {location} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n");
    reader.send(&text).await.unwrap();
    let mut read = Vec::new();
    let mut until = async |wanted: &str| {
        eventually(DEADLINE, async || {
            let more = reader.stream.read_buf(&mut read);
            tokio::time::timeout(Duration::from_millis(200), more).await.ok();
            let read = String::from_utf8_lossy(&read).into_owned();
            if read.contains(wanted) { Ok(read) } else { Err(read) }
        })
        .await
    };
    let begun = until("event: pending\ndata: {}\n\n").await;
    assert!(begun.contains("content-type: text/event-stream"), "{begun}");
    assert!(!begun.contains("event: done"));
    let _worker = stand.worker(&[]);
    let ended = until("event: done\ndata: {\"status\":201}\n\n").await;
    assert!(ended.contains("event: pending"));
    until("0\r\n\r\n").await;
    let late = ask(&gateway, &location, "accept: text/event-stream\r\n").await;
    assert_eq!(
        (late.status, late.text().as_str()),
        (200, "event: done\ndata: {\"status\":201}\n\n")
    );
}

#[tokio::test]
async fn a_key_is_worked_on_once_and_has_one_status_at_both_gateways() {
    let stand = Stand::start(LASTING).await;
    let (first, second) = (stand.gateway().await, stand.gateway().await);
    let fields = "idempotency-key: 8e03978e-40d5-43dd-bc93-6894a57f9324\r\nx-nonce: a\r\n";
    let posted = post(&first, "/status/200", fields).await;
    let location = accepted(&posted);
    let again = post(&second, "/status/200", fields).await;
    assert_eq!(accepted(&again), location);
    let id = |reply: &Reply| serde_json::from_slice::<Value>(&reply.body).unwrap()["id"].clone();
    assert_eq!(id(&posted), id(&again));
    assert_eq!(id(&posted), "jobs/8e03978e-40d5-43dd-bc93-6894a57f9324");
    let _worker = stand.worker(&[]);
    result(&second, &location).await;
    // Also after its result is there, and by a stream that does not know the key any more.
    assert_eq!(accepted(&post(&first, "/status/200", fields).await), location);
    assert_eq!(result(&first, &location).await.status, 200);
    let other = accepted(&post(&first, "/others", fields).await);
    assert_ne!(other.rsplit('/').next(), location.rsplit('/').next(), "keys are a route's");
    eventually(DEADLINE, async || stand.waiting().await == 0).await;
    assert_eq!(stand.runs("a"), 2, "once for each route");
    let short = post(&first, "/status/200", "idempotency-key: order-7\r\n").await;
    assert_eq!((short.status, short.problem().as_str()), (400, "bad_idempotency_key"));
}

#[tokio::test]
async fn what_a_killed_worker_held_is_done_by_another_and_acknowledged_once() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let mut first = stand.worker(&[]);
    let location = accepted(&post(&gateway, "/slow?ms=3000", "x-nonce: a\r\n").await);
    eventually(DEADLINE, async || stand.runs("a") == 1).await;
    first.kill9();
    assert!(is_pending(&ask(&gateway, &location, "").await));
    let _second = stand.worker(&[]);
    assert_eq!(result(&gateway, &location).await.status, 200);
    assert_eq!(stand.runs("a"), 2, "it is run again, and no third time");
    eventually(DEADLINE, async || stand.waiting().await == 0).await;
}

#[tokio::test]
async fn a_handler_that_is_slower_than_the_ack_wait_keeps_its_request() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let _workers = [stand.worker(&[]), stand.worker(&[])];
    let location = accepted(&post(&gateway, "/slow?ms=4000", "x-nonce: a\r\n").await);
    assert_eq!(result(&gateway, &location).await.status, 200);
    assert_eq!(stand.runs("a"), 1);
}

#[tokio::test]
async fn what_kills_every_worker_is_given_up_and_its_result_says_so() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let location = accepted(&post(&gateway, "/slow?ms=60000", "x-nonce: a\r\n").await);
    for run in 1..=2 {
        let mut worker = stand.worker(&["--work-deliveries", "2"]);
        eventually(DEADLINE, async || stand.runs("a") == run).await;
        worker.kill9();
    }
    let _worker = stand.worker(&["--work-deliveries", "2"]);
    let given_up = result(&gateway, &location).await;
    assert_eq!((given_up.status, code(&given_up).as_str()), (502, "given_up"));
    assert_eq!(stand.runs("a"), 2);
    eventually(DEADLINE, async || stand.waiting().await == 0).await;
}

/// The `code` of a problem that a worker kept.
fn code(reply: &Reply) -> String {
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
    let document: Value = serde_json::from_slice(&reply.body).unwrap();
    document["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_worker_that_leaves_finishes_what_it_has() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let mut worker = stand.worker(&[]);
    let location = accepted(&post(&gateway, "/slow?ms=2000", "x-nonce: a\r\n").await);
    eventually(DEADLINE, async || stand.runs("a") == 1).await;
    worker.terminate();
    assert!(worker.wait_exit(DEADLINE).await.success());
    let done = ask(&gateway, &location, "").await;
    assert_eq!((done.status, done.header("natsway-result")), (200, Some("done")));
    assert_eq!((stand.runs("a"), stand.waiting().await), (1, 0));
}

#[tokio::test]
async fn a_broker_that_restarts_loses_no_request_and_no_result() {
    let mut stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let _worker = stand.worker(&[]);
    let kept = accepted(&post(&gateway, "/status/201", "").await);
    assert_eq!(result(&gateway, &kept).await.status, 201);
    let held = accepted(&post(&gateway, "/slow?ms=3000", "x-nonce: a\r\n").await);
    eventually(DEADLINE, async || stand.runs("a") == 1).await;
    let mut waiting = Client::connect(gateway.port).await.unwrap();
    let text = format!("GET {held} HTTP/1.1\r\nhost: a\r\nprefer: wait=30\r\n\r\n");
    waiting.send(&text).await.unwrap();
    stand.broker.kill9();
    stand.broker.start_again().await;
    gateway.ready().await;
    assert_eq!(result(&gateway, &kept).await.status, 201);
    assert_eq!(result(&gateway, &held).await.status, 200);
    assert_eq!(waiting.reply(false).await.unwrap().status, 200, "who waited is told");
    let fresh = accepted(&post(&gateway, "/status/202", "").await);
    assert_eq!(result(&gateway, &fresh).await.status, 202);
}

#[tokio::test]
async fn an_id_that_was_not_given_out_or_is_another_routes_is_unknown() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let own = accepted(&post(&gateway, "/others", "").await);
    let token = own.rsplit('/').next().unwrap().to_owned();
    assert!(is_pending(&ask(&gateway, &own, "").await));
    for path in [
        format!("/results/{token}"),
        format!("/others/{}", token.to_uppercase()),
        format!("/others/{token}0"),
        format!("/others/{}", "0".repeat(32)),
        "/others/*".to_owned(),
        "/others/%3e".to_owned(),
        format!("/others/others.{token}"),
        format!("/others/{token}%00"),
    ] {
        for fields in ["", "prefer: wait=5\r\n", "accept: text/event-stream\r\n"] {
            let refused = ask(&gateway, &path, fields).await;
            assert_eq!((refused.status, refused.problem().as_str()), (404, "unknown_result"));
        }
    }
    let posted = post(&gateway, &own, "").await;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
    assert!(gateway.metric("natsway_results_total{state=\"unknown\"}").await >= 24.0);
}

#[tokio::test]
async fn a_result_that_is_too_large_is_a_problem_and_the_next_one_is_not() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let _worker = stand.worker(&["--work-max-result-bytes", "10000"]);
    let large = accepted(&post(&gateway, "/big?bytes=20000", "").await);
    let small = accepted(&post(&gateway, "/big?bytes=9000", "").await);
    let refused = result(&gateway, &large).await;
    assert_eq!((refused.status, code(&refused).as_str()), (502, "response_too_large"));
    assert_eq!(result(&gateway, &small).await.body.len(), 9_000);
}

#[tokio::test]
async fn what_the_bucket_does_not_take_is_said_in_its_place() {
    let stand = Stand::start(LASTING).await;
    let strict = Config { max_message_size: 4_000, ..definitions::results(LASTING, None, 1) };
    stand.context.update_stream(strict).await.unwrap();
    let gateway = stand.gateway().await;
    let _worker = stand.worker(&[]);
    let location = accepted(&post(&gateway, "/big?bytes=9000", "x-nonce: a\r\n").await);
    let refused = result(&gateway, &location).await;
    assert_eq!((refused.status, code(&refused).as_str()), (502, "result_not_kept"));
    assert_eq!(stand.runs("a"), 1);
}

#[tokio::test]
async fn a_result_expires() {
    let stand = Stand::start(Duration::from_secs(8)).await;
    let gateway = stand.gateway().await;
    let _worker = stand.worker(&[]);
    let location = accepted(&post(&gateway, "/status/200", "").await);
    assert_eq!(result(&gateway, &location).await.status, 200);
    eventually(DEADLINE, async || ask(&gateway, &location, "").await.status == 404).await;
    let expired = ask(&gateway, &location, "prefer: wait=5\r\n").await;
    assert_eq!(expired.problem(), "unknown_result");
}

#[tokio::test]
async fn without_a_bucket_or_room_in_it_nothing_is_stored() {
    let stand = Stand::start(LASTING).await;
    let hasty = ROUTES.replace("15s", "500ms");
    let gateway = Gateway::start(&stand.broker, &hasty, &[]).await;
    let full = Config {
        max_messages: 1,
        discard: DiscardPolicy::New,
        ..definitions::results(LASTING, None, 1)
    };
    stand.context.update_stream(full).await.unwrap();
    accepted(&post(&gateway, "/", "").await);
    let refused = post(&gateway, "/", "").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "results_full"));
    stand.context.delete_stream("KV_natsway-results").await.unwrap();
    let refused = post(&gateway, "/", "").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "no_results"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(stand.waiting().await, 1);
}

#[tokio::test]
async fn a_message_of_no_route_does_not_hold_the_work_up() {
    let stand = Stand::start(LASTING).await;
    let gateway = stand.gateway().await;
    let ack = stand.context.publish("jobs.demo", "stray".into()).await.unwrap();
    ack.await.unwrap();
    let unreadable = jetstream::message::PublishMessage::build()
        .payload("no request".into())
        .message_id("jobs/1111111111111111");
    stand.context.send_publish("jobs.demo", unreadable).await.unwrap().await.unwrap();
    let _worker = stand.worker(&[]);
    let location = accepted(&post(&gateway, "/status/200", "").await);
    assert_eq!(result(&gateway, &location).await.status, 200);
    eventually(DEADLINE, async || stand.waiting().await == 0).await;
    let fields = "idempotency-key: 1111111111111111\r\n";
    let location = accepted(&post(&gateway, "/status/200", fields).await);
    let kept = result(&gateway, &location).await;
    assert_eq!((kept.status, code(&kept).as_str()), (502, "unreadable_request"));
}

/// Which example line is left out, and what it permits.
fn left_out(number: usize) -> Option<String> {
    let subject = std::cell::RefCell::new(None);
    permissions(|at, example| {
        if at == number {
            subject.replace(example.split('"').nth(1).map(str::to_owned));
        }
        false
    });
    subject.into_inner()
}

/// Without the news of results, which only shorten a wait, each line is needed.
#[tokio::test]
async fn the_examples_of_the_shipped_permissions_are_what_gateways_and_workers_need() {
    let examples: Vec<_> = (0..).map_while(left_out).collect();
    assert_eq!(examples.len(), 12, "{examples:?}");
    let own = (1..examples.len()).map(Some);
    for without in std::iter::once(None).chain(own) {
        let lines = permissions(|at, _| Some(at) != without);
        let broker = TestBroker::builder().jetstream().config_lines(&lines).start().await;
        let context = administrator(&broker).await;
        let stand = Stand::with(broker, context, LASTING).await;
        let url = |user: &str| format!("nats://{user}:secret@127.0.0.1:{}", stand.broker.port());
        let hasty = ROUTES.replace("15s", "500ms");
        let gateway = Gateway::launch(&url("gateway"), &hasty, &[]);
        gateway.ready().await;
        let _worker = stand.worker_at(&url("worker"), &[]);
        let violation = || {
            let log = stand.broker.log();
            log.lines().find(|line| line.contains("Violation")).map(str::to_owned)
        };
        let Some(without) = without else {
            let location = accepted(&post(&gateway, "/status/200", "").await);
            assert_eq!(result(&gateway, &location).await.status, 200);
            eventually(DEADLINE, async || stand.waiting().await == 0).await;
            assert_eq!(violation(), None);
            continue;
        };
        let subject = examples[without].split(['*', '>']).next().unwrap().to_owned();
        let said = eventually(DEADLINE, async || {
            let reply = post(&gateway, "/status/200", "").await;
            if let Some(location) = reply.header("location") {
                ask(&gateway, location, "prefer: wait=1\r\n").await;
            }
            violation().ok_or("nothing was refused")
        })
        .await;
        assert!(said.contains(subject.trim_end_matches('.')), "{subject}: {said}");
    }
}
