//! The demonstration endpoints whose bodies do not end small and soon, and the WebSocket.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;

use crate::problem::bad_request;

/// What a download is made of at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// How soon a pattern repeats: a prime, so that no piece of a usual size looks like the next one.
const PATTERN_BYTES: usize = 251;

/// The least time between two events.
const FASTEST_MS: u64 = 1;

/// The longest download.
const LONGEST_BYTES: u64 = 1 << 40;

/// The endpoints, at the root.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/events", get(events))
        .route("/download", get(download))
        .route("/upload", any(upload))
        .route("/ws", get(web_socket))
}

#[derive(Deserialize)]
struct Events {
    count: Option<u64>,
    ms: Option<u64>,
}

/// Server-sent events, one after the other; without an end if no count is given.
async fn events(Query(Events { count, ms }): Query<Events>) -> Response {
    let pause = Duration::from_millis(ms.unwrap_or(1_000).max(FASTEST_MS));
    let events = stream::unfold(0_u64, move |number| async move {
        if count.is_some_and(|count| number >= count) {
            return None;
        }
        if number > 0 {
            tokio::time::sleep(pause).await;
        }
        let event = format!("id: {number}\ndata: {{\"event\":{number}}}\n\n");
        Some((Ok::<_, Infallible>(Bytes::from(event)), number + 1))
    });
    let fields = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (fields, Body::from_stream(events)).into_response()
}

#[derive(Deserialize)]
struct Download {
    bytes: u64,
    #[serde(default)]
    chunked: bool,
    /// The byte at offset `o` is `(o + pattern) % 251`; all are `x` without.
    pattern: Option<u64>,
}

/// A body of any length, made as it is read; of a length that is said, unless `chunked=true`.
async fn download(
    query: Result<Query<Download>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(Download { bytes, chunked, pattern })) = query else {
        return bad_request(format!("expected ?bytes=0 to ?bytes={LONGEST_BYTES}"));
    };
    if bytes > LONGEST_BYTES {
        return bad_request(format!("expected ?bytes=0 to ?bytes={LONGEST_BYTES}"));
    }
    let chunks = stream::unfold(0, move |sent| async move {
        let length = (bytes - sent).min(CHUNK_BYTES as u64);
        let chunk = chunk(pattern, sent, length as usize);
        (length > 0).then(|| (Ok::<_, Infallible>(chunk), sent + length))
    });
    let body = Body::from_stream(chunks);
    let kind = (CONTENT_TYPE, "application/octet-stream");
    match chunked {
        true => ([kind], body).into_response(),
        false => ([kind], [(CONTENT_LENGTH, bytes.to_string())], body).into_response(),
    }
}

/// What stands at an offset of a download.
fn chunk(pattern: Option<u64>, offset: u64, length: usize) -> Bytes {
    static PLAIN: [u8; CHUNK_BYTES] = [b'x'; CHUNK_BYTES];
    static PATTERN: [u8; CHUNK_BYTES + PATTERN_BYTES] = {
        let mut bytes = [0; CHUNK_BYTES + PATTERN_BYTES];
        let mut at = 0;
        while at < bytes.len() {
            bytes[at] = (at % PATTERN_BYTES) as u8;
            at += 1;
        }
        bytes
    };
    let Some(pattern) = pattern else { return Bytes::from_static(&PLAIN[..length]) };
    let period = PATTERN_BYTES as u64;
    let begin = ((offset % period + pattern % period) % period) as usize;
    Bytes::from_static(&PATTERN[begin..begin + length])
}

/// Reads a body of any length, and says how long it was.
async fn upload(request: Request) -> Response {
    let mut chunks = request.into_body().into_data_stream();
    let (mut bytes, mut sum) = (0_u64, 0_u64);
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => {
                bytes += chunk.len() as u64;
                sum = chunk.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
            }
            Err(error) => return bad_request(format!("the body broke off: {error}")),
        }
    }
    Json(json!({ "bytes": bytes, "sum": sum })).into_response()
}

/// Sends back every message of a WebSocket.
async fn web_socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.read_buffer_size(16 * 1024).on_upgrade(echo)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let is_data = matches!(message, Message::Text(_) | Message::Binary(_));
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_goes_on_from_one_chunk_to_the_next() {
        let whole: Vec<u8> = (0..1_000_u64).map(|offset| ((offset + 7) % 251) as u8).collect();
        for cut in [0, 1, 250, 251, 252, 999, 1_000] {
            let parts = [chunk(Some(7), 0, cut), chunk(Some(7), cut as u64, 1_000 - cut)];
            assert_eq!(parts.concat(), whole, "cut at {cut}");
        }
        assert_eq!(chunk(Some(u64::MAX), 250, 2).len(), 2);
        assert_eq!(chunk(None, 5, 3), "xxx");
    }
}
