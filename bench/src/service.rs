//! The service that is asked: one axum `Router`, served by axum itself or over NATS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use natsway_worker::{BrokerConfig, Options, serve, serve_local, shutdown_signal};
use tokio::task::JoinSet;

/// What is answered at `/`, byte for byte.
pub const GREETING: &str = r#"{"service":"demo","message":"it works"}"#;

/// A mistake in a path should not take the machine's memory.
const MOST_BYTES: usize = 16 << 20;

/// Where the service is served over NATS, and by how many.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// The broker's address
    #[arg(long, value_name = "URL")]
    nats_url: String,

    /// Subjects, several with commas between
    #[arg(long, value_name = "SUBJECTS", value_delimiter = ',', required = true)]
    subjects: Vec<String>,

    /// Handlers run on the threads that read
    #[arg(long)]
    per_core: bool,

    /// Threads that read, each with a broker connection
    #[arg(long, value_name = "COUNT")]
    readers: Option<NonZeroUsize>,

    /// Bytes that a gateway may send of one body before the handler has taken them
    #[arg(long, value_name = "BYTES", default_value = "262144")]
    tunnel_window: u32,

    /// Workers in this process, each with connections of its own
    #[arg(long, value_name = "COUNT", default_value = "1")]
    instances: NonZeroUsize,
}

/// What a streamed body is made of at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// The service: `/`, `/bytes/{count}`, and `/echo`; and the streams `/stream/{count}`, `/sink`,
/// `/ws` and `/grpc`.
pub fn router() -> Router {
    let greet = async || ([(CONTENT_TYPE, "application/json")], GREETING);
    Router::new()
        .route("/", any(greet))
        .route("/bytes/{count}", get(bytes))
        .route("/echo", post(echo))
        .route("/stream/{count}", get(streamed))
        .route("/sink", post(sink))
        .route("/ws", get(web_socket))
        .route("/grpc", post(call))
}

async fn bytes(Path(count): Path<usize>) -> Response {
    if count > MOST_BYTES {
        return StatusCode::BAD_REQUEST.into_response();
    }
    "x".repeat(count).into_response()
}

async fn echo(body: Bytes) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// A body that is made as it is read, of a length that is said.
async fn streamed(Path(count): Path<u64>) -> Response {
    static CHUNK: [u8; CHUNK_BYTES] = [b'x'; CHUNK_BYTES];
    let chunks = stream::unfold(count, |left| async move {
        let length = left.min(CHUNK_BYTES as u64);
        let chunk = Bytes::from_static(&CHUNK[..length as usize]);
        (length > 0).then(|| (Ok::<_, Infallible>(chunk), left - length))
    });
    ([(CONTENT_LENGTH, count.to_string())], Body::from_stream(chunks)).into_response()
}

/// Reads a body, and says how long it was.
async fn sink(body: Body) -> Result<String, StatusCode> {
    let (mut chunks, mut bytes) = (body.into_data_stream(), 0);
    while let Some(chunk) = chunks.next().await {
        bytes += chunk.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok(bytes.to_string())
}

async fn web_socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.read_buffer_size(16 << 10).on_upgrade(async |mut socket: WebSocket| {
        while let Some(Ok(message)) = socket.recv().await {
            let is_data = matches!(message, Message::Text(_) | Message::Binary(_));
            if is_data && socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// A unary call that gives its message back, as it was framed.
async fn call(body: Bytes) -> Response {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))));
    ([(CONTENT_TYPE, "application/grpc")], Body::new(body)).into_response()
}

/// Serves it over HTTP until killed.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_direct(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    axum::serve(listener, router()).await?;
    Ok(())
}

/// Serves it over NATS until the process is told to stop.
///
/// # Errors
/// The arguments are no subjects or no address, or a worker ends in an error.
pub async fn serve_worker(args: &WorkerArgs) -> anyhow::Result<()> {
    let mut instances = JoinSet::new();
    for _ in 0..args.instances.get() {
        let options = args.options()?;
        let shutdown = shutdown_signal()?;
        if args.per_core {
            instances.spawn(async { serve_local(options, router, shutdown).await });
        } else {
            instances.spawn(async { serve(options, router(), shutdown).await });
        }
    }
    while let Some(ended) = instances.join_next().await {
        ended??;
    }
    Ok(())
}

impl WorkerArgs {
    fn options(&self) -> anyhow::Result<Options> {
        let (first, others) =
            self.subjects.split_first().context("--subjects: expected one at least")?;
        ensure!(!first.is_empty(), "--subjects: expected subjects with commas between");
        let options = Options::new(first)
            .broker(BrokerConfig::new(&self.nats_url)?)
            .max_in_flight(8_192)
            .tunnel_window(self.tunnel_window);
        let options = others.iter().fold(options, |options, subject| options.and_subject(subject));
        Ok(match self.readers {
            Some(readers) => options.readers(readers),
            None => options,
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(request: http::Request<axum::body::Body>) -> (StatusCode, String) {
        let response = router().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_service_answers_what_the_loads_expect() {
        let get = |path: &str| http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        assert_eq!(ask(get("/")).await, (StatusCode::OK, GREETING.to_owned()));
        assert_eq!(ask(get("/bytes/3")).await, (StatusCode::OK, "xxx".to_owned()));
        assert_eq!(ask(get("/bytes/99999999")).await.0, StatusCode::BAD_REQUEST);
        let post = http::Request::post("/echo").body("\"xx\"".into()).unwrap();
        assert_eq!(ask(post).await, (StatusCode::OK, "\"xx\"".to_owned()));
        assert_eq!(ask(get("/stream/70000")).await.1.len(), 70_000);
        let post = http::Request::post("/sink").body("four".into()).unwrap();
        assert_eq!(ask(post).await, (StatusCode::OK, "4".to_owned()));
    }
}
