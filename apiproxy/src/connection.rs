//! One client's connection: which HTTP it speaks, and how it ends.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use http::Response;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tracing::debug;

use crate::body::{Becoming, ReplyBody};
use crate::drain::DrainStages;
use crate::headers::Caller;
use crate::linger::Lingering;
use crate::memory::Account;
use crate::metrics::ClientClose;
use crate::open_requests::OpenRequests;
use crate::proxy::{self, Arrived};
use crate::shard::Shard;
use crate::stall::{FirstBytes, Inbound, Pace, StallDetector, WriteTimeoutStream};
use crate::stream::becomes::Home;

/// What every HTTP/2 client with prior knowledge sends first (RFC 9113 section 3.4).
const HTTP2_PREFACE: [u8; FirstBytes::MOST] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The least that hyper takes for HTTP/1's read buffer.
const HTTP1_BUFFER_BYTES: usize = 8 * 1024;

/// What HTTP/1's read buffer may have without being counted: part of what every connection is
/// planned to cost.
const HTTP1_FREE_BYTES: usize = 2 * HTTP1_BUFFER_BYTES;

/// The header fields that hyper takes at the most unless told otherwise.
const HTTP1_FIELDS: usize = 100;

/// What HTTP/2's buffer may have without being counted: part of what every connection is planned to
/// cost.
const HTTP2_BUFFER_BYTES: usize = 16 * 1024;

/// What an HTTP/2 client may send of one body before it is read, and of all of them. Bodies are
/// read as they come, so this bounds what is on its way alone.
const HTTP2_STREAM_WINDOW: u32 = 64 * 1024;

/// Bodies that a worker does not read leave the others theirs: as much as all streams together, for
/// few connections have more of these than the shard has streams.
fn http2_connection_window(streams: u32) -> u32 {
    HTTP2_STREAM_WINDOW.saturating_mul(streams.max(8)).min(i32::MAX as u32)
}

/// The largest frame that is read, the least that HTTP/2 allows: as much is buffered.
const HTTP2_FRAME_BYTES: u32 = 16 * 1024;

/// What HTTP/2 keeps of one answer beside the answer itself, which is in one piece and counted
/// already.
const HTTP2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Streams that a client may reset before they were looked at, until it is taken for an attacker
/// (CVE-2023-44487).
const HTTP2_PENDING_RESETS: usize = 20;

/// Streams that HTTP/2 itself resets for a client's mistakes, until the client is taken for an
/// attacker.
const HTTP2_LOCAL_RESETS: usize = 256;

/// How long an idle client has to close its connection when it is asked to.
const GOAWAY_PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection that has never brought a whole request may stay once the gateway closes:
/// what was on its way when the listener closed arrives in this time.
const SILENT_PATIENCE: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub async fn serve(shard: Rc<Shard>, stream: TcpStream, peer: SocketAddr, leaving: DrainStages) {
    // Small answers leave at once; a socket that cannot be told so still works.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "nodelay not set");
    }
    let mut stream = stream;
    let detecting =
        tokio::time::timeout(shard.settings.client.head_timeout, first_bytes(&mut stream));
    let detected = tokio::select! {
        biased;
        detected = detecting => detected,
        () = patience_ends(&leaving) => return,
    };
    // It said nothing in time, or left.
    let Ok(Ok(first)) = detected else { return };
    let caller = Rc::new(Caller::new(peer, shard.settings.trusted_proxies.trusts(peer.ip())));
    let client = ClientConnection::new(shard, caller);
    // In boxes: a connection that says nothing has neither, and none has both.
    let served = match first.bytes == HTTP2_PREFACE {
        true => Box::pin(serve_http2(client, stream, first, leaving)).await,
        false => Box::pin(serve_http1(client, stream, first, leaving)).await,
    };
    if let Err(error) = served {
        debug!(%peer, %error, "client connection ended");
    }
}

/// Waits until nobody need wait any more for a connection's first request.
async fn patience_ends(leaving: &DrainStages) {
    leaving.closing.cancelled().await;
    tokio::time::sleep(SILENT_PATIENCE).await;
}

/// Reads until it is clear whether the client begins with HTTP/2's preface: whether that is all
/// that was read.
async fn first_bytes(stream: &mut TcpStream) -> std::io::Result<FirstBytes> {
    let mut first = FirstBytes { bytes: [0; FirstBytes::MOST], count: 0 };
    while first.count < FirstBytes::MOST
        && first.bytes[..first.count] == HTTP2_PREFACE[..first.count]
    {
        match stream.read(&mut first.bytes[first.count..]).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => first.count += count,
        }
    }
    Ok(first)
}

/// A client's connection as its parts share it.
struct ClientConnection {
    shard: Rc<Shard>,
    caller: Rc<Caller>,
    account: Rc<Account>,
    /// The answers that it takes.
    answers: Rc<StallDetector>,
    inbound: Rc<Inbound>,
    requests: Rc<OpenRequests>,
}

