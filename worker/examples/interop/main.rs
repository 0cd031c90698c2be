//! What the proof of real clients talks to (`tests/clients/run.py`): the service of gRPC's own
//! interoperability tests, a WebSocket that sends everything back, events that go on where they
//! were left, and bodies that are hashed or sent back.
//!
//! The same service over NATS, and straight on a port of this machine to compare with:
//!
//! ```sh
//! cargo run --package natsway-worker --example interop -- nats://127.0.0.1:4222
//! cargo run --package natsway-worker --example interop -- 127.0.0.1:8081
//! ```

mod grpc;
mod messages;

use std::convert::Infallible;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Extension, Router};
use futures_util::{StreamExt, stream};
use natsway_worker::{BrokerConfig, Draining, Options, serve, shutdown_signal};
use serde::Deserialize;
use serde_json::{Value, json};

const SUBJECT: &str = "svc.interop.blue";

fn router() -> Router {
    Router::new()
        .route("/", get(page))
        .route("/hash", post(hash))
        .route("/back", post(back))
        .route("/pattern", get(pattern))
        .route("/events", get(events))
        .route("/ws", get(web_socket))
        .merge(grpc::router())
        .fallback(grpc::unknown)
}

/// A page whose script uses each kind of stream, and says in its title how that went.
async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

/// Says how long a body was, and its SHA-256.
async fn hash(body: Body) -> Result<Json<Value>, StatusCode> {
    let (mut chunks, mut sum, mut bytes) = (body.into_data_stream(), Context::new(&SHA256), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        sum.update(&chunk);
        bytes += chunk.len();
    }
    let digits = sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(Json(json!({ "bytes": bytes, "sha256": digits })))
}

/// Sends a body back while it comes.
async fn back(request: Request) -> Response {
    let kind = (CONTENT_TYPE, "application/octet-stream");
    ([kind], Body::from_stream(request.into_body().into_data_stream())).into_response()
}

#[derive(Deserialize)]
struct Pattern {
    bytes: u64,
}

/// A body of which each byte is its offset modulo 251, of no length that is said.
async fn pattern(Query(Pattern { bytes }): Query<Pattern>) -> Response {
    const PERIOD: u64 = 251;
    let all: Bytes = (0..64 * PERIOD).map(|offset| (offset % PERIOD) as u8).collect();
    let pieces = stream::unfold(bytes, move |left| {
        let length = left.min(all.len() as u64);
        let piece = all.slice(..length as usize);
        async move { (length > 0).then(|| (Ok::<_, Infallible>(piece), left - length)) }
    });
    Body::from_stream(pieces).into_response()
}

#[derive(Deserialize)]
struct Events {
    /// How many there are in one response; whoever reads comes again for the next ones.
    count: u64,
    ms: u64,
}

/// Events with ids, from behind the last one that the reader has seen.
async fn events(
    Query(Events { count, ms }): Query<Events>,
    headers: HeaderMap,
    draining: Option<Extension<Draining>>,
) -> Response {
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let first = seen.map_or(0, |seen| seen + 1);
    let events = stream::unfold(first, move |id| async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        let event = format!("retry: 100\nid: {id}\ndata: event {id}\n\n");
        (id < first + count).then(|| (Ok::<_, Infallible>(Bytes::from(event)), id + 1))
    });
    let fields = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    let body = match draining {
        Some(Extension(draining)) => Body::from_stream(events.take_until(draining)),
        None => Body::from_stream(events),
    };
    (fields, body).into_response()
}

async fn web_socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.protocols(["echo"]).read_buffer_size(16 * 1024).on_upgrade(echo)
}

/// Sends every message back as it came. The text `close` has it say goodbye first.
async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let sent = match message {
            Message::Text(text) if text.as_str() == "close" => socket.send(Message::Close(None)),
            Message::Text(_) | Message::Binary(_) => socket.send(message),
            // Answered by axum.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => continue,
        };
        if sent.await.is_err() {
            return;
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let place = std::env::args().nth(1).ok_or("say a broker's URL, or an address to listen on")?;
    if place.starts_with("nats://") {
        let options = Options::new(SUBJECT).broker(BrokerConfig::new(&place)?);
        serve(options, router(), shutdown_signal()?).await?;
        return Ok(());
    }
    let listener = tokio::net::TcpListener::bind(place).await?;
    // As gateways have it, or small answers wait for what the client acknowledges late.
    let listener = listener.tap_io(|stream| {
        stream.set_nodelay(true).ok();
    });
    axum::serve(listener, router()).await?;
    Ok(())
}
