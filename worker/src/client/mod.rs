//! Calls other services by the names of their routes, without an address and without a trip through
//! a gateway.
//!
//! A [`Client`] hands each call to a thread of its own, its [`thread`], which holds the broker
//! connection, the routes in force and the metrics; all of that is for one thread, as it is in the
//! gateway. [`run`] starts and ends it. [`call`] is one call's way there, [`outbound`] its request
//! as the dispatcher sends it. [`context`] is what a request that is being handled hands on. What
//! fits in no message goes by [`streams`], on [`tunnels`] that workers dial to this thread.

mod call;
mod context;
mod error;
mod going_up;
mod ledger;
mod options;
mod outbound;
mod run;
#[cfg_attr(not(feature = "trace"), path = "spans_noop.rs")]
mod spans;
mod stream_places;
mod streams;
mod thread;
mod tunnels;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Instant;

use http::{Request, Response};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tower::Service;

use self::call::Call;
pub use self::context::Context;
pub use self::error::{CallError, CallErrorKind};
pub use self::options::ClientOptions;
use crate::{Body, Error};

/// Calls that may wait for the client's thread to take them, which it does at once; more wait to be
/// put there.
const HANDOVER: usize = 1_024;

/// Calls services by the names of their routes: a [`tower::Service`].
///
/// The target is the request's authority: `http://math/sum?n=1` is `/sum?n=1` at the route named
/// `math`, on the version that the route's rules and weights choose now, as a gateway would; routes
/// that are `internal` are reached as well. A route's host, path, methods and `strip_prefix` are
/// its public face, and are not looked at: the path is the service's own. Whether the scheme is
/// `http` or `https` makes no difference.
///
/// A call waits no longer than its route's `timeout`, and no longer than the request that is being
/// handled has left: see [`within`](Client::within). It is tried again as a gateway would, within a
/// budget. Dropping its future cancels the work at its worker. Clones share one thread and one
/// broker connection; a process needs one client.
///
/// Bodies are streams both ways where the client takes tunnels
/// ([`ClientOptions::tunnel_listen`], [`ClientOptions::tunnel_pipes`]): see [`Body::wrap`]. A
/// response's body that breaks off is an error, never an end, and dropping it cancels the work.
/// What goes up by a stream is not tried again once some of it was sent; the `timeout` then counts
/// from its last byte on.
///
/// ```no_run
/// use axum::Router;
/// use axum::extract::State;
/// use axum::routing::get;
/// use http::request::Parts;
/// use natsway_worker::{Body, CallError, Client, ClientOptions, Options, serve, shutdown_signal};
///
/// /// The handler's own deadline, trace and request id go with the calls that it makes.
/// async fn total(
///     State(client): State<Client>,
///     request: Parts,
/// ) -> Result<Vec<u8>, http::StatusCode> {
///     let call = http::Request::get("http://math/sum?n=1&n=2").body(Body::default()).expect("a sound uri");
///     let answer = client.within(&request).send(call).await.map_err(|error| error.status())?;
///     let body = answer.into_body().into_bytes().await;
///     Ok(body.map_err(|_| http::StatusCode::BAD_GATEWAY)?.to_vec())
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::connect(ClientOptions::new("shop")).await?;
/// let app = Router::new().route("/total", get(total)).with_state(client.clone());
/// serve(Options::new("svc.shop.blue"), app, shutdown_signal()?).await?;
/// client.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    handover: Arc<Handover>,
    context: Context,
}

/// The way to the client's thread.
#[derive(Debug)]
struct Handover {
    calls: mpsc::Sender<Call>,
    /// Has the thread take no more calls.
    close: CancellationToken,
    /// The thread has told its last metrics.
    closed: CancellationToken,
}

/// Ends the thread with the last clone.
impl Drop for Handover {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

impl Client {
    /// A client that has read the routes, or that will: a broker that is away is waited for, here
    /// for some seconds ([`ClientOptions::patience`]) and then in the background. Until it is
    /// there, calls fail with [`CallErrorKind::Unavailable`].
    ///
    /// # Errors
    /// [`Error`]: options that cannot be, a broker that refuses us or is too old, no thread.
    pub async fn connect(options: ClientOptions) -> Result<Self, Error> {
        let config = options.check()?;
        let (calls, handed_over) = mpsc::channel(HANDOVER);
        let (close, closed) = (CancellationToken::new(), CancellationToken::new());
        let handover = Arc::new(Handover { calls, close: close.clone(), closed: closed.clone() });
        run::start(config, handed_over, close, closed).await?;
        Ok(Self { handover, context: Context::default() })
    }

    /// The same client for calls that belong to a request that is being handled: they have its
    /// deadline, or an earlier one of their own, and its `traceparent`, `tracestate` and
    /// `x-request-id` where they do not bring their own.
    ///
    /// Takes a request, its [`Parts`](http::request::Parts) (which axum extracts), or a
    /// [`Context`].
    #[must_use]
    pub fn within(&self, context: impl Into<Context>) -> Self {
        Self { handover: Arc::clone(&self.handover), context: context.into() }
    }

    /// Sends a request and waits for its response: what [`call`](Service::call) does, for those who
    /// hold no `&mut`.
    ///
    /// # Errors
    /// [`CallError`]. Any response is `Ok`, also a 5xx.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the work at its worker, unless the route says otherwise.
    pub fn send(
        &self,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, CallError>> + Send + use<> {
        self.context.apply(&mut request);
        spans::follow_current(request.headers_mut());
        let (handover, started) = (Arc::clone(&self.handover), Instant::now());
        async move {
            let (answer, answered) = oneshot::channel();
            let call = Call { request, started, answer };
            handover.calls.send(call).await.map_err(|_| CallError::closed())?;
            answered.await.unwrap_or_else(|_| Err(CallError::closed()))
        }
    }

    /// Takes no more calls, on this and every other clone, waits for those that are out and for
    /// bodies that are still read, and tells the others that nothing comes from here any more, so
    /// that no deploy waits for it. To be called before a process ends.
    ///
    /// # Cancel safety
    /// It goes on without anyone to wait for it.
    pub async fn close(&self) {
        self.handover.close.cancel();
        self.handover.closed.cancelled().await;
    }
}

impl Service<Request<Body>> for Client {
    type Response = Response<Body>;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, CallError>> + Send>>;

    /// Always ready: a client with too much out fails the call at once, with
    /// [`CallErrorKind::Unavailable`].
    fn poll_ready(&mut self, _: &mut Poller<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.send(request))
    }
}
