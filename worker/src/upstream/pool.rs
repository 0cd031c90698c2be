//! Connections to the app that wait for a request, and those of HTTP/2 that take several.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tracing::debug;

use super::connect::{Connection, Connector, Wanted};
use super::metrics::UpstreamMetrics;
use super::upload::Upload;
use crate::BoxError;

/// Streams on one connection of HTTP/2 before another one is made: few servers allow fewer.
const STREAMS_EACH: usize = 100;

/// Bytes that the app may be ahead of the reader of one stream.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// So wide that streams which nobody reads do not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 2 * STREAM_WINDOW_BYTES * STREAMS_EACH as u32;

/// After so long without a frame a connection of HTTP/2 with open streams is asked whether it
/// lives. Servers of gRPC close one that asks more often than every 5 min
/// (`GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS`, grpc-go's `MinTime`).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(330);

/// How long its answer may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection of HTTP/2 may leave everybody without a response before one who gives up
/// makes it suspect. A client that leaves sooner says nothing of it.
const SILENCE_MS: u64 = 100;

/// Between two looks for connections that waited for too long, at the least.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// The connections to one app.
pub(super) struct Pool {
    connector: Connector,
    /// How long a connection may wait for its next request. Below what the app gives it, so that
    /// few requests meet the app's own close.
    idle_timeout: Duration,
    idle: Mutex<Idle>,
    shared: Mutex<Vec<Shared>>,
    /// Held by whoever makes a connection of HTTP/2, so that requests that come together share it.
    dialling: Semaphore,
    /// Whether the last connection that could have become one of HTTP/2 did not: then there is
    /// nothing to share, and nobody waits for another's.
    agreed_on_http1: AtomicBool,
    metrics: Arc<UpstreamMetrics>,
}

/// Connections of HTTP/1.1 without a request. The newest is used first.
#[derive(Default)]
struct Idle {
    waiting: Vec<Waiting>,
    /// Whether a task sees to connections that waited for too long, of either version.
    is_watched: bool,
}

struct Waiting {
    sender: http1::SendRequest<Upload>,
    since: Instant,
}

/// A connection of HTTP/2.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<Upload>,
    usage: Arc<Usage>,
}

/// How a connection of HTTP/2 is used.
struct Usage {
    streams: AtomicUsize,
    began: Instant,
    /// When its last stream ended, in milliseconds from the beginning.
    used_ms: AtomicU64,
    /// When its last response began, likewise.
    heard_ms: AtomicU64,
    /// Whether a response was waited for in vain, and none has come meanwhile: it may be dead, and
    /// is given no more requests.
    is_silent: AtomicBool,
}

/// A response that is waited for, until it is there or given up.
struct Awaited<'a> {
    usage: &'a Usage,
    since_ms: u64,
}

/// A connection that a request may go by.
pub(super) enum Lease {
    Http1 { sender: http1::SendRequest<Upload>, pool: Option<Arc<Pool>>, is_reused: bool },
    Http2 { sender: http2::SendRequest<Upload>, stream: Stream, is_reused: bool },
}

/// One of the streams of a connection, until it is dropped.
pub(super) struct Stream(Arc<Usage>);

