//! Streams are bounded, and who takes many leaves some to others.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use natsway_testkit::{TcpLink, eventually, free_port};
use natsway_worker::Options;
use tokio::sync::mpsc;

use super::client::RawClient;
use super::{DEADLINE, Stage};

const EVENTS: &str = "GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Events that come no more after the first, and WebSockets on which nothing is said.
fn router() -> Router {
    let events = async || {
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n"))]);
        let events = Body::from_stream(first.chain(stream::pending()));
        ([("content-type", "text/event-stream")], events).into_response()
    };
    let chat = async |upgrade: WebSocketUpgrade| {
        upgrade.on_upgrade(async |mut socket| while let Some(Ok(_)) = socket.recv().await {})
    };
    Router::new().route("/events", get(events)).route("/chat", get(chat))
}

/// The status of a WebSocket that is asked for on a connection of its own, which it keeps.
async fn chat(port: u16) -> (RawClient, String) {
    let mut client = RawClient::connect(port).await;
    let head = client.ask_for_web_socket("/chat").await;
    (client, head)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_keep_the_others_out() {
    one_client_has(2, &["--max-streams", "4", "--shards", "1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_be_given_another_share() {
    let three = ["--max-streams", "8", "--max-streams-per-client", "3", "--shards", "1"];
    one_client_has(3, &three).await;
}

/// One client gets so many streams of a gateway with these arguments, and another one two more.
async fn one_client_has(most: usize, arguments: &[&str]) {
    let stage = Stage::with(arguments, |options| options, router()).await;
    let attack = async || RawClient::connect_as("127.0.0.2", stage.port).await;
    let mut held = Vec::new();
    for _ in 0..most {
        let mut client = attack().await;
        client.say(EVENTS).await;
        client.until("data: 1").await;
        held.push(client);
    }
    let mut refused = attack().await;
    let head = refused.ask_for_web_socket("/chat").await;
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    assert!(head.contains("retry-after: "), "{head}");
    refused.until("client_streams_full").await;
    // A response that goes on: that it ran is said.
    let mut refused = attack().await;
    refused.say(EVENTS).await;
    let head = refused.head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    refused.until("the request ran, and this client").await;

    // Meanwhile another one is served, up to its own share.
    let sockets = [chat(stage.port).await, chat(stage.port).await];
    assert!(sockets.iter().all(|(_, head)| head.starts_with("HTTP/1.1 101 ")), "{sockets:?}");
    drop((held, sockets));
    eventually(DEADLINE, async || {
        let mut client = attack().await;
        let head = client.ask_for_web_socket("/chat").await;
        if head.starts_with("HTTP/1.1 101 ") { Ok(()) } else { Err(head) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_as_many_websockets_as_streams_whichever_reader_has_them() {
    let one = |options: Options| options.max_streams(1).readers(2.try_into().unwrap());
    let stage = Stage::with(&[], one, router()).await;
    let (first, head) = chat(stage.port).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (mut refused, head) = chat(stage.port).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    refused.until("overloaded").await;

    // Another instance has what is above.
    let other = stage.another_worker(one, router()).await;
    let (second, head) = chat(stage.port).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (_, head) = chat(stage.port).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    drop((first, second));
    eventually(DEADLINE, async || {
        let (_, head) = chat(stage.port).await;
        if head.starts_with("HTTP/1.1 101 ") { Ok(()) } else { Err(head) }
    })
    .await;
    assert_eq!(other.leave().await.unfinished, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_goes_on_at_a_worker_with_all_its_streams_is_told_that_it_ran() {
    let stage = Stage::with(&[], |options| options.max_streams(1), router()).await;
    let (first, head) = chat(stage.port).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut refused = RawClient::connect(stage.port).await;
    refused.say(EVENTS).await;
    let head = refused.head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    refused.until("worker_streams_full").await;
    drop(first);
    eventually(DEADLINE, async || {
        let mut client = RawClient::connect(stage.port).await;
        client.say(EVENTS).await;
        let head = client.head().await;
        if head.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(head) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_has_more_streams_than_one_tunnel_carries() {
    const STREAMS: usize = 620;
    let arguments = ["--max-streams", "2048", "--max-streams-per-client", "2048", "--shards", "1"];
    let stage = Stage::with(&arguments, |options| options.max_streams(1_000), router()).await;
    let mut open = Vec::new();
    for number in 0..STREAMS {
        let (client, head) = chat(stage.port).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{number}: {head}");
        open.push(client);
    }
    let tunnels = stage.metric("natsway_tunnels ").await.unwrap();
    assert!(tunnels >= 2, "all by {tunnels}");
    drop(open);
    stage.all_let_go().await;
    stage.has_worker_streams(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_a_websocket_whose_client_left_is_free_at_once() {
    // Where workers dial: nothing comes through when it is paused.
    let port = free_port();
    let link = TcpLink::to_port(port).await;
    let (listen, address) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", link.port()));
    let arguments = ["--shards", "1", "--tunnel-listen", &listen, "--tunnel-address", &address];
    let stage = Stage::with(&arguments, |options| options, router()).await;
    let (first, head) = chat(stage.port).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    drop(first);
    stage.has_worker_streams(0).await;
    // The worker says that it is ready, and the stream does not come.
    link.pause();
    let mut leaves = RawClient::connect(stage.port).await;
    leaves.say_web_socket("/chat").await;
    stage.has_worker_streams(1).await;
    drop(leaves);
    stage.has("natsway_cancelled_total", 1).await;
    stage.has_worker_streams(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_a_response_whose_client_left_is_free_at_once() {
    let one = |options: Options| options.max_streams(1);
    let (began, mut begins) = mpsc::unbounded_channel();
    // Less than the time after which a worker says what it runs: nobody knows it till it answers.
    let slow = move || {
        let began = began.clone();
        async move {
            began.send(()).unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
            let events = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
            ([("content-type", "text/event-stream")], events).into_response()
        }
    };
    let stage =
        Stage::with(&["--shards", "1"], one, router().route("/slow-events", get(slow))).await;
    // The tunnel is there before.
    let (first, head) = chat(stage.port).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    drop(first);
    stage.has_worker_streams(0).await;
    let mut leaves = RawClient::connect(stage.port).await;
    leaves.say("GET /slow-events HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    tokio::time::timeout(DEADLINE, begins.recv()).await.unwrap();
    drop(leaves);
    // Its stream is opened to be dropped; where the machine was slow, the worker has said meanwhile
    // that it runs it, and is told.
    eventually(DEADLINE, async || {
        let cancelled = stage.metric("natsway_cancelled_total").await?;
        let opened = stage.metric("natsway_streams_total").await?;
        if (cancelled, opened - 1) == (1, 0) || (cancelled, opened - 1) == (0, 1) {
            return Ok(());
        }
        Err(format!("{cancelled} cancelled, {opened} opened"))
    })
    .await;
    stage.has_worker_streams(0).await;
}
