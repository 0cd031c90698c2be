//! Clients over HTTP/1.1 and HTTP/2, and one by the byte.

use std::convert::Infallible;
use std::fmt::Debug;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::DEADLINE;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The versions of HTTP that clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

pub(super) const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// One connection.
pub(super) enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    pub(super) async fn connect(port: u16, version: Version) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self::Http1(sender)
            }
            Version::Http2 => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        }
    }

    /// Sends a request; its target is a path.
    pub(super) async fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        let limit = DEADLINE;
        let answered = async {
            match self {
                Self::Http1(sender) => {
                    request.headers_mut().insert("host", "localhost".parse().unwrap());
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Self::Http2(sender) => {
                    let uri = format!("http://localhost{}", request.uri());
                    *request.uri_mut() = uri.parse().unwrap();
                    sender.send_request(request).await
                }
            }
        };
        tokio::time::timeout(limit, answered).await.expect("an answer in time")
    }
}

/// A body of one piece, or of none.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body without an end, and without a length.
pub(super) fn endless() -> Body {
    static PIECE: [u8; 16 * 1024] = [b'x'; 16 * 1024];
    let pieces = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&PIECE))));
    StreamBody::new(pieces).boxed_unsync()
}

/// A response, read to its end.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

pub(super) async fn read<B>(response: Response<B>) -> Read
where
    B: http_body::Body<Data = Bytes, Error: Debug>,
{
    let (head, body) = response.into_parts();
    let collected = tokio::time::timeout(DEADLINE, body.collect()).await;
    let collected = collected.expect("an end in time").expect("a whole body");
    let trailers = collected.trailers().cloned();
    Read { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers }
}

impl Read {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The code of a problem of the gateway or of the worker's library.
    pub(super) fn code(&self) -> String {
        let problem: serde_json::Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        problem["code"].as_str().unwrap().to_owned()
    }
}

/// The status and body of a GET on a connection of its own.
pub(super) async fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let text = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()))
}

/// A client that says exactly what it is told to.
#[derive(Debug)]
pub(super) struct RawClient {
    pub(super) stream: TcpStream,
    read: Vec<u8>,
}

impl RawClient {
    pub(super) async fn connect(port: u16) -> Self {
        Self::connect_as("127.0.0.1", port).await
    }

    /// One that has this address.
    pub(super) async fn connect_as(address: &str, port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        let gateway = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = socket.connect(gateway).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Asks for a WebSocket, and reads the head of the answer.
    pub(super) async fn ask_for_web_socket(&mut self, path: &str) -> String {
        self.say_web_socket(path).await;
        self.head().await
    }

    /// Asks for a WebSocket.
    pub(super) async fn say_web_socket(&mut self, path: &str) {
        self.say(&format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .await;
    }

    /// Fills a buffer with what comes.
    pub(super) async fn read_exactly(&mut self, buffer: &mut [u8]) {
        let reading = async {
            while self.read.len() < buffer.len() {
                assert!(self.stream.read_buf(&mut self.read).await.unwrap() > 0, "more is to come");
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.expect("it comes in time");
        buffer.copy_from_slice(&self.read[..buffer.len()]);
        self.read.drain(..buffer.len());
    }

    /// Reads all that comes until the end, or why that is none.
    pub(super) async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let reading = self.stream.read_to_end(&mut self.read);
        tokio::time::timeout(DEADLINE, reading).await.expect("an end in time")?;
        Ok(std::mem::take(&mut self.read))
    }

    pub(super) async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads a head: all of it up to the empty line.
    pub(super) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Reads up to and with a text.
    pub(super) async fn until(&mut self, end: &str) -> String {
        let reading = async {
            loop {
                let found =
                    self.read.windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(at) = found {
                    let rest = self.read.split_off(at + end.len());
                    return std::mem::replace(&mut self.read, rest);
                }
                let count = self.stream.read_buf(&mut self.read).await.unwrap();
                let so_far = String::from_utf8_lossy(&self.read);
                assert!(count > 0, "{end:?} is to come after {so_far:?}");
            }
        };
        let read = tokio::time::timeout(DEADLINE, reading).await.expect("it comes in time");
        String::from_utf8(read).unwrap()
    }
}
