//! A handler's end of a stream that becomes a connection.
//!
//! `hyper` makes a frame of each write of an upgraded stream, so a handler that sends a byte at a
//! time to a reader that has stopped would fill the gateway's memory with the heads of frames. What
//! joins writes stands between the two: handlers get a connection in memory, and what they write
//! there enters the tunnel in [`Pieces`].
//!
//! What handlers await is `hyper`'s own [`OnUpgrade`], which only an upgrade of `hyper`'s makes. So
//! the connection in memory begins with one.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::oneshot;
use tracing::debug;

use crate::pieces::Pieces;

/// What either side may be ahead of the other in memory.
const BUFFER_BYTES: usize = 16 * 1024;

/// The upgrade in memory.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: natsway\r\n\r\n";

/// A stream whose handler has its end, and has not said yet whether it takes it. Dropped, it does
/// not.
#[derive(Debug)]
pub struct HandlerEnd {
    accepted: oneshot::Sender<()>,
}

/// The connection in memory, from the handler's side: it fails where the stream did.
struct Near {
    io: DuplexStream,
    is_broken: Arc<AtomicBool>,
}

/// Returns what a handler is to get instead of a stream that becomes a connection, and what is to
/// be told when it has [accepted](HandlerEnd::accept) that. `None` when the process ends.
///
/// Once `ends` completes the gateway hears no more, as if the handler had ended in order, and the
/// handler that it has broken off: for protocols whose end says by itself whether it is one.
pub async fn handler_end(
    stream: OnUpgrade,
    ends: impl Future<Output = ()> + Send + 'static,
) -> Option<(OnUpgrade, HandlerEnd)> {
    let (near, far) = tokio::io::duplex(BUFFER_BYTES);
    let (accepted, accepts) = oneshot::channel();
    let (taken, upgrade) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(error) = join(near, far, taken, accepts, stream, ends).await {
            debug!(%error, "a connection that a stream became has ended");
        }
    });
    Some((upgrade.await.ok()?, HandlerEnd { accepted }))
}

impl HandlerEnd {
    /// The handler takes the connection: its upgrade completes with that of the stream.
    pub fn accept(self) {
        // Who has left need not be told.
        self.accepted.send(()).ok();
    }
}

/// Lets the handler have its upgrade, and passes bytes once it has.
async fn join(
    near: DuplexStream,
    mut far: DuplexStream,
    taken: oneshot::Sender<OnUpgrade>,
    accepts: oneshot::Receiver<()>,
    stream: OnUpgrade,
    ends: impl Future<Output = ()>,
) -> io::Result<()> {
    let is_broken = Arc::<AtomicBool>::default();
    let near = Near { io: near, is_broken: Arc::clone(&is_broken) };
    far.write_all(REQUEST).await?;
    let (ready, joined) = oneshot::channel();
    let once = Cell::new(Some((taken, accepts, stream, ready)));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (upgrade, once) = (hyper::upgrade::on(&mut request), once.take());
        async move {
            let (taken, accepts, stream, ready) = once.ok_or("one request is made")?;
            taken.send(upgrade).map_err(|_| "its task has ended")?;
            accepts.await.map_err(|_| "it was refused")?;
            // Not before the stream's own: nothing is written for one that never comes.
            let stream = stream.await.map_err(|_| "the stream is lost")?;
            ready.send(stream).map_err(|_| "it is given up")?;
            let mut response = Response::new(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let fields = response.headers_mut();
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            fields.insert(UPGRADE, HeaderValue::from_static("natsway"));
            Ok::<_, &'static str>(response)
        }
    });
    let upgrading = http1::Builder::new().serve_connection(TokioIo::new(near), service);
    upgrading.with_upgrades().await.map_err(io::Error::other)?;
    let mut stream = TokioIo::new(joined.await.map_err(io::Error::other)?);
    skip_head(&mut far).await?;
    let passed = tokio::select! {
        passed = pass(&mut far, &mut stream) => passed,
        () = ends => stream.shutdown().await.and(Err(io::Error::other("the worker leaves"))),
    };
    if passed.is_err() {
        is_broken.store(true, Release);
    }
    passed
}

/// Reads the head of the upgrade in memory, and nothing behind it.
async fn skip_head(far: &mut DuplexStream) -> io::Result<()> {
    let mut last = [0; 4];
    while last != *b"\r\n\r\n" {
        last.rotate_left(1);
        last[3] = far.read_u8().await?;
    }
    Ok(())
}

/// Passes bytes both ways until both have ended, or one breaks.
async fn pass(handler: &mut DuplexStream, stream: &mut TokioIo<Upgraded>) -> io::Result<()> {
    let (mut from_handler, mut to_handler) = tokio::io::split(handler);
    let (mut from_gateway, mut to_gateway) = tokio::io::split(stream);
    let down = async {
        let mut pieces = Pieces::for_tunnel();
        loop {
            let piece = pieces.next(&mut from_handler).await?;
            if piece.is_empty() {
                return to_gateway.shutdown().await;
            }
            to_gateway.write_all(&piece).await?;
        }
    };
    let up = async {
        let mut pieces = Pieces::joined();
        loop {
            let piece = pieces.next(&mut from_gateway).await?;
            if piece.is_empty() {
                return to_handler.shutdown().await;
            }
            to_handler.write_all(&piece).await?;
        }
    };
    tokio::try_join!(up, down).map(drop)
}

impl AsyncRead for Near {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let has_ended = buffer.filled().len() == before && buffer.remaining() > 0;
        if has_ended && self.is_broken.load(Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Near {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