impl Pool {
    pub(super) fn new(
        connector: Connector,
        idle_timeout: Duration,
        metrics: Arc<UpstreamMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            connector,
            idle_timeout,
            idle: Mutex::default(),
            shared: Mutex::default(),
            dialling: Semaphore::new(1),
            agreed_on_http1: AtomicBool::new(false),
            metrics,
        })
    }

    /// The same for an app that listens at another port now, without any connection yet.
    pub(super) fn at_port(&self, port: u16) -> Arc<Self> {
        let connector = self.connector.clone().with_port(port);
        Self::new(connector, self.idle_timeout, Arc::clone(&self.metrics))
    }

    /// Where connections are made to.
    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Takes a connection that is there, unless `fresh` is wanted, or makes one.
    ///
    /// # Errors
    /// The app takes none, or does not speak what is wanted.
    pub(super) async fn take(
        self: &Arc<Self>,
        wanted: Wanted,
        fresh: bool,
    ) -> Result<Lease, BoxError> {
        let there = || {
            let lease = if fresh { None } else { self.take_waiting(wanted) }?;
            UpstreamMetrics::count(&self.metrics.connections_reused);
            Some(lease)
        };
        if let Some(lease) = there() {
            return Ok(lease);
        }
        let mut permit = None;
        if self.may_share(wanted) {
            // A closed semaphore would do no harm here, and nobody closes it.
            permit = self.dialling.acquire().await.ok();
            if let Some(lease) = there() {
                return Ok(lease);
            }
            // Whoever had it may have found that there is nothing to share.
            permit = permit.filter(|_| self.may_share(wanted));
        }
        let (connection, agreed) = self.connector.connect(wanted).await?;
        if wanted == Wanted::Negotiated {
            self.agreed_on_http1.store(agreed != Wanted::Http2, Relaxed);
        }
        let lease = match agreed {
            Wanted::Http2 => self.begin_http2(connection).await,
            _ if wanted == Wanted::Http2 => Err("the app does not speak HTTP/2".into()),
            _ => self.begin_http1(connection).await,
        };
        drop(permit);
        lease
    }

    /// Whether a connection for this may serve other requests at the same time.
    fn may_share(&self, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Http1 => false,
            Wanted::Http2 => true,
            Wanted::Negotiated => !self.agreed_on_http1.load(Relaxed),
        }
    }

    /// Forgets all connections, so that nothing more goes by them: the app is another one, or does
    /// not answer. What is out on them goes on.
    pub(super) fn forget(&self) {
        lock(&self.idle).waiting.clear();
        lock(&self.shared).clear();
    }

    /// Makes a connection and closes it.
    ///
    /// # Errors
    /// The app takes none.
    pub(super) async fn dial(&self, wanted: Wanted) -> Result<(), BoxError> {
        self.connector.connect(wanted).await?;
        Ok(())
    }

    /// Makes a connection for one request that is nobody's: it is not counted, and no other request
    /// goes by it.
    ///
    /// # Errors
    /// The app takes none, or does not speak what is wanted.
    pub(super) async fn dial_for_check(&self, wanted: Wanted) -> Result<Lease, BoxError> {
        match self.connector.connect(wanted).await? {
            (connection, Wanted::Http2) => Ok(begin_shared(connection).await?.lease(false)),
            _ if wanted == Wanted::Http2 => Err("the app does not speak HTTP/2".into()),
            (connection, _) => begin_own(connection, None).await,
        }
    }

    /// Makes a connection for one upgrade, which does not come back.
    ///
    /// # Errors
    /// The app takes none.
    pub(super) async fn dial_for_upgrade(&self) -> Result<Lease, BoxError> {
        let (connection, _) = self.connector.connect(Wanted::Http1).await?;
        UpstreamMetrics::count(&self.metrics.connections);
        begin_own(connection, None).await
    }

    async fn begin_http1(self: &Arc<Self>, connection: Connection) -> Result<Lease, BoxError> {
        UpstreamMetrics::count(&self.metrics.connections);
        begin_own(connection, Some(Arc::clone(self))).await
    }

    async fn begin_http2(self: &Arc<Self>, connection: Connection) -> Result<Lease, BoxError> {
        UpstreamMetrics::count(&self.metrics.connections);
        let shared = begin_shared(connection).await?;
        let lease = shared.lease(false);
        lock(&self.shared).push(shared);
        self.watch(lock(&self.idle));
        Ok(lease)
    }

    fn take_waiting(self: &Arc<Self>, wanted: Wanted) -> Option<Lease> {
        if wanted != Wanted::Http1
            && let Some(lease) = self.take_shared()
        {
            return Some(lease);
        }
        if wanted == Wanted::Http2 {
            return None;
        }
        let mut idle = lock(&self.idle);
        idle.drop_stale(self.idle_timeout);
        // One whose last byte was read just now may not have been told to be ready yet.
        let index = idle.waiting.iter().rposition(|waiting| waiting.sender.is_ready())?;
        let Waiting { sender, .. } = idle.waiting.remove(index);
        Some(Lease::Http1 { sender, pool: Some(Arc::clone(self)), is_reused: true })
    }

    fn take_shared(&self) -> Option<Lease> {
        let mut shared = lock(&self.shared);
        shared.retain(|shared| shared.is_fresh(self.idle_timeout));
        let free =
            shared.iter().find(|shared| shared.usage.streams.load(Relaxed) < STREAMS_EACH)?;
        Some(free.lease(true))
    }

    fn put(self: Arc<Self>, sender: http1::SendRequest<Upload>) {
        if sender.is_closed() || self.idle_timeout.is_zero() {
            return;
        }
        let mut idle = lock(&self.idle);
        idle.waiting.push(Waiting { sender, since: Instant::now() });
        self.watch(idle);
    }

    /// Sees to it that connections which wait for too long are closed.
    fn watch(self: &Arc<Self>, mut idle: MutexGuard<'_, Idle>) {
        if std::mem::replace(&mut idle.is_watched, true) {
            return;
        }
        drop(idle);
        let pool = Arc::downgrade(self);
        let pause = (self.idle_timeout / 2).max(SHORTEST_PAUSE);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(pool) = pool.upgrade() else { return };
                let mut shared = lock(&pool.shared);
                shared.retain(|shared| shared.is_fresh(pool.idle_timeout));
                let mut idle = lock(&pool.idle);
                idle.drop_stale(pool.idle_timeout);
                if idle.waiting.is_empty() && shared.is_empty() {
                    idle.is_watched = false;
                    return;
                }
            }
        });
    }
}

