//! Clients of streams: what they ask for, and how it ended for them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

/// What an upload is made of.
const LETTER: u8 = b'x';

/// How soon the pattern of the demonstration worker's downloads repeats.
const PATTERN_BYTES: u64 = 251;

/// How a response looked from its client's side.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) bytes: u64,
    /// Whether it ended as bodies end; else it broke off, visibly.
    pub(super) is_whole: bool,
    /// Whether every byte was the one that it should be.
    pub(super) is_intact: bool,
}

impl Seen {
    /// Whether it is all that was asked for, or breaks off where its client sees it.
    pub(super) fn is_honest(&self, asked_bytes: u64) -> bool {
        self.is_intact && (!self.is_whole || self.bytes == asked_bytes)
    }

    /// Whether it is all that was asked for.
    pub(super) fn is_complete(&self, asked_bytes: u64) -> bool {
        let is_all = self.is_whole && self.is_intact && self.bytes == asked_bytes;
        self.status == StatusCode::OK && is_all
    }
}

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Connects to the first of these ports of 127.0.0.1 that accepts.
pub(super) async fn connect(ports: &[u16]) -> anyhow::Result<TcpStream> {
    let addresses: Vec<_> =
        ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
    let stream = TcpStream::connect(&addresses[..]).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection of HTTP/1.1.
pub(super) struct Client(SendRequest<Body>);

impl Client {
    pub(super) async fn connect(ports: &[u16]) -> anyhow::Result<Self> {
        let stream = connect(ports).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    pub(super) async fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> anyhow::Result<http::Response<Incoming>> {
        self.0.ready().await?;
        request.headers_mut().insert("host", HeaderValue::from_static("localhost"));
        Ok(self.0.send_request(request).await?)
    }

    /// Downloads so many bytes and checks each.
    pub(super) async fn download(
        &mut self,
        bytes: u64,
        is_chunked: bool,
        rate: Rate,
    ) -> anyhow::Result<Seen> {
        let pattern = fastrand::u64(..PATTERN_BYTES);
        let path = format!("/download?bytes={bytes}&chunked={is_chunked}&pattern={pattern}");
        let request = Request::get(path).body(Empty::new().boxed_unsync())?;
        follow(self.send(request).await?, rate, Some(pattern)).await
    }
}

async fn send(ports: &[u16], request: Request<Body>) -> anyhow::Result<http::Response<Incoming>> {
    Client::connect(ports).await?.send(request).await
}

/// How fast a client reads or writes, in bytes a second; as fast as it can without.
pub(super) type Rate = Option<u32>;

/// Waits until so many bytes since a start are no more than the rate allows.
async fn keep_to(rate: Rate, start: Instant, bytes: u64) {
    if let Some(rate) = rate {
        let due = start + Duration::from_secs_f64(bytes as f64 / f64::from(rate));
        tokio::time::sleep_until(due).await;
    }
}

/// Asks, and reads to the end.
pub(super) async fn read(
    ports: &[u16],
    method: Method,
    path: &str,
    rate: Rate,
) -> anyhow::Result<Seen> {
    let request = Request::builder().method(method).uri(path).body(Empty::new().boxed_unsync())?;
    follow(send(ports, request).await?, rate, None).await
}

/// Reads a response to its end, each byte of which is known if it has a pattern.
async fn follow(
    response: http::Response<Incoming>,
    rate: Rate,
    pattern: Option<u64>,
) -> anyhow::Result<Seen> {
    let (head, mut body) = response.into_parts();
    let mut seen = Seen {
        status: head.status,
        headers: head.headers,
        bytes: 0,
        is_whole: false,
        is_intact: true,
    };
    let start = Instant::now();
    loop {
        let before = seen.bytes;
        match body.frame().await {
            None => {
                seen.is_whole = true;
                return Ok(seen);
            }
            Some(Err(_)) => return Ok(seen),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    seen.bytes += data.len() as u64;
                    if let Some(pattern) = pattern {
                        seen.is_intact &= is_pattern(data, before + pattern);
                    }
                }
            }
        }
        keep_to(rate, start, seen.bytes).await;
    }
}

/// Whether bytes are those of a pattern from an offset on.
fn is_pattern(data: &[u8], offset: u64) -> bool {
    let begin = (offset % PATTERN_BYTES) as usize;
    let period = PATTERN_BYTES as usize;
    let (first, rest) = data.split_at(data.len().min(period));
    let is_begun =
        first.iter().enumerate().all(|(at, byte)| usize::from(*byte) == (begin + at) % period);
    // The rest repeats what was before it.
    is_begun && rest == &data[..rest.len()]
}

/// Downloads so many bytes.
pub(super) async fn download(
    ports: &[u16],
    bytes: u64,
    is_chunked: bool,
    rate: Rate,
) -> anyhow::Result<Seen> {
    Client::connect(ports).await?.download(bytes, is_chunked, rate).await
}

/// How an upload was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uploaded {
    pub(super) status: StatusCode,
    /// The bytes that arrived, if all of them were those that were sent.
    pub(super) bytes: Option<u64>,
}

impl Uploaded {
    /// Whether all bytes arrived.
    pub(super) fn is_complete(&self, sent_bytes: u64) -> bool {
        *self == Self { status: StatusCode::OK, bytes: Some(sent_bytes) }
    }
}

