//! Bodies of HTTP's finer points: `Expect`, answers that come early, trailers.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::TRAILER;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use natsway_worker::TunnelMode;
use tokio::io::AsyncWriteExt;

use super::client::{Client, RawClient, VERSIONS, Version, endless, read, whole};
use super::{DEADLINE, Stage};

fn router() -> Router {
    let measure = async |request: Request| {
        let pieces = request.into_body().into_data_stream();
        let bytes = pieces.fold(0, async |sum, piece| sum + piece.unwrap().len()).await;
        bytes.to_string()
    };
    let enough = async |request: Request| {
        let first = request.into_body().into_data_stream().next().await;
        assert!(first.is_some());
        (StatusCode::PAYLOAD_TOO_LARGE, "enough of it")
    };
    let unread = async || (StatusCode::UNAUTHORIZED, "who are you");
    Router::new()
        .route("/measure", post(measure))
        .route("/enough", post(enough))
        .route("/unread", post(unread))
        .route("/summed", get(summed))
}

/// A body in pieces, with its sum behind it.
async fn summed() -> Response {
    let pieces = stream::repeat(Bytes::from(vec![b'p'; 10_000])).take(30).map(Frame::data);
    let mut sum = HeaderMap::new();
    sum.insert("x-sum", "33600000".parse().unwrap());
    let frames = pieces.chain(stream::iter([Frame::trailers(sum)])).map(Ok::<_, Infallible>);
    ([(TRAILER, "x-sum")], Body::new(StreamBody::new(frames))).into_response()
}

const MIB: usize = 1 << 20;

