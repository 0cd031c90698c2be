//! Ends with tunnels beside ends without: what fits in a message goes as ever, what does not is
//! refused with a word, and nothing hangs.

use axum::Router;
use axum::extract::Query;
use axum::routing::{get, post};
use bytes::Bytes;
use natsway_worker::TunnelMode;
use serde::Deserialize;

use super::Stage;
use super::client::{Client, Read, Version, endless, read, whole};

#[derive(Deserialize)]
struct Size {
    bytes: usize,
}

fn router() -> Router {
    let download = async |Query(Size { bytes }): Query<Size>| vec![b'x'; bytes];
    let upload = async |body: Bytes| body.len().to_string();
    Router::new().route("/download", get(download)).route("/upload", post(upload))
}

async fn ask(stage: &Stage, request: http::request::Builder, body: super::client::Body) -> Read {
    let mut client = Client::connect(stage.port, Version::Http1).await;
    read(client.send(request.body(body).unwrap()).await.unwrap()).await
}

async fn download(stage: &Stage, bytes: usize) -> Read {
    let path = format!("/download?bytes={bytes}");
    ask(stage, http::Request::get(path), whole("")).await
}

/// What is the same whichever end has no tunnels.
async fn answers_what_fits_in_a_message(stage: &Stage) {
    for bytes in [0, 1_000, 65_536, 65_537, 900_000] {
        let answer = download(stage, bytes).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, bytes));
    }
    // The broker takes messages of up to 1 MiB.
    let answer = download(stage, 2 << 20).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "response_too_large"));
    for bytes in [1, 65_536] {
        let upload = http::Request::post("/upload");
        let answer = ask(stage, upload, whole(vec![b'x'; bytes])).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, bytes.to_string().as_str()));
    }
}

/// A body with a length, one without, a WebSocket and a call by gRPC.
async fn refuses_what_does_not(stage: &Stage, expected: [(u16, &str); 4]) {
    let post = || http::Request::post("/upload");
    let upgrade = http::Request::get("/upload")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let answers = [
        ask(stage, post(), whole(vec![b'x'; 65_537])).await,
        ask(stage, post(), endless()).await,
        ask(stage, upgrade, whole("")).await,
        ask(stage, post().header("content-type", "application/grpc"), endless()).await,
    ];
    let seen = answers.each_ref().map(|answer| (answer.status.as_u16(), answer.code()));
    assert_eq!(seen, expected.map(|(status, code)| (status, code.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_tunnels_serves_a_gateway_with_them() {
    let off = |options: natsway_worker::Options| options.tunnels(TunnelMode::Off);
    let stage = Stage::with(&[], off, router()).await;
    answers_what_fits_in_a_message(&stage).await;
    refuses_what_does_not(&stage, [(503, "stream_not_opened"); 4]).await;
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_tunnels_serves_a_gateway_without_them() {
    let stage = Stage::with(&["--tunnel-listen", "off"], |options| options, router()).await;
    answers_what_fits_in_a_message(&stage).await;
    let large = (413, "too_large");
    refuses_what_does_not(&stage, [large, large, (501, "not_implemented"), large]).await;
    stage.all_let_go().await;
}
