//! Connections to the app that wait for a request, and those of HTTP/2 that take several.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
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
    metrics: Arc<UpstreamMetrics>,
}

/// Connections of HTTP/1.1 without a request. The newest is used first.
#[derive(Default)]
struct Idle {
    waiting: Vec<Waiting>,
    /// Whether a task sees to those that waited for too long.
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
    streams: Arc<AtomicUsize>,
}

/// A connection that a request may go by.
pub(super) enum Lease {
    Http1 { sender: http1::SendRequest<Upload>, pool: Option<Arc<Pool>>, is_reused: bool },
    Http2 { sender: http2::SendRequest<Upload>, _stream: StreamCount, is_reused: bool },
}

/// One of the streams of a connection, until it is dropped.
pub(super) struct StreamCount(Arc<AtomicUsize>);

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
            metrics,
        })
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
        if !fresh && let Some(lease) = self.take_waiting(wanted) {
            UpstreamMetrics::count(&self.metrics.connections_reused);
            return Ok(lease);
        }
        if wanted == Wanted::Http1 {
            let (connection, _) = self.connector.connect(wanted).await?;
            return self.begin_http1(connection).await;
        }
        // A closed semaphore would do no harm here, and nobody closes it.
        let _permit = self.dialling.acquire().await.ok();
        if !fresh && let Some(lease) = self.take_waiting(wanted) {
            UpstreamMetrics::count(&self.metrics.connections_reused);
            return Ok(lease);
        }
        match self.connector.connect(wanted).await? {
            (connection, Wanted::Http2) => self.begin_http2(connection).await,
            (connection, _) if wanted == Wanted::Negotiated => self.begin_http1(connection).await,
            _ => Err("the app does not speak HTTP/2".into()),
        }
    }

    /// Makes a connection and closes it.
    ///
    /// # Errors
    /// The app takes none.
    pub(super) async fn dial(&self, wanted: Wanted) -> Result<(), BoxError> {
        self.connector.connect(wanted).await?;
        Ok(())
    }

    /// Makes a connection for one upgrade, which does not come back.
    ///
    /// # Errors
    /// The app takes none.
    pub(super) async fn dial_for_upgrade(&self) -> Result<Lease, BoxError> {
        let (connection, _) = self.connector.connect(Wanted::Http1).await?;
        UpstreamMetrics::count(&self.metrics.connections);
        let (sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "connection to the app ended");
            }
        });
        Ok(Lease::Http1 { sender, pool: None, is_reused: false })
    }

    async fn begin_http1(self: &Arc<Self>, connection: Connection) -> Result<Lease, BoxError> {
        UpstreamMetrics::count(&self.metrics.connections);
        let (sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to the app ended");
            }
        });
        Ok(Lease::Http1 { sender, pool: Some(Arc::clone(self)), is_reused: false })
    }

    async fn begin_http2(self: &Arc<Self>, connection: Connection) -> Result<Lease, BoxError> {
        UpstreamMetrics::count(&self.metrics.connections);
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(connection))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to the app ended");
            }
        });
        sender.ready().await?;
        let shared = Shared { sender, streams: Arc::default() };
        let lease = shared.lease(false);
        lock(&self.shared).push(shared);
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
        shared.retain(|shared| !shared.sender.is_closed());
        let free = shared.iter().find(|shared| shared.streams.load(Relaxed) < STREAMS_EACH)?;
        Some(free.lease(true))
    }

    fn put(self: Arc<Self>, sender: http1::SendRequest<Upload>) {
        if sender.is_closed() || self.idle_timeout.is_zero() {
            return;
        }
        let mut idle = lock(&self.idle);
        idle.waiting.push(Waiting { sender, since: Instant::now() });
        if std::mem::replace(&mut idle.is_watched, true) {
            return;
        }
        drop(idle);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(self.idle_timeout / 2).await;
                let mut idle = lock(&self.idle);
                idle.drop_stale(self.idle_timeout);
                if idle.waiting.is_empty() {
                    idle.is_watched = false;
                    return;
                }
            }
        });
    }
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
        self.streams.fetch_add(1, Relaxed);
        let stream = StreamCount(Arc::clone(&self.streams));
        Lease::Http2 { sender: self.sender.clone(), _stream: stream, is_reused }
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
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
            Self::Http2 { sender, .. } => sender.try_send_request(request).await,
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
