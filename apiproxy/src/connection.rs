//! One client's connection: which HTTP it speaks, and how it ends.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::core::Core;
use crate::headers::Caller;
use crate::linger::Lingering;
use crate::proxy;
use crate::stall::{Timely, Unsent};

/// What every HTTP/2 client with prior knowledge sends first (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The least that hyper takes for HTTP/1's read buffer.
const HTTP1_BUFFER_BYTES: usize = 8 * 1024;

/// The header fields that hyper takes at the most unless told otherwise.
const HTTP1_FIELDS: usize = 100;

/// How long a connection that has never brought a whole request may stay once the gateway closes: what was on its way
/// when the listener closed arrives in this time.
const SILENT_PATIENCE: Duration = Duration::from_secs(1);

/// The two steps in which connections are asked to end.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// Answer what comes, and ask the client to go elsewhere: `Connection: close`, GOAWAY.
    pub draining: CancellationToken,
    /// End as soon as nothing is in hand.
    pub closing: CancellationToken,
}

impl Leaving {
    /// The same two steps with state of their own, so that cores do not share it.
    pub fn child(&self) -> Leaving {
        Leaving { draining: self.draining.child_token(), closing: self.closing.child_token() }
    }
}

/// Serves a connection to its end.
pub async fn serve(core: Rc<Core>, stream: TcpStream, peer: SocketAddr, leaving: Leaving) {
    // Small answers leave at once; a socket that cannot be told so still works.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "nodelay not set");
    }
    let detecting = tokio::time::timeout(core.settings.client.head_timeout, speaks_http2(&stream));
    let detected = tokio::select! {
        biased;
        detected = detecting => detected,
        () = patience_ends(&leaving) => return,
    };
    let caller = Rc::new(Caller::new(peer, core.settings.trusted_proxies.trusts(peer.ip())));
    let served = match detected {
        Ok(Ok(true)) => serve_http2(core, stream, caller, leaving).await,
        Ok(Ok(false)) => serve_http1(core, stream, caller, leaving).await,
        // It said nothing in time, or left.
        Ok(Err(_)) | Err(_) => return,
    };
    if let Err(error) = served {
        debug!(%peer, %error, "client connection ended");
    }
}

/// Waits until nobody need wait any more for a connection's first request.
async fn patience_ends(leaving: &Leaving) {
    leaving.closing.cancelled().await;
    tokio::time::sleep(SILENT_PATIENCE).await;
}

/// Whether the client begins with HTTP/2's preface, found without taking anything off the socket.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut begins = [0; HTTP2_PREFACE.len()];
    loop {
        let seen = stream.peek(&mut begins).await?;
        if seen == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if begins[..seen] != HTTP2_PREFACE[..seen] {
            return Ok(false);
        }
        if seen == HTTP2_PREFACE.len() {
            return Ok(true);
        }
        // The rest of the preface is on its way. The socket stays readable, so there is nothing to wait on but time.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn serve_http1(
    core: Rc<Core>,
    stream: TcpStream,
    caller: Rc<Caller>,
    leaving: Leaving,
) -> Result<(), hyper::Error> {
    let limits = core.settings.client;
    let draining = leaving.draining.clone();
    let begun = Rc::new(Cell::new(false));
    let (unread, lingered) = (Rc::clone(&caller.unread), Arc::clone(&core.metrics.lingered));
    let service = service_fn({
        let begun = Rc::clone(&begun);
        move |request| {
            begun.set(true);
            proxy::handle(Rc::clone(&core), Rc::clone(&caller), draining.is_cancelled(), request)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(HTTP1_BUFFER_BYTES.max(limits.path_bytes + limits.header_bytes + 4 * 1024))
        .half_close(limits.half_close);
    if limits.header_fields > HTTP1_FIELDS {
        // Only where it must be: hyper's own limit costs nothing, any other an allocation a request.
        http.max_headers(limits.header_fields);
    }
    let stream = Timely::new(stream, limits.send_timeout);
    let io = TokioIo::new(Lingering::new(stream, unread, limits.linger, lingered));
    let mut connection = std::pin::pin!(http.serve_connection(io, service));
    tokio::select! {
        biased;
        served = &mut connection => return served,
        () = leaving.closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        served = &mut connection => return served,
        () = tokio::time::sleep(SILENT_PATIENCE) => {}
    }
    // Hyper waits for the rest of a head until its own time-out; nothing is lost when that was the first one.
    if begun.get() { connection.await } else { Ok(()) }
}

/// Runs HTTP/2's streams on this core.
#[derive(Clone, Copy, Debug)]
struct OnThisCore;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisCore {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

async fn serve_http2(
    core: Rc<Core>,
    stream: TcpStream,
    caller: Rc<Caller>,
    leaving: Leaving,
) -> Result<(), hyper::Error> {
    let limits = core.settings.client;
    let unsent = Rc::<Unsent>::default();
    let service = service_fn({
        let unsent = Rc::clone(&unsent);
        move |request| {
            let answer = proxy::handle(Rc::clone(&core), Rc::clone(&caller), false, request);
            let unsent = Rc::clone(&unsent);
            async move {
                let mut answer = answer.await?;
                answer.body_mut().watch(&unsent);
                Ok::<_, Infallible>(answer)
            }
        }
    });
    let io = TokioIo::new(Timely::new(stream, limits.send_timeout));
    let mut connection = std::pin::pin!(
        http2::Builder::new(OnThisCore)
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.http2_streams)
            .max_header_list_size(u32::try_from(limits.header_bytes + limits.path_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(limits.head_timeout)
            .keep_alive_timeout(limits.head_timeout)
            .serve_connection(io, service)
    );
    tokio::select! {
        served = &mut connection => return served,
        () = leaving.draining.cancelled() => {}
        () = unsent.stalled(limits.send_timeout) => {}
    }
    // GOAWAY: streams that are open are finished, new ones go to another connection.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        served = &mut connection => served,
        // One stream that stands still does not end the others before they had that time as well.
        () = unsent.stalled(limits.send_timeout) => Ok(()),
    }
}
