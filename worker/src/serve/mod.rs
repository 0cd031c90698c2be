//! The two ways to serve: handlers on the caller's runtime, or each on the thread that read its
//! request.

mod directives;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use http::{Request, Response};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, LocalSet};
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::info;

pub use self::directives::serve_scaled;
use crate::admission::{Admission, Start};
use crate::control_plane::discovery::Instance;
use crate::handler::context::ReaderContext;
use crate::handler::job::{Job, run};
use crate::handler::outbox::Outbox;
use crate::reader::Reader;
use crate::streams::Streams;
use crate::telemetry::metrics::{Load, WorkerMetrics};
use crate::telemetry::trace::Spans;
use crate::unary::UnaryTunnels;
use crate::{Body, BoxError, Error, OnCancel, Options, Summary};

/// Serves requests by `service` until `shutdown` completes, and then until what is in hand is
/// finished. A rollout that asks the workers of its subject to leave
/// (`apiproxy rollout start ... --stop-old`) ends it in the same way.
///
/// Requests are read on a thread of their own; each runs as a task on the runtime that this is
/// called on, a clone of the service each. So a handler may block or compute for a while, as far as
/// that runtime allows, and neither stalls the reading nor the leaving. Compare [`serve_local`].
///
/// An axum `Router` is such a service:
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use natsway_worker::{Options, serve};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let app = Router::new().route("/hello", get(|| async { "hello" }));
///
/// // Before: axum::serve(listener, app).await?;
/// serve(Options::new("svc.hello.blue"), app, natsway_worker::shutdown_signal()?).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error`]. A broker that is away is no error, neither at the start nor later: it is waited for.
///
/// # Cancel safety
/// Dropping the future begins to leave as `shutdown` does, without anyone to wait for its end.
pub async fn serve<S, B>(
    options: Options,
    service: S,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let handlers = Handle::current();
    let runtime = Some(handlers.clone());
    let starter = move || move |job: Job| Some(handlers.spawn(run(service.clone(), job)));
    launch(options, 1, runtime, starter, shutdown).await
}

/// Serves requests on as many threads as there are cores, each with its own broker connection and
/// its own service, until `shutdown` completes, and then until what is in hand is finished.
///
/// A request runs on the thread that read it, which spares it every crossing of threads: several
/// microseconds. The price is that a handler that blocks or computes for long stalls all others of
/// its thread, so this is for services that do not: after a second of it callers take the thread
/// for lost, and try their GETs elsewhere. They need not be `Send`.
///
/// # Errors
/// [`Error`], as for [`serve`].
///
/// # Cancel safety
/// As for [`serve`].
pub async fn serve_local<M, S, B>(
    options: Options,
    make_service: M,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error>
where
    M: FnOnce() -> S + Clone + Send + 'static,
    S: Service<Request<Body>, Response = Response<B>> + Clone + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body + 'static,
    B::Error: Into<BoxError>,
{
    let starter = move || {
        let service = make_service();
        move |job: Job| start_here(run(service.clone(), job))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    launch(options, cores, None, starter, shutdown).await
}

/// Runs a future as far as it goes, and spawns what is left of it: most handlers end without
/// waiting for anything, and then there is no task to schedule.
fn start_here(future: impl Future<Output = ()> + 'static) -> Option<JoinHandle<()>> {
    let mut future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
    // Whatever would have woken it is asked again by the task's own first poll.
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(()) => None,
        Poll::Pending => Some(tokio::task::spawn_local(future)),
    }
}

/// Starts the readers, waits for them, and adds up what they did. Tunnels are read on `tunnels`,
/// else on the thread of their reader.
async fn launch<M, F>(
    options: Options,
    default_readers: usize,
    tunnels: Option<Handle>,
    starter: M,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error>
where
    M: FnOnce() -> F + Clone + Send + 'static,
    F: Start,
{
    let config = options.check()?;
    let readers = config.readers.map_or(default_readers, usize::from).max(1);
    let share = |whole: usize| whole.div_ceil(readers);
    let limits = config.limits;
    let runtimes = (0..readers).map(|_| reader_runtime()).collect::<Result<Vec<_>, _>>()?;
    let permits = Arc::new(Semaphore::new(config.tunnels.max_streams));
    let context = |runtime: &Runtime| {
        let tunnel_runtime = tunnels.clone().unwrap_or_else(|| runtime.handle().clone());
        let metrics = config.subjects.iter().map(|_| WorkerMetrics::default()).collect();
        let spans = Spans::new(config.traced, &config.subjects, &config.queue_group);
        let outbox = Arc::new(Outbox::new());
        let streams = Streams::new(
            config.tunnels.clone(),
            Arc::clone(&permits),
            tunnel_runtime,
            config.pipe_end(&outbox),
        );
        Arc::new(ReaderContext {
            draining: Arc::default(),
            outbox,
            metrics,
            max_response_bytes: limits.response_bytes,
            spans,
            unary: UnaryTunnels::new(&config.tunnels),
            streams,
            instance: config.full_instance(),
        })
    };
    let load = || Load::new(share(limits.in_flight), share(limits.in_flight_bytes));
    let contexts: Vec<_> = runtimes.iter().map(|runtime| (context(runtime), load())).collect();
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let started_unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    let instance = Arc::new(Instance::new(config, started_unix_ms, contexts.clone()));

    let leave = CancellationToken::new();
    let leave_when_dropped = leave.clone().drop_guard();
    let mut ends = Vec::with_capacity(readers);
    for (index, ((context, load), runtime)) in contexts.into_iter().zip(runtimes).enumerate() {
        let (instance, starter, leave) = (Arc::clone(&instance), starter.clone(), leave.clone());
        let leave_all = leave.clone();
        ends.push(spawn_reader(index, runtime, leave, move || {
            let admission = Admission::new(
                context,
                load,
                &instance.config.full_instance(),
                limits.accepted_after,
                instance.config.on_cancel == OnCancel::Drop,
                starter(),
            );
            Reader::new(instance, index, admission, leave_all)
        })?);
    }
    let ends = join_all(ends);
    let mut ends = std::pin::pin!(ends);
    let outcomes = tokio::select! {
        outcomes = &mut ends => outcomes,
        () = shutdown => {
            info!(instance = %instance.id(), "leaving");
            leave.cancel();
            ends.await
        }
    };
    drop(leave_when_dropped);
    outcomes.into_iter().collect::<Result<(), Error>>()?;
    let summary = instance.summary();
    info!(
        instance = %instance.id(),
        requests = summary.requests,
        errors = summary.errors,
        shed = summary.shed,
        unfinished = summary.unfinished,
        "left"
    );
    Ok(summary)
}

fn reader_runtime() -> Result<Runtime, Error> {
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(Error::Thread)
}

/// Starts a reader on a thread of its own. If it fails, the others are told to leave.
fn spawn_reader<F: Start>(
    index: usize,
    runtime: Runtime,
    leave: CancellationToken,
    make: impl FnOnce() -> Reader<F> + Send + 'static,
) -> Result<impl Future<Output = Result<(), Error>>, Error> {
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name(format!("natsway-reader-{index}"));
    thread
        .spawn(move || {
            // A panic drops this too, so the others leave rather than serve at half strength
            // unnoticed.
            let _leave_with_us = leave.clone().drop_guard();
            let local = LocalSet::new();
            let outcome = local.block_on(&runtime, async move { make().run(leave).await });
            // Nobody listens when the future of the whole was dropped.
            ended.send(outcome).ok();
        })
        .map_err(Error::Thread)?;
    Ok(async move { end.await.unwrap_or(Err(Error::ReaderPanicked)) })
}
