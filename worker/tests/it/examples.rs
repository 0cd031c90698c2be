//! The examples that are programs of this workspace, run as people run them.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use natsway_testkit::{
    Process, TestBroker, eventually, free_port, repository_root, workspace_binary,
    workspace_example,
};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(30);

async fn example(name: &'static str) -> std::path::PathBuf {
    tokio::task::spawn_blocking(move || workspace_example(name)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_queue_groups_runs_every_message_once() {
    let broker = TestBroker::start().await;
    let program = example("two-groups").await;
    let mut process = Process::builder(program).env("NATS_URL", broker.url()).start();
    assert!(process.wait_exit(PATIENCE).await.success(), "{}", process.stderr());
    let said = process.stdout();
    assert!(said.contains("billing: 3 members, 1000 messages"), "{said}");
    assert!(said.contains("audit: 2 members, 1000 messages"), "{said}");
}

/// Asks a gateway; `None` when there is no answer.
async fn ask(
    port: u16,
    method: Method,
    path: &str,
    body: &'static str,
) -> Option<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "shop.example");
    let request =
        request.header("content-type", "application/json").body(Full::<Bytes>::from(body));
    let response = sender.send_request(request.unwrap()).await.ok()?;
    let status = response.status();
    Some((status, response.into_body().collect().await.ok()?.to_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_axum_router_is_reached_by_its_route() {
    let broker = TestBroker::start().await;
    let gateway = tokio::task::spawn_blocking(|| workspace_binary("apiproxy")).await.unwrap();
    let (port, admin_port) = (free_port(), free_port());
    let _gateway = Process::builder(gateway)
        .args(["--static-routes", "--nats-url", &broker.url()])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
        .arg("--routes")
        .arg(repository_root().join("examples/axum/routes.toml"))
        .start();
    let _worker = Process::builder(example("axum").await).env("NATS_URL", broker.url()).start();
    eventually(PATIENCE, async || match ask(port, Method::GET, "/todos/", "").await {
        Some((StatusCode::OK, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (written, _) = ask(port, Method::PUT, "/todos/1", "\"buy milk\"").await.unwrap();
    assert_eq!(written, StatusCode::NO_CONTENT);
    let (status, body) = ask(port, Method::GET, "/todos/1", "").await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"\"buy milk\""[..]));
    let (missing, _) = ask(port, Method::GET, "/todos/2", "").await.unwrap();
    assert_eq!(missing, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_was_started_again_is_heard_from_its_first_item_on() {
    let broker = TestBroker::start().await;
    let publisher = example("signal-publisher").await;
    let publish = |every_ms: &str| {
        let process = Process::builder(&publisher).env("NATS_URL", broker.url());
        process.env("EVERY_MS", every_ms).start()
    };
    let mut first = publish("20");
    let subscriber = Process::builder(example("signal-subscriber").await)
        .env("NATS_URL", broker.url())
        .env("POLL_MS", "200")
        .start();
    let count = |item: &str| {
        let begin = format!("{item}, by ");
        subscriber.stdout().lines().filter(|line| line.starts_with(&begin)).count()
    };
    let seen = async |item: &str, times: usize| {
        eventually(PATIENCE, async || match count(item) {
            found if found == times => Ok(()),
            found => Err(format!("{item} {found} times:\n{}", subscriber.stdout())),
        })
        .await;
    };
    // It has come far, so that the second one's versions are below what is known.
    seen("item 20", 1).await;
    first.kill9();
    let _second = publish("600000");
    seen("item 1", 2).await;
    assert_eq!(count("item 20"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_signal_is_caught_by_the_next_look() {
    let broker = TestBroker::start().await;
    let publisher = Process::builder(example("signal-publisher").await)
        .env("NATS_URL", broker.url())
        // The pause is so long that no later signal hides the lost one.
        .env("EVERY_MS", "500")
        .env("LOSE_EVERY", "2")
        .start();
    let subscriber = Process::builder(example("signal-subscriber").await)
        .env("NATS_URL", broker.url())
        .env("POLL_MS", "400")
        .start();
    let number = |line: &str| {
        let digits = line.strip_prefix("item ")?.split(',').next()?;
        digits.parse::<u32>().ok()
    };
    eventually(PATIENCE, async || {
        let said = subscriber.stdout();
        let has_heard = said.lines().any(|line| line.ends_with(", by signal"));
        // Of each second there is no signal.
        let has_looked = said.lines().any(|line| {
            line.ends_with(", by look")
                && number(line).is_some_and(|item| item > 1 && item % 2 == 0)
        });
        if has_heard && has_looked { Ok(()) } else { Err(said) }
    })
    .await;
    let said = subscriber.stdout();
    assert!(publisher.stdout().contains("item 2, and its signal is lost"), "{said}");
    let items = said.lines().map(|line| line.split(',').next().unwrap());
    let expected = (1..).map(|item| format!("item {item}"));
    for (item, expected) in items.zip(expected) {
        assert_eq!(item, expected, "each once and in order");
    }
}
