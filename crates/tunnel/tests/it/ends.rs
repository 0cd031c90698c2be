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
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

/// A body of a test.
pub(crate) type TestBody = BoxBody<Bytes, io::Error>;

/// Whose settings and wrappers are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ends {
    /// What the libraries do when nothing is said.
    Defaults,
    Ours,
}

/// A gateway's end.
#[derive(Clone)]
pub(crate) enum Gateway {
    Defaults(hyper::client::conn::http2::SendRequest<TestBody>),
    Ours(StreamSender<TestBody>),
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

impl Ends {
    /// Begins a tunnel whose worker is served at once.
    pub(crate) async fn connect(self) -> (Gateway, CancellationToken) {
        let (gateway, worker) = tokio::io::duplex(256 << 10);
        let leaving = self.serve(worker);
        (self.gateway(gateway).await, leaving)
    }

    /// Begins the gateway's end.
    pub(crate) async fn gateway(self, io: DuplexStream) -> Gateway {
        match self {
            Ends::Defaults => {
                let (sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
                        .await
                        .unwrap();
                tokio::spawn(connection);
                Gateway::Defaults(sender)
            }
            Ends::Ours => {
                let (sender, connection) = http2::connect(io, &Settings::default()).await.unwrap();
                tokio::spawn(connection);
                Gateway::Ours(sender)
            }
        }
    }

    /// Begins the worker's end.
    pub(crate) fn serve(self, io: DuplexStream) -> CancellationToken {
        let leaving = CancellationToken::new();
        match self {
            Ends::Defaults => {
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(io), service_fn(answer));
                tokio::spawn(connection);
            }
            Ends::Ours => {
                let leaving = leaving.clone();
                tokio::spawn(async move {
                    http2::serve(io, service_fn(answer), &Settings::default(), leaving).await
                });
            }
        }
        leaving
    }
}

impl Gateway {
    /// Sends a request and waits for its response's head.
    pub(crate) async fn open(&mut self, path: &str, body: TestBody) -> Result<Opened, String> {
        let request = Request::post(format!("http://worker{path}"));
        match self {
            Gateway::Defaults(sender) => {
                let response = sender.send_request(request.body(body).unwrap()).await;
                let (head, body) = response.map_err(|error| format!("{error:?}"))?.into_parts();
                let body = body.map_err(io::Error::other).boxed();
                Ok(Opened { head, body, _permit: None })
            }
            Gateway::Ours(sender) => {
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
        tokio::time::timeout(STUCK, asked).await.map_err(|_| "stuck".to_owned())?
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
            let end = stream::once(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Bytes::new()
            });
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
