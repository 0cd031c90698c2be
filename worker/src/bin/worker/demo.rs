//! The demonstration endpoints: an ordinary axum router that knows nothing of NATS.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::any;
use axum::{Router, body::Bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::problem::bad_request;
use crate::{streaming, sum};

/// What `/` answers: 39 bytes of JSON.
const GREETING: &str = r#"{"service":"demo","message":"it works"}"#;

/// The longest wait that `/slow` accepts, in milliseconds.
const SLOWEST_MS: u64 = 60_000;

/// The longest body that `/big` makes.
const BIGGEST_BYTES: usize = 64 << 20;

/// Which worker answers.
#[derive(Serialize)]
pub(crate) struct Whoami {
    subject: String,
    version: String,
    instance: String,
}

impl Whoami {
    pub(crate) fn new(subject: &str, instance: &str) -> Self {
        let version = subject.rsplit('.').next().unwrap_or(subject);
        Self {
            subject: subject.to_owned(),
            version: version.to_owned(),
            instance: instance.to_owned(),
        }
    }
}

/// The endpoints, at the root.
pub(crate) fn router(whoami: Whoami) -> Router {
    Router::new()
        .route("/", any(greet))
        .route("/echo", any(echo))
        .route("/sum", any(sum::add))
        .route("/slow", any(slow))
        .route("/status/{code}", any(status))
        .route("/big", any(big))
        .route("/version", any(version))
        .route("/panic", any(panic))
        .merge(streaming::router())
        .with_state(Arc::new(whoami))
}

async fn greet() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], GREETING)
}

async fn version(State(whoami): State<Arc<Whoami>>) -> Response {
    Json(&*whoami).into_response()
}

async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Json<Value> {
    let lossy = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), lossy(value.as_bytes())]))
        .collect();
    let (encoding, body) = match std::str::from_utf8(&body) {
        Ok(text) => ("text", text.to_owned()),
        Err(_) => ("base64", STANDARD.encode(&body)),
    };
    Json(json!({
        "method": method.as_str(),
        "path": uri.path(),
        "query": uri.query(),
        "headers": headers,
        "body": body,
        "body_encoding": encoding,
    }))
}

#[derive(Deserialize)]
struct Slow {
    ms: u64,
}

#[tracing::instrument(skip_all)]
async fn slow(query: Result<Query<Slow>, axum::extract::rejection::QueryRejection>) -> Response {
    let ms = match query {
        Ok(Query(Slow { ms })) if ms <= SLOWEST_MS => ms,
        _ => return bad_request(format!("expected ?ms=0 to ?ms={SLOWEST_MS}")),
    };
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Json(json!({ "waited_ms": ms })).into_response()
}

async fn status(Path(code): Path<String>) -> Response {
    let code = code.parse().ok().filter(|code| (200..600).contains(code));
    match code.and_then(|code| StatusCode::from_u16(code).ok()) {
        Some(status) => (status, status.canonical_reason().unwrap_or_default()).into_response(),
        None => bad_request("expected /status/200 to /status/599"),
    }
}

#[derive(Deserialize)]
struct Big {
    bytes: usize,
}

async fn big(query: Result<Query<Big>, axum::extract::rejection::QueryRejection>) -> Response {
    match query {
        Ok(Query(Big { bytes })) if bytes <= BIGGEST_BYTES => "x".repeat(bytes).into_response(),
        _ => bad_request(format!("expected ?bytes=0 to ?bytes={BIGGEST_BYTES}")),
    }
}

async fn panic() -> StatusCode {
    panic!("asked to panic")
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    pub(crate) async fn call(request: Request<Body>) -> (StatusCode, String) {
        let response = router(Whoami::new("svc.demo.blue", "abc")).oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(path: &str) -> (StatusCode, String) {
        call(Request::get(path).body(Body::empty()).unwrap()).await
    }

    #[tokio::test]
    async fn the_greeting_has_the_length_that_benches_count_on() {
        let (status, body) = get("/").await;
        assert_eq!((status, body.len()), (StatusCode::OK, 39));
    }

    #[tokio::test]
    async fn echo_gives_back_what_came() {
        let request = Request::put("/echo?a=1&b").header("x-a", "1").header("x-a", "2");
        let (_, body) = call(request.body(Body::from("h\u{e9}")).unwrap()).await;
        let expected = json!({
            "method": "PUT", "path": "/echo", "query": "a=1&b", "headers": [["x-a", "1"], ["x-a", "2"]],
            "body": "h\u{e9}", "body_encoding": "text",
        });
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
    }

    #[tokio::test]
    async fn echo_gives_back_bytes_that_are_no_text() {
        let (_, body) = call(Request::post("/echo").body(Body::from(vec![0xff, 0])).unwrap()).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["body"], &body["body_encoding"]), (&json!("/wA="), &json!("base64")));
    }

    #[tokio::test]
    async fn statuses_are_as_asked_for() {
        assert_eq!(get("/status/418").await.0, StatusCode::IM_A_TEAPOT);
        for path in
            ["/status/199", "/status/600", "/status/x", "/slow", "/slow?ms=60001", "/big?bytes=-1"]
        {
            assert_eq!(get(path).await.0, StatusCode::BAD_REQUEST, "{path}");
        }
        assert_eq!(get("/nowhere").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn version_says_who_answers() {
        let (_, body) = get("/version").await;
        assert_eq!(body, r#"{"subject":"svc.demo.blue","version":"blue","instance":"abc"}"#);
        assert_eq!(get("/slow?ms=0").await.1, r#"{"waited_ms":0}"#);
        assert_eq!(get("/big?bytes=3").await.1, "xxx");
    }
}
