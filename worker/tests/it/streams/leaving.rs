//! Handlers that are told that their worker leaves.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message as ServerMessage, WebSocketUpgrade, close_code};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use natsway_worker::Draining;
use tokio_tungstenite::tungstenite::Message;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::client::{Client, RawClient, Version, read, whole};
use super::{DEADLINE, Stage};

/// Says that a handler is at work.
type Begun = mpsc::UnboundedSender<()>;

async fn events(
    State(begun): State<Begun>,
    Extension(draining): Extension<Draining>,
) -> impl IntoResponse {
    begun.send(()).unwrap();
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n"))]);
    let last = stream::iter([Ok(Bytes::from_static(b"data: last\n\n"))]);
    let events = first.chain(stream::pending()).take_until(draining).chain(last);
    ([("content-type", "text/event-stream")], Body::from_stream(events))
}

async fn chat(
    upgrade: WebSocketUpgrade,
    State(begun): State<Begun>,
    Extension(draining): Extension<Draining>,
) -> impl IntoResponse {
    upgrade.on_upgrade(async move |mut socket| {
        begun.send(()).unwrap();
        draining.await;
        let goodbye = CloseFrame { code: close_code::AWAY, reason: "later".into() };
        socket.send(ServerMessage::Close(Some(goodbye))).await.ok();
    })
}

async fn waits(State(begun): State<Begun>, Extension(draining): Extension<Draining>) -> String {
    begun.send(()).unwrap();
    let had_begun = draining.has_begun();
    draining.clone().await;
    format!("{had_begun}, {}", draining.has_begun())
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_end_by_themselves_when_their_worker_leaves() {
    let (sender, mut begun) = mpsc::unbounded_channel();
    let router = Router::new()
        .route("/events", get(events))
        .route("/chat", get(chat))
        .route("/waits", get(waits))
        .with_state(sender);
    let stage = Stage::with(&[], |options| options.drain_timeout(DEADLINE), router).await;
    let url = format!("ws://127.0.0.1:{}/chat", stage.port);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let mut responses = Vec::new();
    for path in ["/events", "/waits"] {
        let mut client = Client::connect(stage.port, Version::Http1).await;
        let request = http::Request::get(path).body(whole("")).unwrap();
        responses
            .push(tokio::spawn(async move { read(client.send(request).await.unwrap()).await }));
    }
    for _ in 0..3 {
        let at_work = tokio::time::timeout(DEADLINE, begun.recv()).await;
        assert_eq!(at_work.expect("three handlers begin"), Some(()));
    }

    let told = Instant::now();
    let leaving = tokio::spawn(stage.worker.leave());
    let closed = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = closed else { panic!("{closed:?}") };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1_001, "later"));
    while socket.next().await.is_some() {}
    let mut texts = Vec::new();
    for response in responses {
        texts.push(response.await.unwrap().text().to_owned());
    }
    assert_eq!(texts, ["data: 1\n\ndata: last\n\n", "false, true"]);
    let summary = leaving.await.unwrap();
    assert_eq!(summary.unfinished, 0);
    assert!(told.elapsed() < DEADLINE / 2, "nobody was waited for: {:?}", told.elapsed());
}

/// Sends everything back, and hears of no leaving.
async fn deaf_chat(upgrade: WebSocketUpgrade, State(begun): State<Begun>) -> impl IntoResponse {
    upgrade.on_upgrade(async move |mut socket| {
        begun.send(()).unwrap();
        while let Some(Ok(_)) = socket.recv().await {}
    })
}

async fn deaf_events(State(begun): State<Begun>) -> impl IntoResponse {
    begun.send(()).unwrap();
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n"))]);
    let events = Body::from_stream(first.chain(stream::pending()));
    ([("content-type", "text/event-stream")], events)
}