/// Uploads so many bytes in pieces.
pub(super) async fn upload(
    ports: &[u16],
    bytes: u64,
    is_chunked: bool,
    rate: Rate,
) -> anyhow::Result<Uploaded> {
    const PIECE: usize = 16 * 1024;
    static PIECES: [u8; PIECE] = [LETTER; PIECE];
    let start = Instant::now();
    let pieces = stream::unfold(bytes, move |left| async move {
        let length = left.min(PIECE as u64);
        keep_to(rate, start, bytes - left).await;
        let piece = Bytes::from_static(&PIECES[..usize::try_from(length).unwrap_or(PIECE)]);
        (length > 0).then(|| (Ok(Frame::data(piece)), left - length))
    });
    let mut request = Request::post("/upload").body(StreamBody::new(pieces).boxed_unsync())?;
    if !is_chunked {
        request.headers_mut().insert("content-length", bytes.into());
    }
    let (head, body) = send(ports, request).await?.into_parts();
    let answer = body.collect().await?.to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    let is_intact = answer["sum"] == bytes * u64::from(LETTER);
    Ok(Uploaded { status: head.status, bytes: answer["bytes"].as_u64().filter(|_| is_intact) })
}

/// How a stream of events looked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Events {
    /// Those that came, one after the other.
    pub(super) count: u64,
    /// Whether none was missing, twice or torn.
    pub(super) is_in_order: bool,
    /// Whether the stream ended cleanly; else it broke off.
    pub(super) is_whole: bool,
}

/// Reads events, one every `ms`: a number of them, or for ever.
pub(super) async fn events(ports: &[u16], count: Option<u64>, ms: u64) -> anyhow::Result<Events> {
    let count = count.map(|count| format!("&count={count}")).unwrap_or_default();
    let request =
        Request::get(format!("/events?ms={ms}{count}")).body(Empty::new().boxed_unsync())?;
    let response = send(ports, request).await?;
    ensure!(response.status() == StatusCode::OK, "events: {}", response.status());
    let mut body = response.into_body();
    let mut seen = Events { count: 0, is_in_order: true, is_whole: false };
    let mut text = Vec::new();
    loop {
        match body.frame().await {
            None => {
                // Between two events, and not within one.
                seen.is_in_order &= text.is_empty();
                seen.is_whole = true;
                return Ok(seen);
            }
            Some(Err(_)) => return Ok(seen),
            Some(Ok(frame)) => text.extend(frame.into_data().unwrap_or_default()),
        }
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            let expected = format!("id: {0}\ndata: {{\"event\":{0}}}\n\n", seen.count);
            seen.is_in_order &= event == expected.as_bytes();
            seen.count += 1;
        }
    }
}

/// How a WebSocket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketEnd {
    /// With a Close, and its code.
    Closed(u16),
    /// Without.
    Cut,
}

impl SocketEnd {
    fn of(frame: Option<tokio_tungstenite::tungstenite::protocol::CloseFrame>) -> Self {
        Self::Closed(frame.map_or(CloseCode::Status, |frame| frame.code).into())
    }
}

/// Opens a WebSocket.
pub(super) async fn socket(ports: &[u16]) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let stream = connect(ports).await?;
    let opened = tokio_tungstenite::client_async("ws://localhost/ws", stream).await;
    Ok(opened.context("open a WebSocket")?.0)
}

/// Opens a WebSocket and sends a message every `pause`, each of which must come back, until it
/// ends; `stop` asks for that.
pub(super) async fn chat(
    ports: &[u16],
    pause: Duration,
    stop: CancellationToken,
) -> anyhow::Result<(usize, SocketEnd)> {
    let mut socket = socket(ports).await?;
    let mut messages = 0;
    loop {
        let text = format!("message {messages}");
        if socket.send(Message::text(text.clone())).await.is_err() {
            return Ok((messages, last_words(&mut socket).await));
        }
        match socket.next().await {
            Some(Ok(Message::Text(answer))) => {
                ensure!(answer.as_str() == text, "{text:?} came back as {answer:?}");
                messages += 1;
            }
            Some(Ok(Message::Close(frame))) => return Ok((messages, SocketEnd::of(frame))),
            Some(Ok(other)) => anyhow::bail!("{text:?} came back as {other:?}"),
            Some(Err(_)) | None => return Ok((messages, SocketEnd::Cut)),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {
                socket.close(None).await?;
                return Ok((messages, SocketEnd::Closed(1_000)));
            }
            ended = socket.next() => {
                return Ok(match ended {
                    Some(Ok(Message::Close(frame))) => (messages, SocketEnd::of(frame)),
                    _ => (messages, SocketEnd::Cut),
                });
            }
        }
    }
}

/// What was said before the socket could not be written to any more.
async fn last_words(socket: &mut WebSocketStream<TcpStream>) -> SocketEnd {
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Close(frame) = message {
            return SocketEnd::of(frame);
        }
    }
    SocketEnd::Cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_known_from_any_offset_and_a_hole_in_it_is_seen() {
        let whole: Vec<u8> = (0..2_000_u64).map(|offset| (offset % 251) as u8).collect();
        for (from, to) in [(0, 2_000), (1, 252), (250, 251), (700, 700)] {
            assert!(is_pattern(&whole[from..to], from as u64), "{from}..{to}");
        }
        let holed = [&whole[..900], &whole[901..]].concat();
        assert!(!is_pattern(&holed, 0) && !is_pattern(&whole, 1));
    }
}