impl ClientConnection {
    fn new(shard: Rc<Shard>, caller: Rc<Caller>) -> Rc<Self> {
        let account = shard.memory.open();
        let answers = StallDetector::new(shard.settings.client.send);
        let inbound = Rc::<Inbound>::default();
        let requests = OpenRequests::new(Rc::clone(&inbound));
        Rc::new(Self { shard, caller, account, answers, inbound, requests })
    }

    /// The socket; buffers of up to `free_bytes` are counted elsewhere.
    fn io(&self, stream: TcpStream, first: FirstBytes, free_bytes: usize) -> WriteTimeoutStream {
        let (limit, inbound) = (self.shard.settings.client.send.span, Rc::clone(&self.inbound));
        WriteTimeoutStream::new(stream, first, limit, inbound, &self.account, free_bytes)
    }

    /// Answers one request, and has it watched how the answer is taken.
    async fn answer(
        self: Rc<Self>,
        closing: bool,
        arrived: Arrived,
    ) -> Result<Response<ReplyBody>, proxy::NoRoom> {
        let _open = self.requests.begin();
        let (shard, caller) = (Rc::clone(&self.shard), Rc::clone(&self.caller));
        let mut answer = proxy::handle(shard, caller, closing, arrived).await?;
        answer.body_mut().watch(&self.answers);
        answer.body_mut().keep_busy(|| self.requests.begin());
        if let Some(becoming) = answer.body_mut().take_becoming() {
            let busy = self.requests.begin();
            let home = self.home(false);
            spawn_local(async move {
                let _busy = busy;
                let Becoming { client, becomes } = *becoming;
                if let Ok(client) = client.await {
                    becomes.run(TokioIo::new(client), &[], home).await;
                }
            });
        }
        Ok(answer)
    }

    /// What is shared with what the connection, or one of its streams, becomes.
    fn home(&self, is_connection: bool) -> Home {
        let (shard, caller) = (Rc::clone(&self.shard), Rc::clone(&self.caller));
        Home { shard, caller, account: Rc::clone(&self.account), is_connection }
    }

    /// Waits until there was neither a request nor an answer for so long.
    async fn idle(&self, limit: Duration) {
        loop {
            let is_busy = self.requests.are_open()
                || self.answers.answers() > 0
                || self.caller.unread.is_lingering();
            let since = if is_busy { Instant::now() } else { self.requests.idle_since() };
            if since.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until((since + limit).into()).await;
        }
    }
}

/// What ends an HTTP/1 connection that neither its client nor HTTP ends.
enum Interruption {
    /// It is closed, whatever is in hand. `None` when no request came in time, which is not
    /// counted: most clients end so.
    GivenUp(Option<ClientClose>),
    /// The gateway leaves.
    Closing,
}

async fn serve_http1(
    client: Rc<ClientConnection>,
    stream: TcpStream,
    first: FirstBytes,
    leaving: DrainStages,
) -> Result<(), hyper::Error> {
    let shard = Rc::clone(&client.shard);
    let limits = shard.settings.client;
    let draining = leaving.draining.clone();
    let begun = Rc::new(Cell::new(false));
    let io = client.io(stream, first, HTTP1_FREE_BYTES);
    let (unread, lingered) =
        (Rc::clone(&client.caller.unread), Arc::clone(&shard.metrics.lingered));
    let io = Lingering::new(io, unread, limits.linger, lingered);
    let io = TokioIo::new(io.looking_for_leave(!limits.half_close));
    let service = service_fn({
        let (begun, client) = (Rc::clone(&begun), Rc::clone(&client));
        move |request| {
            begun.set(true);
            let arrived = Arrived::new(&client.account, request);
            Rc::clone(&client).answer(draining.is_cancelled(), arrived)
        }
    });
    let mut http = http1::Builder::new();
    // Hyper would have a timer made for each head; one for the connection does as well.
    http.header_read_timeout(None)
        .max_buf_size(HTTP1_BUFFER_BYTES.max(limits.path_bytes + limits.header_bytes + 4 * 1024))
        .half_close(limits.half_close);
    if limits.header_fields > HTTP1_FIELDS {
        // Only where it must be: hyper's own limit costs nothing, any other an allocation a
        // request.
        http.max_headers(limits.header_fields);
    }
    let mut served = http.serve_connection(io, service);
    served_or_given_up(&client, &mut served, &begun, &leaving).await?;
    if let Some(becomes) = client.caller.becomes.take() {
        let busy = client.requests.begin();
        let http1::Parts { io, read_buf, .. } = served.into_parts();
        let mut io = io.into_inner();
        let ended = Box::pin(becomes.run(&mut io, &read_buf, client.home(true))).await;
        if ended.is_abort() {
            busy.reset_on_close();
        }
        debug!(peer = %client.caller.peer, ?ended, "connection ended that a request became");
    }
    Ok(())
}

