//! An app that knows nothing of Natsway, to be put behind the sidecar by proofs: it listens at the
//! port that `PORT` says, and ends at SIGTERM.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request};
use axum::response::sse::{Event, Sse};
use axum::routing::{any, get};
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::net::TcpListener;

/// Events by this pause, until their reader leaves.
#[derive(Deserialize)]
struct Pace {
    ms: u64,
}

/// Gives back what marks a request: its query and its body.
async fn echo(request: Request) -> Result<String, String> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.map_err(|error| error.to_string())?;
    let query = head.uri.query().unwrap_or_default();
    Ok(format!("{} {query} {}", head.method, String::from_utf8_lossy(&body)))
}

async fn events(
    Query(Pace { ms }): Query<Pace>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold(0_u64, move |number| async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Some((
            Ok(Event::default().id(number.to_string()).data(format!("{{\"event\":{number}}}"))),
            number + 1,
        ))
    }))
}

async fn chat(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let is_data = matches!(message, Message::Text(_) | Message::Binary(_));
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::var("PORT").context("PORT")?.parse().context("PORT")?;
    let app = Router::new()
        .route("/health", get(async || "well"))
        .route("/echo", any(echo))
        .route("/events", get(events))
        .route(
            "/ws",
            get(async |upgrade: WebSocketUpgrade| {
                upgrade.read_buffer_size(4 * 1_024).on_upgrade(chat)
            }),
        );
    let listener = TcpListener::bind(("127.0.0.1", port)).await.context("listen")?;
    axum::serve(listener, app).await.context("serve")
}
