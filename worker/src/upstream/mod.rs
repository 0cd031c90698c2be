//! An app that listens somewhere, as a service: any program that speaks HTTP behind the broker.
//!
//! [`Upstream`] is a tower service that a worker serves like any other. It passes each request on
//! to an app, in whatever language, over HTTP/1.1, HTTP/2 without TLS, TLS or a Unix socket. Bodies
//! stream both ways, and what upgrades becomes a connection.
//!
//! - `address` says where the app is, `connect` gets there, `pool` keeps connections.
//! - `fields` makes the head what the app is to see: pure.
//! - `upload` gives an untouched body back, so that a request can be sent once more; `body` is a
//!   response's.
//! - `error` says what became of the rest, as a problem document and in `metrics`.
//!
//! ```no_run
//! use natsway_worker::upstream::{Upstream, UpstreamOptions};
//! use natsway_worker::{Options, serve, shutdown_signal};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = Upstream::new(UpstreamOptions::new("http://127.0.0.1:3000".parse()?))?;
//! serve(Options::new("svc.app.blue"), app, shutdown_signal()?).await?;
//! # Ok(())
//! # }
//! ```

mod address;
mod body;
mod connect;
mod error;
mod fields;
mod metrics;
mod pool;
mod upgrade;
mod upload;

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use natsway_wire::content_type::is_grpc;
use tokio::sync::Notify;
use tower::Service;
use tracing::{debug, warn};

use self::address::Scheme;
use self::connect::{Connector, Wanted};
use self::error::UpstreamError;
use self::fields::{RequestRules, prepare_request, prepare_response};
use self::metrics::UpstreamMetrics;
use self::pool::{Lease, Pool};
use self::upgrade::{splice, take_upgrade};
use self::upload::Upload;
use crate::{Body, BoxError, Deadline};

pub use self::address::{AddressError, UpstreamAddress};
pub use self::body::UpstreamBody;
pub use self::metrics::UpstreamStats;

/// What is left of a caller's time when it is told that the app is late: enough for the answer to
/// get back.
const RESERVE: Duration = Duration::from_millis(50);

/// Between two attempts to connect for what waits for the app.
const AGAIN: Duration = Duration::from_millis(50);

/// Whose `Host` the app sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The client's: apps compare it with `Origin`, and make links of it.
    #[default]
    Client,
    /// The app's own, for apps that serve by name.
    Upstream,
}

/// Where an app is, and how it is spoken to.
#[derive(Clone, Debug)]
#[must_use]
pub struct UpstreamOptions {
    address: UpstreamAddress,
    host: HostHeader,
    idle_timeout: Duration,
    connect_timeout: Duration,
    response_timeout: Option<Duration>,
    ca: Option<PathBuf>,
}

/// Why an [`Upstream`] cannot be had: a sentence that says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream: {0}")]
pub struct UpstreamConfigError(String);

/// An app as a service. Clones share its connections.
///
/// A request that does not reach the app, or that breaks there and may be repeated, is left to
/// another instance if there is one. Otherwise the client gets a problem document: 502
/// `upstream_down` or `upstream_broken`, 504 `upstream_timeout`.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<UpstreamShared>,
}

struct UpstreamShared {
    /// Where the app is now.
    place: ArcSwap<Place>,
    scheme: Scheme,
    host: HostHeader,
    /// How long what no other instance can have waits for the app: as long as connecting may take.
    patience: Duration,
    response_timeout: Option<Duration>,
    metrics: Arc<UpstreamMetrics>,
    /// Whether the app is not to be asked.
    is_suspended: AtomicBool,
    suspended: Notify,
}

/// Where an app is.
struct Place {
    pool: Arc<Pool>,
    authority: HeaderValue,
}

/// How a connection is had.
#[derive(Clone, Copy)]
enum Way {
    /// One that waits, unless a fresh one is wanted.
    Pooled { wanted: Wanted, is_fresh: bool },
    /// One of its own, which does not come back.
    Upgrade,
}

impl UpstreamOptions {
    /// An app at `address`, with the client's `Host`.
    pub fn new(address: UpstreamAddress) -> Self {
        Self {
            address,
            host: HostHeader::default(),
            idle_timeout: Duration::from_millis(1_500),
            connect_timeout: Duration::from_secs(2),
            response_timeout: None,
            ca: None,
        }
    }

