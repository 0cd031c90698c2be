//! The worker's end: serves the streams that the gateway opens.

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use natsway_wire::content_type::is_grpc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::linger::Lingering;
use crate::body::MergedBody;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is held as long as the connection that a stream becomes: an extension of the response that
/// says yes.
#[derive(Clone)]
pub struct HeldByUpgrade {
    _held: Arc<dyn Any + Send + Sync>,
}

impl HeldByUpgrade {
    /// Holds this, until the handler has ended its sending side or the stream is reset.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Arc::new(held) }
    }
}

tokio::task_local! {
    /// What a stream's response said is to be held.
    static HELD: RefCell<Option<HeldByUpgrade>>;
}

/// Runs streams as tasks. What a handler sends on a connection that its stream became is a task of
/// its own, which `hyper` begins from that of the response: it takes what is to be held.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamExecutor;

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let held = HELD.try_with(RefCell::take).ok().flatten();
        tokio::spawn(HELD.scope(RefCell::default(), async move {
            future.await;
            drop(held);
        }));
    }
}

/// Serves the streams of a connection to a gateway until it ends.
///
/// Once `leaving` is cancelled, the gateway is told to open no further stream. Those that run go on
/// to their end, and the connection closes after the last of them, once the gateway has read it.
///
/// # Errors
/// If the connection ended otherwise than by either side's closing it.
pub async fn serve<T, S, B>(
    io: T,
    service: S,
    settings: &Settings,
    leaving: CancellationToken,
) -> Result<(), hyper::Error>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<
            Request<Incoming>,
            Response = Response<B>,
            Error: Into<BoxError>,
            Future: Send + 'static,
        >,
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + Unpin + 'static>
        + Send
        + Unpin
        + 'static,
{
    let merged = service_fn(|request: Request<Incoming>| {
        let is_head = request.method() == http::Method::HEAD;
        let response = service.call(request);
        async move {
            let mut response = response.await?;
            if let Some(held) = response.extensions_mut().remove::<HeldByUpgrade>() {
                HELD.with(|place| place.replace(Some(held)));
            }
            Ok::<_, S::Error>(merge(response, is_head))
        }
    });
    let io = TokioIo::new(Lingering::new(io));
    let connection = settings.server().serve_connection(io, merged);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = leaving.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Makes a response's body fit for the tunnel, by the length that its head declares.
fn merge<B>(response: Response<B>, is_head: bool) -> Response<MergedBody<B>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, body) = response.into_parts();
    // A call by gRPC has its status there, and need not say so.
    let has_trailers = head.headers.contains_key(http::header::TRAILER) || is_grpc(&head.headers);
    let declared = head
        .headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    // The length of what is not sent: RFC 9110, 8.6.
    let bodiless = is_head || head.status == http::StatusCode::NOT_MODIFIED;
    let length = match declared {
        _ if bodiless => None,
        Some(length) => Some(length),
        None => body.size_hint().exact(),
    };
    Response::from_parts(head, MergedBody::with_length(body, length, has_trailers))
}
