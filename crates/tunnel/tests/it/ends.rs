//! Both ends of a tunnel on a connection of their own: with our settings, or with the libraries'.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use natsway_tunnel::body::{DrainedBody, MergedBody};
use natsway_tunnel::http2::{self, Settings, StreamPermit, StreamSender};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A body of a test.
pub(crate) type TestBody = BoxBody<Bytes, io::Error>;

/// Whose settings and wrappers are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ends {
    /// What the libraries do when nothing is said.
    Defaults,
    Ours,
    /// As ours, but for these.
    Without(&'static [Cure]),
}

/// What keeps one stream from ending or stalling the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cure {
    /// The connection's window of 2 GiB.
    Window,
    /// `MergedBody` at the sender: small frames are joined, empty ones dropped, and the last byte
    /// of a known length ends the stream.
    Merging,
    /// `DrainedBody` at the receiver.
    Draining,
    /// No limit of streams that this end reset for late frames.
    LocalResets,
    /// Many reset streams are remembered, and for long.
    ResetMemory,
    /// Many resets may wait for the worker to accept their streams.
    PendingResets,
}

/// A gateway's end.
#[derive(Clone)]
pub(crate) enum Gateway {
    /// With what of [`Ends`] is no setting.
    Bare(hyper::client::conn::http2::SendRequest<TestBody>, Ends),
    Ours(StreamSender),
}

/// A response whose stream is open as long as this is held.
pub(crate) struct Opened {
    pub(crate) head: http::response::Parts,
    pub(crate) body: TestBody,
    pub(crate) _permit: Option<StreamPermit>,
}

/// How long anything may take that is not stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long something is watched that should be stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(2);

/// Ours, of a connection.
const WINDOW: u32 = (1 << 31) - 1;
/// Ours.
const RESET_MEMORY: Duration = Duration::from_secs(5);

impl Ends {
    /// Begins a tunnel whose worker is served at once.
    pub(crate) async fn connect(self) -> (Gateway, CancellationToken) {
        let (gateway, worker) = tokio::io::duplex(256 << 10);
        let leaving = self.serve(worker);
        (self.gateway(gateway).await, leaving)
    }

    /// Begins a tunnel whose gateway hears everything a moment after it was said.
    pub(crate) async fn connect_far(self) -> (Gateway, CancellationToken) {
        let (gateway, near) = tokio::io::duplex(256 << 10);
        let (far, worker) = tokio::io::duplex(256 << 10);
        let (from_gateway, to_gateway) = tokio::io::split(near);
        let (from_worker, to_worker) = tokio::io::split(far);
        tokio::spawn(pass_on(from_gateway, to_worker, Duration::ZERO));
        tokio::spawn(pass_on(from_worker, to_gateway, Duration::from_millis(5)));
        let leaving = self.serve(worker);
        (self.gateway(gateway).await, leaving)
    }

    /// Whether it has a cure.
    fn has(self, cure: Cure) -> bool {
        match self {
            Self::Defaults => false,
            Self::Ours => true,
            Self::Without(missing) => !missing.contains(&cure),
        }
    }

    /// Begins the gateway's end.
    pub(crate) async fn gateway(self, io: DuplexStream) -> Gateway {
        if self == Self::Ours {
            let (sender, connection) = http2::connect(io, &Settings::default()).await.unwrap();
            tokio::spawn(connection);
            return Gateway::Ours(sender);
        }
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        if self != Self::Defaults {
            let ours = Settings::default();
            builder
                .initial_stream_window_size(ours.stream_window_bytes)
                .initial_max_send_streams(ours.max_streams as usize)
                .max_send_buf_size(ours.send_buffer_bytes);
        }
        if self.has(Cure::Window) {
            builder.initial_connection_window_size(WINDOW);
        }
        if self.has(Cure::LocalResets) {
            builder.max_local_error_reset_streams(usize::MAX);
        }
        if self.has(Cure::ResetMemory) {
            builder.max_concurrent_reset_streams(100_000).reset_stream_duration(RESET_MEMORY);
        }
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Gateway::Bare(sender, self)
    }

    /// Begins the worker's end.
    pub(crate) fn serve(self, io: DuplexStream) -> CancellationToken {
        let leaving = CancellationToken::new();
        if self == Self::Ours {
            let left = leaving.clone();
            tokio::spawn(async move {
                http2::serve(io, service_fn(answer), &Settings::default(), left).await
            });
            return leaving;
        }
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        if self != Self::Defaults {
            let ours = Settings::default();
            builder
                .initial_stream_window_size(ours.stream_window_bytes)
                .max_concurrent_streams(ours.max_streams)
                .max_send_buf_size(ours.send_buffer_bytes);
        }
        if self.has(Cure::Window) {
            builder.initial_connection_window_size(WINDOW);
        }
        if self.has(Cure::LocalResets) {
            builder.max_local_error_reset_streams(usize::MAX);
        }
        if self.has(Cure::PendingResets) {
            builder.max_pending_accept_reset_streams(100_000);
        }
        let merges = self.has(Cure::Merging);
        let service = service_fn(move |request| async move {
            let response = answer(request).await?;
            Ok::<_, Infallible>(if merges { merged(response) } else { response })
        });
        tokio::spawn(builder.serve_connection(TokioIo::new(io), service));
        leaving
    }
}