fn expecting(path: &str, bytes: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {bytes}\r\n\
         expect: 100-continue\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_first_is_told_to_go_on_once_somebody_takes_its_body() {
    let stage = Stage::new(router()).await;
    let mut client = RawClient::connect(stage.port).await;
    client.say(&expecting("/measure", MIB)).await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.stream.write_all(&vec![b'x'; MIB]).await.unwrap();
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    client.until(&MIB.to_string()).await;

    // The handler answers without a look at it: nothing need be sent.
    client.say(&expecting("/unread", MIB)).await;
    let mut head = client.head().await;
    if head.starts_with("HTTP/1.1 100") {
        // The tunnel was quicker than the handler, and asked for it.
        head = client.head().await;
    }
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
    client.until("who are you").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_first_sends_nothing_where_nobody_takes_it() {
    let off = |options: natsway_worker::Options| options.tunnels(TunnelMode::Off);
    let stage = Stage::with(&[], off, router()).await;
    let mut client = RawClient::connect(stage.port).await;
    client.say(&expecting("/measure", MIB)).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("connection: close"), "{head}");
}

/// One that asks first, and does not say how long its body is.
const CHUNKED: &str = "POST /measure HTTP/1.1\r\nhost: localhost\r\n\
                       transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n";

/// Those that ask first, each with a body that would fit in a message but for the last one's.
fn askers() -> [(String, String); 3] {
    let long = "x".repeat(MIB);
    [
        (CHUNKED.to_owned(), "5\r\nsmall\r\n0\r\n\r\n".to_owned()),
        (expecting("/measure", 5), "small".to_owned()),
        (expecting("/measure", MIB), long),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_first_is_not_told_to_go_on_before_a_worker_was_found() {
    let stage = Stage::with(&[], |options| options.max_streams(1), router()).await;
    let mut client = RawClient::connect(stage.port).await;
    client.say(CHUNKED).await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    // The worker has no place for another one, and this is said before anything is sent, whether
    // the length is said, and whatever it is.
    for (asker, _) in askers() {
        let mut other = RawClient::connect(stage.port).await;
        other.say(&asker).await;
        let head = other.head().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{asker}: {head}");
        other.until("overloaded").await;
    }
    client.say("5\r\nsmall\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    client.until("5").await;
    // With a place, each of them is told.
    for (asker, body) in askers() {
        client.say(&asker).await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{asker}");
        client.say(&body).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{asker}: {head}");
        client.until(if body.len() == MIB { "1048576" } else { "5" }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_fits_in_a_message_needs_no_place_at_the_gateway() {
    let stage = Stage::with(&["--max-streams", "1", "--shards", "1"], |o| o, router()).await;
    let mut client = RawClient::connect(stage.port).await;
    client.say(CHUNKED).await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    let mut other = RawClient::connect(stage.port).await;
    other.say(&expecting("/measure", 5)).await;
    assert_eq!(other.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    other.say("small").await;
    let head = other.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    other.until("5").await;
    other.say(CHUNKED).await;
    let head = other.head().await;
    assert!(head.starts_with("HTTP/1.1 503 ") || head.starts_with("HTTP/1.1 429 "), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_for_which_nobody_opens_a_stream_may_fit_in_a_message() {
    let off = |options: natsway_worker::Options| options.tunnels(TunnelMode::Off);
    let stage = Stage::with(&[], off, router()).await;
    let mut client = RawClient::connect(stage.port).await;
    for (asker, body) in askers().into_iter().take(2) {
        client.say(&asker).await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{asker}");
        client.say(&body).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{asker}: {head}");
        client.until("5").await;
    }
    // One that does not fit is refused.
    client.say(CHUNKED).await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.say("20000\r\n").await;
    client.stream.write_all(&vec![b'x'; 0x20000]).await.unwrap();
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    client.until("stream_not_opened").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_out_of_an_upload_counts_from_its_last_byte_on() {
    let never = async |request: Request| {
        let pieces = request.into_body().into_data_stream();
        pieces.for_each(async |piece| drop(piece.unwrap())).await;
        std::future::pending::<()>().await;
    };
    let router = router().route("/never", post(never));
    let stage = Stage::of_route("timeout = \"1s\"\n", &[], |options| options, router).await;
    for (path, status) in [("/measure", 200), ("/never", 504)] {
        let mut client = RawClient::connect(stage.port).await;
        let head = "HTTP/1.1\r\nhost: localhost\r\ncontent-length: 800000\r\n\r\n";
        client.say(&format!("POST {path} {head}")).await;
        let started = std::time::Instant::now();
        for _ in 0..8 {
            client.stream.write_all(&[b'x'; 100_000]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(started.elapsed() > Duration::from_secs(2), "it took longer than the time-out");
        let head = client.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let stage = Stage::new(router()).await;
    for version in VERSIONS {
        for (path, status, text) in
            [("/enough", 413, "enough of it"), ("/unread", 401, "who are you")]
        {
            let mut client = Client::connect(stage.port, version).await;
            let request = http::Request::post(path).body(endless()).unwrap();
            let answer = read(client.send(request).await.unwrap()).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (status, text), "{version:?}");
        }
    }
    // One that reads nothing before it has sent all that it has.
    let mut client = RawClient::connect(stage.port).await;
    let head = "POST /enough HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n\r\n";
    client.say(head).await;
    let body = vec![b'x'; 4 * MIB];
    let sent = client.stream.write_all(&body);
    tokio::time::timeout(DEADLINE, sent).await.unwrap().ok();
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 413 ") && head.contains("connection: close"), "{head}");
    client.until("enough of it").await;
    drop(client);
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_the_clients_that_may_have_them() {
    let stage = Stage::new(router()).await;
    for (version, takes, has) in [
        (Version::Http2, false, true),
        (Version::Http1, true, true),
        (Version::Http1, false, false),
    ] {
        let mut client = Client::connect(stage.port, version).await;
        let mut request = http::Request::get("/summed");
        if takes {
            request = request.header("te", "trailers").header("connection", "te");
        }
        let answer = read(client.send(request.body(whole("")).unwrap()).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 300_000));
        let sum = answer.trailers.as_ref().and_then(|trailers| trailers.get("x-sum"));
        let sum = sum.map(|sum| sum.to_str().unwrap());
        assert_eq!(sum, has.then_some("33600000"), "{version:?}, TE: {takes}");
    }
    stage.all_let_go().await;
}