/// A client that is slower than its worker never waits for an event, and hears the end as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_event_stream_ends_in_order_when_its_gateway_leaves() {
    let events = async || {
        let event = Bytes::from(format!("data: {}\n\n", "x".repeat(1_000)));
        let events = stream::repeat_with(move || Ok::<_, Infallible>(event.clone()));
        let events = Body::from_stream(events);
        ([("content-type", "text/event-stream")], events).into_response()
    };
    let drain = ["--drain-timeout", "6s", "--drain-grace", "0s"];
    let router = Router::new().route("/events", get(events));
    let mut stage = Stage::with(&drain, |options| options, router).await;
    let mut client = RawClient::connect(stage.port).await;
    client.say("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.until("data: x").await;
    stage.gateway.terminate();
    let (mut piece, mut last) = (vec![0; 64 << 10], Vec::new());
    let reading = async {
        loop {
            match client.stream.read(&mut piece).await {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    last.extend_from_slice(&piece[..count]);
                    last.drain(..last.len().saturating_sub(5));
                }
                Err(error) => return Err(error),
            }
            // As slow as a phone: what the kernel holds is soon read, and what comes is too much.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("an end in time").expect("a clean one");
    assert_eq!(String::from_utf8_lossy(&last), "0\r\n\r\n");
}

/// Whatever a handler does when its time is over: it sends an event, or waits until one is taken.
#[tokio::test(flavor = "multi_thread")]
async fn busy_event_streams_end_in_order_when_their_worker_leaves() {
    const STREAMS: usize = 20;
    let events = async || {
        let event = Bytes::from(format!("data: {}\n\n", "x".repeat(1_000)));
        let events = stream::repeat_with(move || Ok::<_, Infallible>(event.clone()));
        let events = Body::from_stream(events);
        ([("content-type", "text/event-stream")], events).into_response()
    };
    let drain = Duration::from_millis(2_500);
    let router = Router::new().route("/events", get(events));
    let stage = Stage::with(&[], |options| options.drain_timeout(drain), router).await;
    let (said, mut begun) = mpsc::unbounded_channel();
    let clients: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (said, port) = (said.clone(), stage.port);
            tokio::spawn(async move {
                let mut client = Client::connect(port, Version::Http1).await;
                let request = http::Request::get("/events").body(whole("")).unwrap();
                let mut body = client.send(request).await.unwrap().into_body();
                said.send(()).unwrap();
                while let Some(frame) = body.frame().await {
                    frame.expect("it ends, and does not break off");
                }
            })
        })
        .collect();
    for _ in 0..STREAMS {
        tokio::time::timeout(DEADLINE, begun.recv()).await.expect("all begin").unwrap();
    }
    stage.worker.leave().await;
    for client in clients {
        tokio::time::timeout(DEADLINE, client).await.expect("an end in time").unwrap();
    }
}

async fn hangs(State(begun): State<Begun>) {
    begun.send(()).unwrap();
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_hangs_keeps_no_stream_from_ending_as_documented() {
    let (sender, mut begun) = mpsc::unbounded_channel();
    let router = Router::new()
        .route("/events", get(deaf_events))
        .route("/chat", get(deaf_chat))
        .route("/hangs", get(hangs))
        .with_state(sender);
    let drain = Duration::from_millis(1_500);
    let stage = Stage::with(&[], |options| options.drain_timeout(drain), router).await;
    let url = format!("ws://127.0.0.1:{}/chat", stage.port);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let port = stage.port;
    let ask = |path| {
        tokio::spawn(async move {
            let mut client = Client::connect(port, Version::Http1).await;
            let request = http::Request::get(path).body(whole("")).unwrap();
            read(client.send(request).await.unwrap()).await
        })
    };
    let (events, _hangs) = (ask("/events"), ask("/hangs"));
    for _ in 0..3 {
        let at_work = tokio::time::timeout(DEADLINE, begun.recv()).await;
        assert_eq!(at_work.expect("three handlers begin"), Some(()));
    }

    let leaving = tokio::spawn(stage.worker.leave());
    let closed = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = closed else { panic!("{closed:?}") };
    assert_eq!(u16::from(frame.code), 1_012);
    // It would panic if it had broken off.
    assert_eq!(events.await.unwrap().text(), "data: 1\n\n");
    assert_eq!(leaving.await.unwrap().unfinished, 1);
}
