//! Streams by pipes on the broker, where workers cannot reach their gateway or are told to take
//! those.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use natsway_worker::{Options, TunnelMode};
use tokio_tungstenite::tungstenite::Message;

use super::client::{self, Client, Read, Version, read, whole};
use super::{DEADLINE, Stage};

const BYTES: usize = 3_000_000;

fn router() -> Router {
    let measure = async |request: Request| {
        let pieces = request.into_body().into_data_stream();
        let bytes = pieces.fold(0, async |sum, piece| sum + piece.unwrap().len()).await;
        bytes.to_string()
    };
    let chat = async |upgrade: WebSocketUpgrade| {
        upgrade.on_upgrade(async move |mut socket| {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    };
    Router::new()
        .route("/download", get(|| async { Body::from_stream(pieces()) }))
        .route("/endless", get(endless))
        .route("/measure", post(measure))
        .route("/chat", get(chat))
}

/// [`BYTES`] in pieces, the first letters of which are told apart.
fn pieces() -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    let piece = |number: usize| Ok(Bytes::from(vec![number as u8; 10_000]));
    stream::iter((0..BYTES / 10_000).map(piece))
}

async fn endless() -> Response {
    let piece = || Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b'x'; 1_000]));
    let body = stream::unfold((), move |()| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((piece(), ()))
    });
    Response::new(Body::from_stream(body))
}

async fn ask(stage: &Stage, request: http::request::Builder, body: client::Body) -> Read {
    let mut client = Client::connect(stage.port, Version::Http1).await;
    read(client.send(request.body(body).unwrap()).await.unwrap()).await
}

/// A body down, a body up, and a connection.
async fn streams_go_through(stage: &Stage) {
    let down = ask(stage, http::Request::get("/download"), whole("")).await;
    assert_eq!((down.status.as_u16(), down.body.len()), (200, BYTES));
    let is_intact = down.body.chunks(10_000).enumerate();
    assert!(is_intact.into_iter().all(|(number, piece)| piece.iter().all(|b| *b == number as u8)));
    let up = ask(stage, http::Request::post("/measure"), whole(vec![b'x'; BYTES])).await;
    assert_eq!((up.status.as_u16(), up.text()), (200, BYTES.to_string().as_str()));
    let url = format!("ws://127.0.0.1:{}/chat", stage.port);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        let answer = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap();
        assert_eq!(answer.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    stage.all_let_go().await;
}

async fn metric(stage: &Stage, name: &str) -> f64 {
    let (_, page) = client::get(stage.admin_port, "/metrics").await.unwrap();
    let sample = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    page.lines().find_map(sample).unwrap_or(0.0)
}

/// How many pipes and tunnels the gateway has.
async fn pipes_and_tunnels(stage: &Stage) -> (f64, f64) {
    (metric(stage, "natsway_pipes").await, metric(stage, "natsway_tunnels").await)
}

fn mode(mode: TunnelMode) -> impl FnOnce(Options) -> Options {
    move |options| options.tunnels(mode)
}

const ONE_SHARD: [&str; 2] = ["--shards", "1"];

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_takes_pipes_alone() {
    let stage = Stage::with(&ONE_SHARD, mode(TunnelMode::Broker), router()).await;
    streams_go_through(&stage).await;
    assert_eq!(pipes_and_tunnels(&stage).await, (1.0, 1.0));
    assert_eq!(metric(&stage, "natsway_pipes_broken_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_reaches_its_gateway_needs_no_pipe() {
    let stage = Stage::with(&ONE_SHARD, mode(TunnelMode::Auto), router()).await;
    streams_go_through(&stage).await;
    assert_eq!(pipes_and_tunnels(&stage).await, (0.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_reach_its_gateway_takes_a_pipe_and_remembers_it() {
    // Nobody answers there: RFC 5737. Another one refuses at once.
    for address in ["192.0.2.1:7443", "127.0.0.1:1"] {
        let arguments = [&ONE_SHARD[..], &["--tunnel-address", address]].concat();
        let reach = |options: Options| {
            options.tunnels_to(["192.0.2.0/24".parse().unwrap(), "127.0.0.0/8".parse().unwrap()])
        };
        let stage = Stage::with(&arguments, reach, router()).await;
        streams_go_through(&stage).await;
        assert_eq!(pipes_and_tunnels(&stage).await, (1.0, 1.0), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_may_take_pipes_alone_or_none() {
    let arguments = [&ONE_SHARD[..], &["--tunnel-listen", "broker"]].concat();
    let stage = Stage::with(&arguments, mode(TunnelMode::Auto), router()).await;
    streams_go_through(&stage).await;
    assert_eq!(pipes_and_tunnels(&stage).await, (1.0, 1.0));

    let arguments = [&ONE_SHARD[..], &["--tunnel-pipes", "0"]].concat();
    let stage = Stage::with(&arguments, mode(TunnelMode::Broker), router()).await;
    let up = ask(&stage, http::Request::post("/measure"), whole(vec![b'x'; BYTES])).await;
    assert_eq!((up.status.as_u16(), up.code().as_str()), (503, "stream_not_opened"));
    assert_eq!(pipes_and_tunnels(&stage).await, (0.0, 0.0));
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_broker_breaks_streams_off_visibly_and_nothing_is_kept() {
    let mut stage = Stage::with(&ONE_SHARD, mode(TunnelMode::Broker), router()).await;
    let mut client = Client::connect(stage.port, Version::Http1).await;
    let request = http::Request::get("/endless").body(whole("")).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    for _ in 0..100 {
        let frame = http_body_util::BodyExt::frame(&mut body).await;
        assert!(frame.unwrap().unwrap().is_data());
    }
    stage.broker.kill9();
    let killed = Instant::now();
    let broken = tokio::time::timeout(DEADLINE, async {
        while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
            if frame.is_err() {
                return true;
            }
        }
        false
    });
    assert!(broken.await.unwrap(), "a body without its end is no whole one");
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    stage.all_let_go().await;
    assert_eq!(pipes_and_tunnels(&stage).await, (0.0, 0.0));

    stage.broker.start_again().await;
    natsway_testkit::eventually(DEADLINE, async || {
        let down = ask(&stage, http::Request::get("/download"), whole("")).await;
        if down.status == 200 && down.body.len() == BYTES { Ok(()) } else { Err(down.status) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_finishes_what_goes_by_pipes() {
    let slow = async || {
        let pieces = stream::iter(0..60).then(|_| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; 10_000]))
        });
        Response::new(Body::from_stream(pieces))
    };
    let router = Router::new().route("/slow", get(slow));
    let stage = Stage::with(&ONE_SHARD, mode(TunnelMode::Broker), router).await;
    let mut client = Client::connect(stage.port, Version::Http1).await;
    let request = http::Request::get("/slow").body(whole("")).unwrap();
    let response = client.send(request).await.unwrap();
    let (summary, body) = tokio::join!(stage.worker.leave(), read(response));
    assert_eq!((body.body.len(), summary.unfinished), (600_000, 0));
}