    /// Whose `Host` the app sees.
    pub fn host_header(mut self, host: HostHeader) -> Self {
        self.host = host;
        self
    }

    /// How long a connection waits for another request; 0 for one request each. 1.5 s without,
    /// which is below what servers give it: gunicorn 2 s, uvicorn and node 5 s.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = limit;
        self
    }

    /// How long connecting may take, TLS included. 2 s without.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long the app may take to begin its response; what its caller still waits, without.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = Some(limit);
        self
    }

    /// A PEM file of the authorities that sign the app's certificate; the system's, without.
    pub fn certificate_authorities(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }
}

impl Upstream {
    /// Makes the service. No connection is made before the first request.
    ///
    /// # Errors
    /// The certificate authorities cannot be read.
    pub fn new(options: UpstreamOptions) -> Result<Self, UpstreamConfigError> {
        let UpstreamOptions { address, host, idle_timeout, .. } = options;
        let scheme = address.scheme;
        let authority = authority_of(&address)?;
        let connector = Connector::new(address, options.connect_timeout, options.ca.as_deref())
            .map_err(UpstreamConfigError)?;
        let metrics = Arc::<UpstreamMetrics>::default();
        let pool = Pool::new(connector, idle_timeout, Arc::clone(&metrics));
        let shared = UpstreamShared {
            place: ArcSwap::from_pointee(Place { pool, authority }),
            scheme,
            host,
            patience: options.connect_timeout,
            response_timeout: options.response_timeout,
            metrics,
            is_suspended: AtomicBool::new(false),
            suspended: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where the app is.
    pub fn address(&self) -> UpstreamAddress {
        self.shared.place.load().pool.connector().address().clone()
    }

    /// What it has done so far.
    pub fn stats(&self) -> UpstreamStats {
        self.shared.metrics.read()
    }

    /// Makes a connection to the app and gives it up: whether something listens there.
    ///
    /// # Errors
    /// The system's.
    pub async fn connects(&self) -> Result<(), BoxError> {
        self.shared.place.load_full().pool.dial(Wanted::Negotiated).await
    }

    /// Whether something takes connections where the app is to listen, whatever it speaks.
    pub async fn is_taken(&self) -> bool {
        self.shared.place.load_full().pool.connector().is_taken().await
    }

    /// Has requests go to another port from now on; an app at a Unix socket has none. What is out
    /// goes on where it is.
    pub fn move_to(&self, port: u16) {
        let here = self.shared.place.load_full();
        let pool = here.pool.at_port(port);
        // An address that was one is one with any port.
        let authority = authority_of(pool.connector().address());
        let authority = authority.unwrap_or_else(|_| here.authority.clone());
        self.shared.place.store(Arc::new(Place { pool, authority }));
    }

    /// Asks the app for `path` on a connection of its own, past [`suspend`](Self::suspend) and the
    /// counters, and gives the status: whether it is well.
    ///
    /// # Errors
    /// There is no response.
    ///
    /// # Cancel safety
    /// The connection is closed.
    pub async fn check(&self, path: &str) -> Result<StatusCode, BoxError> {
        let mut request = Request::new(Body::default());
        *request.uri_mut() = path.parse()?;
        let (mut head, body) = request.into_parts();
        let place = self.shared.place.load_full();
        prepare_request(&mut head.headers, self.shared.rules(&place, false));
        let mut lease = place.pool.dial_for_check(self.shared.wanted(&head)).await?;
        let head = self.shared.addressed(head, lease.is_http2());
        let (upload, _) = Upload::new(body);
        let response = lease.send(Request::from_parts(head, upload)).await;
        Ok(response.map_err(hyper::client::conn::TrySendError::into_error)?.status())
    }

    /// Has no request go to the app until [`resume`](Self::resume): it is known to be down. Those
    /// that wait for the head of its response, and may be repeated, are given up, so that another
    /// instance gets them.
    pub fn suspend(&self) {
        self.shared.is_suspended.store(true, Release);
        // Its connections may be as dead as it is.
        self.shared.place.load().pool.forget();
        self.shared.suspended.notify_waiters();
    }

    /// Has requests go to the app again.
    pub fn resume(&self) {
        self.shared.is_suspended.store(false, Release);
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<UpstreamBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<UpstreamBody>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { Ok(shared.answer(request).await) })
    }
}

impl UpstreamShared {
    /// The app's response, or one that says why there is none.
    async fn answer(&self, mut request: Request<Body>) -> Response<UpstreamBody> {
        let request_id = request.headers().get("x-request-id").cloned();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        // A body that comes by a stream has no deadline but its stream's own.
        let is_message = request.body().is_whole();
        let client = take_upgrade(&mut request);
        // What came by a stream is this instance's to the end.
        let is_bound = !is_message || client.is_some();
        let may_repeat = method.is_idempotent() && !is_bound;
        let left = request.extensions().get::<Deadline>().map(Deadline::remaining);
        let left = left.filter(|_| !is_bound);
        let left = left.map(|left| left.saturating_sub(RESERVE));
        let limit = [left, self.response_timeout].into_iter().flatten().min();
        let answered = async {
            match client {
                Some(client) => self.upgrade(client, request).await,
                None => self.exchange(request, is_bound).await,
            }
        };
        let answered = async {
            match is_bound {
                true => answered.await,
                false => self.unless_suspended(may_repeat, answered).await,
            }
        };
        let answered = match limit {
            Some(limit) => {
                tokio::time::timeout(limit, answered).await.unwrap_or(Err(UpstreamError::TimedOut))
            }
            None => answered.await,
        };
        let error = match answered {
            Ok(response) => return response,
            Err(error) => error,
        };
        error.count(&self.metrics);
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        warn!(%error, cause, %method, path, "no response of the app");
        let request_id = request_id.as_ref().and_then(|id| id.to_str().ok());
        error.into_response(may_repeat, request_id)
    }

