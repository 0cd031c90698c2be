//! Clients that leave in the middle: their handlers are dropped, and nothing is held for them.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use super::client::{Client, RawClient, VERSIONS, endless, whole};
use super::{DEADLINE, Guard, Stage, guards};

const PIECE_BYTES: usize = 64 * 1024;

fn router(guard: impl Fn() -> Guard + Clone + Send + Sync + 'static) -> Router {
    let of_download = guard.clone();
    let download = async move || {
        let guard = of_download();
        let pieces = stream::repeat_with(move || {
            let _guard = &guard;
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; PIECE_BYTES]))
        });
        Body::from_stream(pieces)
    };
    let of_events = guard.clone();
    let events = async move || {
        let guard = of_events();
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n"))]);
        let events = first.chain(stream::pending()).map(move |event| {
            let _guard = &guard;
            event
        });
        ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
    };
    let of_unread = guard.clone();
    let unread = async move |_request: Request| {
        let _guard = of_unread();
        std::future::pending::<()>().await;
    };
    let upload = async move |request: Request| {
        let _guard = guard();
        let mut pieces = request.into_body().into_data_stream();
        while let Some(Ok(_)) = pieces.next().await {}
        // It broke off, and takes its time about it.
        std::future::pending::<()>().await;
    };
    Router::new()
        .route("/download", get(download))
        .route("/events", get(events))
        .route("/upload", post(upload))
        .route("/unread", post(unread))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_a_download_or_events_has_its_handler_dropped() {
    let (guard, mut dropped) = guards();
    let stage = Stage::new(router(guard)).await;
    for version in VERSIONS {
        for (path, bytes) in [("/download", 1 << 20), ("/download", 0), ("/events", 5)] {
            let mut client = Client::connect(stage.port, version).await;
            let request = http::Request::get(path).body(whole("")).unwrap();
            let mut response = client.send(request).await.unwrap();
            let mut read = 0;
            while read < bytes {
                let frame = tokio::time::timeout(DEADLINE, response.frame()).await.unwrap();
                read += frame.unwrap().unwrap().into_data().unwrap().len();
            }
            dropped.not_yet();
            drop((client, response));
            dropped.soon().await;
        }
    }
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_an_upload_has_its_handler_dropped() {
    let (guard, mut dropped) = guards();
    let stage = Stage::new(router(guard)).await;
    for version in VERSIONS {
        let mut client = Client::connect(stage.port, version).await;
        let request = http::Request::post("/upload").body(endless()).unwrap();
        let sent =
            tokio::time::timeout(std::time::Duration::from_millis(500), client.send(request));
        assert!(sent.await.is_err(), "it goes on for ever");
        dropped.not_yet();
        drop(client);
        dropped.soon().await;
    }
    stage.all_let_go().await;
}

/// Where nothing else ends what stands still, in the time that is waited here.
async fn patient(router: Router) -> Stage {
    let lines = "timeout = \"120s\"\nstream_idle_timeout = \"120s\"\n";
    Stage::of_route(lines, &["--send-timeout", "120s"], |options| options, router).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_missed_behind_its_next_request() {
    let (guard, mut dropped) = guards();
    let stage = patient(router(guard)).await;
    // Nobody takes the answer, and the end of what the client sends lies behind more of that.
    let mut client = RawClient::connect(stage.port).await;
    client.say("GET /download HTTP/1.1\r\nhost: a\r\n\r\nGET /next HTTP/1.1\r\n").await;
    client.head().await;
    dropped.not_yet();
    client.stream.shutdown().await.unwrap();
    dropped.at_last().await;
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_missed_behind_a_body_that_is_not_read() {
    let (guard, mut dropped) = guards();
    let stage = patient(router(guard)).await;
    let mut client = RawClient::connect(stage.port).await;
    client.say("POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").await;
    // More than a stream and its ends hold, and little more: all of it leaves the client.
    client.stream.write_all(&[b'x'; 330 << 10]).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    dropped.not_yet();
    drop(client);
    dropped.at_last().await;
    stage.all_let_go().await;
}