/// Begins to speak HTTP/1.1, also where it is to become something else.
async fn begin_own(connection: Connection, pool: Option<Arc<Pool>>) -> Result<Lease, BoxError> {
    let (sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
    let is_pooled = pool.is_some();
    tokio::spawn(async move {
        let ended = match is_pooled {
            true => connection.await,
            false => connection.with_upgrades().await,
        };
        if let Err(error) = ended {
            debug!(%error, "connection to the app ended");
        }
    });
    Ok(Lease::Http1 { sender, pool, is_reused: false })
}

/// Begins to speak HTTP/2.
async fn begin_shared(connection: Connection) -> Result<Shared, BoxError> {
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .handshake(TokioIo::new(connection))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "connection to the app ended");
        }
    });
    sender.ready().await?;
    let usage = Usage {
        streams: AtomicUsize::new(0),
        began: Instant::now(),
        used_ms: AtomicU64::new(0),
        heard_ms: AtomicU64::new(0),
        is_silent: AtomicBool::new(false),
    };
    Ok(Shared { sender, usage: Arc::new(usage) })
}

impl Idle {
    fn drop_stale(&mut self, idle_timeout: Duration) {
        self.waiting.retain(|waiting| {
            !waiting.sender.is_closed() && waiting.since.elapsed() < idle_timeout
        });
    }
}

impl Shared {
    fn lease(&self, is_reused: bool) -> Lease {
        self.usage.streams.fetch_add(1, Relaxed);
        let stream = Stream(Arc::clone(&self.usage));
        Lease::Http2 { sender: self.sender.clone(), stream, is_reused }
    }

    /// Whether it is open and answers, and did not wait for a stream for too long.
    fn is_fresh(&self, idle_timeout: Duration) -> bool {
        let Usage { streams, began, used_ms, is_silent, .. } = &*self.usage;
        let used_at = *began + Duration::from_millis(used_ms.load(Relaxed));
        let is_used = streams.load(Relaxed) > 0 || used_at.elapsed() < idle_timeout;
        is_used && !is_silent.load(Relaxed) && !self.sender.is_closed()
    }
}

impl Usage {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn await_response(&self) -> Awaited<'_> {
        Awaited { usage: self, since_ms: self.now_ms() }
    }
}

impl Awaited<'_> {
    fn arrived(self) {
        self.usage.heard_ms.store(self.usage.now_ms(), Relaxed);
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let Self { usage, since_ms } = self;
        let is_heard = usage.heard_ms.load(Relaxed) > *since_ms;
        if !is_heard && usage.now_ms() - *since_ms >= SILENCE_MS {
            usage.is_silent.store(true, Relaxed);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.used_ms.store(self.0.now_ms(), Relaxed);
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

impl Lease {
    /// Whether the connection served another request before.
    pub(super) fn is_reused(&self) -> bool {
        match self {
            Self::Http1 { is_reused, .. } | Self::Http2 { is_reused, .. } => *is_reused,
        }
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2 { .. })
    }

    /// Sends a request, and gives the response once its head is there.
    pub(super) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<http::Response<Incoming>, TrySendError<Request<Upload>>> {
        match self {
            Self::Http1 { sender, .. } => sender.try_send_request(request).await,
            Self::Http2 { sender, stream, .. } => {
                let awaited = stream.0.await_response();
                let response = sender.try_send_request(request).await?;
                awaited.arrived();
                Ok(response)
            }
        }
    }

    /// Has the connection serve others.
    pub(super) fn give_back(self) {
        if let Self::Http1 { sender, pool: Some(pool), .. } = self {
            pool.put(sender);
        }
    }
}

/// Nothing that could panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
