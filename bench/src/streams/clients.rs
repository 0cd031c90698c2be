//! The loads: clients with a connection each, that ask one thing after the other.

use std::convert::Infallible;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::{BufMut, Bytes};
use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::AbortOnDropHandle;

/// What an upload is written in.
const PIECE_BYTES: usize = 64 << 10;

/// Downloads that small requests are beside of.
const BULK: usize = 4;
const BULK_BYTES: u64 = 100 << 20;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Bodies of so many bytes, by so many clients.
    Down(u64, usize),
    /// The same, the other way.
    Up(u64, usize),
    /// A message of 16 bytes and its echo, by so many clients.
    Echo(usize),
    /// Unary calls by gRPC, with 100 bytes each way.
    Call(usize),
    /// Requests by so many clients, each answered by so many bytes.
    Hello(usize, u64),
    /// Small requests by one client, beside full-speed downloads or not.
    Small { is_beside: bool },
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) took: Vec<Duration>,
    pub(crate) bytes: u64,
}

impl Load {
    pub(crate) fn all() -> Vec<Self> {
        let sizes = [64 << 10, 1 << 20, 100 << 20];
        let clients = [1, 8, 64];
        let bodies = |load: fn(u64, usize) -> Self| {
            sizes.into_iter().flat_map(move |bytes| clients.map(|clients| load(bytes, clients)))
        };
        let small = [false, true].map(|is_beside| Self::Small { is_beside });
        let others = [Self::Echo(1), Self::Echo(64), Self::Call(1), Self::Call(8)];
        bodies(Self::Down).chain(bodies(Self::Up)).chain(others).chain(small).collect()
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| match bytes >> 20 {
            0 => format!("{} KiB", bytes >> 10),
            mib => format!("{mib} MiB"),
        };
        match *self {
            Self::Down(bytes, clients) => write!(f, "down {}, {clients} clients", size(bytes)),
            Self::Up(bytes, clients) => write!(f, "up {}, {clients} clients", size(bytes)),
            Self::Echo(clients) => write!(f, "WebSocket echo, {clients} clients"),
            Self::Call(clients) => write!(f, "gRPC unary, {clients} clients"),
            Self::Hello(clients, _) => write!(f, "hello, {clients} clients"),
            Self::Small { is_beside: false } => write!(f, "small requests alone"),
            Self::Small { is_beside: true } => write!(f, "small requests, {BULK} downloads beside"),
        }
    }
}

impl Ran {
    /// A quantile of what each took.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        let mut took = self.took.clone();
        took.sort_unstable();
        let last = took.len().saturating_sub(1);
        let at = (last as f64 * quantile).round() as usize;
        took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3)
    }
}

/// Runs a load for so long; what has begun by then is finished.
///
/// # Errors
/// An answer that is not as it should be.
pub(crate) async fn run(load: &Load, port: u16, lasts: Duration) -> Result<Ran> {
    let ends_at = Instant::now() + lasts;
    let clients = match *load {
        Load::Down(_, clients) | Load::Up(_, clients) => clients,
        Load::Echo(clients) | Load::Call(clients) | Load::Hello(clients, _) => clients,
        Load::Small { .. } => 1,
    };
    let mut beside = Vec::new();
    if *load == (Load::Small { is_beside: true }) {
        for _ in 0..BULK {
            let bulk = client(Load::Down(BULK_BYTES, 1), port, ends_at + lasts);
            beside.push(AbortOnDropHandle::new(tokio::spawn(bulk)));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let clients = (0..clients).map(|_| tokio::spawn(client(*load, port, ends_at)));
    let mut sum = Ran::default();
    for ran in try_join_all(clients).await? {
        let ran = ran?;
        sum.bytes += ran.bytes;
        sum.took.extend(ran.took);
    }
    for bulk in &beside {
        ensure!(!bulk.is_finished(), "a download beside them ended");
    }
    Ok(sum)
}

async fn client(load: Load, port: u16, ends_at: Instant) -> Result<Ran> {
    match load {
        Load::Echo(_) => echoes(port, ends_at).await,
        Load::Call(_) => calls(port, ends_at).await,
        Load::Down(bytes, _) => bodies(port, ends_at, bytes, || get(bytes)).await,
        Load::Up(bytes, _) => bodies(port, ends_at, bytes, || put(bytes)).await,
        Load::Hello(_, bytes) => bodies(port, ends_at, bytes, || hello(bytes)).await,
        Load::Small { .. } => bodies(port, ends_at, 39, || hello(39)).await,
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request, and the bytes that its answer has.
type Asked = (Request<Body>, u64);

fn request(path: String, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.uri_mut() = path.try_into().expect("a path");
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    request
}

fn get(bytes: u64) -> Asked {
    (request(format!("/stream/{bytes}"), Empty::new().boxed_unsync()), bytes)
}

fn hello(bytes: u64) -> Asked {
    (request("/".to_owned(), Empty::new().boxed_unsync()), bytes)
}

fn put(bytes: u64) -> Asked {
    static PIECE: [u8; PIECE_BYTES] = [b'x'; PIECE_BYTES];
    let pieces = stream::unfold(bytes, |left| async move {
        let length = left.min(PIECE_BYTES as u64);
        let piece = Bytes::from_static(&PIECE[..length as usize]);
        (length > 0).then(|| (Ok(Frame::data(piece)), left - length))
    });
    let mut request = request("/sink".to_owned(), StreamBody::new(pieces).boxed_unsync());
    *request.method_mut() = http::Method::POST;
    request.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
    (request, bytes.to_string().len() as u64)
}

/// One body after the other on a connection that is kept.
async fn bodies(port: u16, ends_at: Instant, bytes: u64, ask: impl Fn() -> Asked) -> Result<Ran> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut ran = Ran::default();
    while Instant::now() < ends_at {
        let (request, expected) = ask();
        let began = Instant::now();
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "{}", response.status());
        let (mut body, mut came) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            came += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        ensure!(came == expected, "{came} of {expected} bytes");
        ran.took.push(began.elapsed());
        ran.bytes += bytes;
    }
    Ok(ran)
}

async fn echoes(port: u16, ends_at: Instant) -> Result<Ran> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut socket, _) = tokio_tungstenite::client_async("ws://localhost/ws", stream).await?;
    let mut ran = Ran::default();
    while Instant::now() < ends_at {
        let began = Instant::now();
        socket.send(Message::text("sixteen letters.")).await?;
        let answer = socket.next().await.transpose()?;
        ensure!(answer == Some(Message::text("sixteen letters.")), "{answer:?}");
        ran.took.push(began.elapsed());
        ran.bytes += 32;
    }
    Ok(ran)
}

async fn calls(port: u16, ends_at: Instant) -> Result<Ran> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let message = {
        let mut framed = vec![0];
        framed.put_u32(100);
        framed.extend([b'x'; 100]);
        Bytes::from(framed)
    };
    let mut ran = Ran::default();
    while Instant::now() < ends_at {
        let mut call = Request::post("http://localhost/grpc").body(Full::new(message.clone()))?;
        let fields = call.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        let began = Instant::now();
        sender.ready().await?;
        let answer = sender.send_request(call).await?.into_body().collect().await?;
        let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status"));
        ensure!(status.is_some_and(|status| status == "0"), "{:?}", answer.trailers());
        ensure!(answer.to_bytes() == message, "another answer");
        ran.took.push(began.elapsed());
        ran.bytes += 2 * message.len() as u64;
    }
    Ok(ran)
}