    /// Does not ask an app that is suspended, and gives up what may be repeated when it becomes so.
    async fn unless_suspended<T>(
        &self,
        may_repeat: bool,
        answered: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let suspended = self.suspended.notified();
        let mut suspended = std::pin::pin!(suspended);
        // From here on it is told, so that nothing comes between this and the look.
        suspended.as_mut().enable();
        if self.is_suspended.load(Acquire) {
            return Err(UpstreamError::Down("it is unhealthy".into()));
        }
        tokio::select! {
            answered = answered => answered,
            () = suspended, if may_repeat => Err(UpstreamError::GivenUp),
        }
    }

    /// A connection. What is bound to this instance waits a while for an app that is started again,
    /// or unhealthy; anything else is better off elsewhere.
    async fn connect(&self, way: Way, is_bound: bool) -> Result<Lease, UpstreamError> {
        let until = Instant::now() + self.patience;
        loop {
            let error = match is_bound && self.is_suspended.load(Acquire) {
                true => "it is unhealthy".into(),
                false => {
                    // It may be elsewhere once it was started again.
                    let pool = Arc::clone(&self.place.load().pool);
                    let lease = match way {
                        Way::Pooled { wanted, is_fresh } => pool.take(wanted, is_fresh).await,
                        Way::Upgrade => pool.dial_for_upgrade().await,
                    };
                    match lease {
                        Ok(lease) => return Ok(lease),
                        Err(error) => error,
                    }
                }
            };
            if !is_bound || Instant::now() + AGAIN > until {
                return Err(UpstreamError::Down(error));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Sends a request and gives its response once the head is there.
    async fn exchange(
        &self,
        request: Request<Body>,
        is_bound: bool,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let (mut head, mut body) = request.into_parts();
        prepare_request(&mut head.headers, self.rules(&self.place.load(), false));
        let wanted = self.wanted(&head);
        // One that is there can be sent again although it was taken.
        let whole = match body.is_whole() {
            true => std::mem::take(&mut body).into_bytes().await.ok(),
            false => None,
        };
        // Kept for another try; what may not be repeated is sent again only if it was never sent.
        let is_idempotent = head.method.is_idempotent();
        let mut is_again = false;
        loop {
            let way = Way::Pooled { wanted, is_fresh: is_again };
            let mut lease = self.connect(way, is_bound).await?;
            let spare = (!is_again && lease.is_reused()).then(|| head.clone());
            let (upload, returned) = Upload::new(whole.clone().map_or(body, Body::new));
            let request = Request::from_parts(self.addressed(head, lease.is_http2()), upload);
            let mut failed = match lease.send(request).await {
                Ok(response) => return Ok(self.received(response, lease)),
                Err(failed) => failed,
            };
            drop(lease);
            let unsent = failed.take_message().is_some();
            let error = failed.into_error();
            let spare = spare.filter(|_| unsent || is_idempotent || is_refused(&error));
            let back = match spare {
                Some(spare) if whole.is_some() => Some((spare, Body::default())),
                Some(spare) => returned.body().await.map(|body| (spare, body)),
                None => None,
            };
            let Some(back) = back else { return Err(UpstreamError::Broken(error.into())) };
            debug!(%error, "the app had closed the connection, sending once more");
            UpstreamMetrics::count(&self.metrics.sent_again);
            (head, body) = back;
            is_again = true;
        }
    }

    fn received(
        &self,
        response: Response<hyper::body::Incoming>,
        lease: Lease,
    ) -> Response<UpstreamBody> {
        let (mut head, body) = response.into_parts();
        prepare_response(&mut head.headers);
        // What is in there concerns this connection.
        head.extensions.clear();
        Response::from_parts(head, UpstreamBody::incoming(body, lease, Arc::clone(&self.metrics)))
    }

    /// Has the app upgrade a connection of its own, and joins it with the client's.
    async fn upgrade(
        &self,
        client: hyper::upgrade::OnUpgrade,
        request: Request<Body>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        if self.scheme == Scheme::H2c {
            return Err(UpstreamError::NoUpgrade);
        }
        let (mut head, body) = request.into_parts();
        prepare_request(&mut head.headers, self.rules(&self.place.load(), true));
        let mut lease = self.connect(Way::Upgrade, true).await?;
        let (upload, _) = Upload::new(body);
        let request = Request::from_parts(self.addressed(head, false), upload);
        let response = lease.send(request).await;
        let response =
            response.map_err(|failed| UpstreamError::Broken(failed.into_error().into()))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut head, body) = response.into_parts();
            prepare_response(&mut head.headers);
            head.extensions.clear();
            let body = UpstreamBody::incoming(body, lease, Arc::clone(&self.metrics));
            return Ok(Response::from_parts(head, body));
        }
        UpstreamMetrics::count(&self.metrics.upgrades);
        let (mut head, _) = splice(client, response).into_parts();
        head.extensions.clear();
        Ok(Response::from_parts(head, UpstreamBody::whole(bytes::Bytes::new())))
    }

    fn rules<'a>(&self, place: &'a Place, is_upgrade: bool) -> RequestRules<'a> {
        RequestRules { host: self.host, authority: &place.authority, is_upgrade }
    }