/// Passes bytes on, each so long after it came.
async fn pass_on(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    delay: Duration,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(1_024);
    let reading = async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            let piece = Bytes::copy_from_slice(&piece[..count]);
            if sender.send((Instant::now() + delay, piece)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        to.shutdown().await.ok();
    };
    tokio::join!(reading, writing);
}

/// As [`http2::serve`] makes a response fit for the tunnel.
fn merged(response: Response<TestBody>) -> Response<TestBody> {
    let length =
        response.headers().get("content-length").map(|value| value.to_str().unwrap().parse());
    let length = length.transpose().unwrap();
    let has_trailers = response.headers().contains_key("trailer");
    let merged = |body| MergedBody::with_length(body, length, has_trailers);
    response.map(|body| merged(body).map_err(io::Error::other).boxed())
}

impl Gateway {
    /// Sends a request and waits for its response's head.
    pub(crate) async fn open(&mut self, path: &str, body: TestBody) -> Result<Opened, String> {
        let request = Request::post(format!("http://worker{path}"));
        match self {
            Self::Bare(sender, ends) => {
                let body = match ends.has(Cure::Merging) {
                    true => MergedBody::new(body).map_err(io::Error::other).boxed(),
                    false => body,
                };
                let response = sender.send_request(request.body(body).unwrap()).await;
                let (head, body) = response.map_err(|error| format!("{error:?}"))?.into_parts();
                let body = match ends.has(Cure::Draining) {
                    true => DrainedBody::new(body).map_err(io::Error::other).boxed(),
                    false => body.map_err(io::Error::other).boxed(),
                };
                Ok(Opened { head, body, _permit: None })
            }
            Self::Ours(sender) => {
                let permit = sender.streams().try_take().ok_or("all streams are open")?;
                let body = MergedBody::new(body).map_err(io::Error::other).boxed();
                let opened = sender.open(request.body(body).unwrap(), permit).await;
                let (response, permit) = opened.map_err(|error| format!("{error:?}"))?;
                let (head, body) = response.into_parts();
                let body = DrainedBody::new(body).map_err(io::Error::other).boxed();
                Ok(Opened { head, body, _permit: Some(permit) })
            }
        }
    }

    /// Whether a small request is answered, whole.
    pub(crate) async fn answers(&mut self) -> Result<(), String> {
        let asked = async {
            let opened = self.open("/small", empty()).await?;
            let body = opened.body.collect().await.map_err(|error| error.to_string())?;
            assert_eq!(body.to_bytes(), "small");
            Ok(())
        };
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_| "stuck".to_owned())?
    }
}

pub(crate) fn empty() -> TestBody {
    Empty::new().map_err(never).boxed()
}

/// A body of chunks, each of which is flushed by itself.
pub(crate) fn chunks(count: usize, chunk: &'static [u8]) -> TestBody {
    flushed(stream::iter((0..count).map(move |_| Bytes::from_static(chunk))))
}

fn flushed(chunks: impl Stream<Item = Bytes> + Send + Sync + 'static) -> TestBody {
    let frames = chunks.then(|chunk| async {
        tokio::task::yield_now().await;
        Ok::<_, io::Error>(Frame::data(chunk))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

fn never(never: Infallible) -> io::Error {
    match never {}
}

/// The worker's service: a response of each kind.
async fn answer(request: Request<Incoming>) -> Result<Response<TestBody>, Infallible> {
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        "/small" => Response::new(Full::from("small").map_err(never).boxed()),
        "/large" => Response::new(chunks(128, &[b'x'; 64 << 10])),
        "/tiny-chunks" => Response::new(chunks(200_000, b"0123456789")),
        "/empty-chunks" => Response::new(chunks(1_000, b"")),
        "/late-end" | "/late-trailers" => {
            // No frame, for an empty one does harm of its own.
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
            });
            let end = end.filter_map(|()| async { None });
            let data = stream::once(async { Bytes::from_static(&[b'x'; 4_096]) });
            let mut response = Response::new(flushed(data.chain(end)));
            response.headers_mut().insert("content-length", 4_096.into());
            if path == "/late-trailers" {
                response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
            }
            response
        }
        "/unread" => {
            // Holds the request's body without reading it.
            tokio::time::sleep(PATIENCE).await;
            drop(request);
            Response::new(empty())
        }
        "/slow" => {
            let words = stream::iter(0..20).then(|_| async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Bytes::from_static(b"word ")
            });
            Response::new(flushed(words))
        }
        "/echo" => Response::new(request.into_body().map_err(io::Error::other).boxed()),
        _ => {
            let mut response = Response::new(empty());
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            response
        }
    };
    Ok(response)
}