/// Serves a connection of HTTP/1 until it ends, has become something else, or is given up.
async fn served_or_given_up<C>(
    client: &ClientConnection,
    connection: &mut C,
    begun: &Cell<bool>,
    leaving: &DrainStages,
) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>> + Unpin + Graceful,
{
    let (answers, account, shard) = (&client.answers, &client.account, &client.shard);
    let limits = shard.settings.client;
    // Also while the gateway leaves: a client that does not read must not hold its answer until
    // then.
    let given_up = async {
        tokio::select! {
            () = account.evicted() => Interruption::GivenUp(Some(ClientClose::NoRoom)),
            _ = answers.stalled() => Interruption::GivenUp(Some(ClientClose::Slow)),
            () = client.idle(limits.head_timeout) => Interruption::GivenUp(None),
        }
    };
    let closing = async {
        leaving.closing.cancelled().await;
        Interruption::Closing
    };
    // These are looked at when they wake, and not with every read and write of the connection.
    let interruptions = [Either::Left(given_up), Either::Right(closing)];
    let mut interruptions = FuturesUnordered::from_iter(interruptions);
    let close = |why| {
        match why {
            Some(why) => shard.metrics.closed(why),
            None => debug!("no request in time"),
        }
        Ok(())
    };
    tokio::select! {
        biased;
        served = &mut *connection => return served,
        Some(interruption) = interruptions.next() => match interruption {
            Interruption::GivenUp(why) => return close(why),
            Interruption::Closing => connection.shut_down(),
        },
    }
    tokio::select! {
        biased;
        served = &mut *connection => return served,
        Some(Interruption::GivenUp(why)) = interruptions.next() => return close(why),
        () = tokio::time::sleep(SILENT_PATIENCE) => {}
    }
    // The rest of a head is waited for until its time is over; nothing is lost when that was the
    // first one.
    if !begun.get() {
        return Ok(());
    }
    tokio::select! {
        biased;
        served = connection => served,
        Some(Interruption::GivenUp(why)) = interruptions.next() => close(why),
    }
}

/// A connection that can be asked to end.
trait Graceful {
    /// It takes no request after the one in hand.
    fn shut_down(&mut self);
}

impl<I, S> Graceful for http1::Connection<I, S>
where
    S: HttpService<Incoming, ResBody = ReplyBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    fn shut_down(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

/// Runs HTTP/2's streams on this shard.
#[derive(Clone, Copy, Debug)]
struct ShardExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for ShardExecutor {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

async fn serve_http2(
    client: Rc<ClientConnection>,
    stream: TcpStream,
    first: FirstBytes,
    leaving: DrainStages,
) -> Result<(), hyper::Error> {
    let metrics = Rc::clone(&client.shard);
    let metrics = &metrics.metrics;
    let limits = client.shard.settings.client;
    client.inbound.expect_frames();
    let io = TokioIo::new(client.io(stream, first, HTTP2_BUFFER_BYTES));
    let service = service_fn({
        let client = Rc::clone(&client);
        // In a box: a stream keeps the room of what answered it until its answer is taken.
        move |request| {
            let arrived = Arrived::new(&client.account, request);
            Box::pin(Rc::clone(&client).answer(false, arrived))
        }
    });
    let mut connection = std::pin::pin!(
        http2::Builder::new(ShardExecutor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.http2_streams)
            .max_header_list_size(
                u32::try_from(limits.header_bytes + limits.path_bytes).unwrap_or(u32::MAX)
            )
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(http2_connection_window(limits.http2_streams))
            .max_frame_size(HTTP2_FRAME_BYTES)
            .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS)
            .max_local_error_reset_streams(HTTP2_LOCAL_RESETS)
            .keep_alive_interval(limits.head_timeout)
            .keep_alive_timeout(limits.head_timeout)
            .enable_connect_protocol()
            .serve_connection(io, service)
    );
    let mut stalled = std::pin::pin!(client.answers.stalled());
    let closes = tokio::select! {
        served = &mut connection => return served,
        () = client.account.evicted() => {
            metrics.closed(ClientClose::NoRoom);
            return Ok(());
        }
        () = leaving.draining.cancelled() => None,
        pace = &mut stalled => {
            metrics.closed(ClientClose::Slow);
            if pace == Pace::TooSlow {
                return Ok(());
            }
            Some(ClientClose::Slow)
        }
        () = client.idle(limits.http2_idle_timeout) => {
            metrics.closed(ClientClose::Idle);
            client.requests.idle_from_now();
            Some(ClientClose::Idle)
        }
    };
    // GOAWAY: streams that are open are finished, new ones go to another connection.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        served = &mut connection => served,
        () = client.account.evicted() => {
            metrics.closed(ClientClose::NoRoom);
            Ok(())
        }
        // One stream that stands still does not end the others before they had that time as well.
        _ = client.answers.stalled() => Ok(()),
        // Who was idle and takes no leave is not waited for.
        () = client.idle(GOAWAY_PATIENCE), if closes == Some(ClientClose::Idle) => Ok(()),
    }
}