    /// The version of HTTP that a request is for.
    fn wanted(&self, head: &Parts) -> Wanted {
        match self.scheme {
            Scheme::H2c => Wanted::Http2,
            Scheme::Https => Wanted::Negotiated,
            Scheme::Http if is_grpc(&head.headers) => Wanted::Http2,
            Scheme::Http => Wanted::Http1,
        }
    }

    /// The head as the connection's version of HTTP has it: there the authority is a field, or part
    /// of the target.
    fn addressed(&self, mut head: Parts, is_http2: bool) -> Parts {
        head.extensions.clear();
        head.version = if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        if is_http2 {
            let place = self.place.load();
            let own = &place.authority;
            let authority = head.headers.remove(HOST).unwrap_or_else(|| own.clone());
            let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
            let scheme = if self.scheme == Scheme::Https { "https" } else { "http" };
            let uri = |authority: &[u8]| {
                let builder = Uri::builder().scheme(scheme).authority(authority);
                builder.path_and_query(path).build().ok()
            };
            let absolute = uri(authority.as_bytes()).or_else(|| uri(own.as_bytes()));
            head.uri = absolute.unwrap_or(head.uri);
        }
        head
    }
}

/// Whether a server says that it did nothing for a stream.
fn is_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = error.source();
    }
    false
}

/// The authority of an address, as a field.
fn authority_of(address: &UpstreamAddress) -> Result<HeaderValue, UpstreamConfigError> {
    let authority = address.authority();
    HeaderValue::try_from(&authority)
        .map_err(|_| UpstreamConfigError(format!("{authority:?} is no host")))
}
