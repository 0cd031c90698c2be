//! The client's thread: its broker connection, the routes that it goes by, and what it tells others
//! of itself.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use natsway_caller::codec_pools::{CodecCounts, CodecPools};
use natsway_caller::dispatch::Dispatcher;
use natsway_caller::identity::Identity;
use natsway_caller::pool;
use natsway_routes::report::{self, Report, Role};
use natsway_routes::watch::{ActiveRoutes, follow_only};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::call::{self, Call};
use super::ledger::AttemptLedger;
use super::options::Config;
use super::spans::Spans;
use crate::Error;

/// The inbox prefix of callers, so that their permissions can be written down.
const INBOX_PREFIX: &str = "_INBOX_caller";

/// How long telling others that this caller is gone may take.
const LAST_REPORT: Duration = Duration::from_millis(500);

/// What the calls of one client share.
pub(super) struct ClientThread {
    pub(super) dispatcher: Dispatcher<AttemptLedger>,
    pub(super) spans: Spans,
    /// The revision of the routes by which every call goes that is sent from now on.
    goes_by: Cell<u64>,
    identity: Identity,
}

/// Starts the thread; returns when it can call, or will.
pub(super) async fn start(
    config: Config,
    calls: mpsc::Receiver<Call>,
    close: CancellationToken,
    closed: CancellationToken,
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    let (started, start) = oneshot::channel();
    let thread = std::thread::Builder::new().name("natsway-client".to_owned());
    thread
        .spawn(move || {
            let _closed = closed.drop_guard();
            LocalSet::new().block_on(&runtime, run(config, calls, close, started));
        })
        .map_err(Error::Thread)?;
    start.await.unwrap_or(Err(Error::ClientPanicked))
}

/// Connects, then takes calls until told to close, and finishes those that were taken.
async fn run(
    config: Config,
    mut calls: mpsc::Receiver<Call>,
    close: CancellationToken,
    started: oneshot::Sender<Result<(), Error>>,
) {
    let (thread, control) = match ClientThread::open(&config).await {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody listens when the start was given up.
            started.send(Err(error)).ok();
            return;
        }
    };
    let left = CancellationToken::new();
    let metrics = Rc::clone(&thread);
    let leave = left.clone().cancelled_owned();
    let source = natsway_wire::control::CALLER_SOURCE;
    let reporting = report::keep(control.clone(), source, move || metrics.report(), leave);
    let reporting = spawn_local(reporting);
    if tokio::time::timeout(config.patience, thread.ready()).await.is_err() {
        warn!(patience = ?config.patience, broker = %config.broker, "cannot call others yet: no \
                                                                     broker, or no routes in it");
    }
    info!(caller = %config.name, id = %thread.identity.id, "client started");
    started.send(Ok(())).ok();

    let tasks = TaskTracker::new();
    loop {
        let call = tokio::select! {
            call = calls.recv() => call,
            () = close.cancelled(), if !calls.is_closed() => {
                calls.close();
                continue;
            }
        };
        let Some(call) = call else { break };
        tasks.spawn_local(call::answer(Rc::clone(&thread), call));
    }
    tasks.close();
    tasks.wait().await;
    left.cancel();
    let told = async {
        reporting.await.ok();
        control.flush().await.ok();
    };
    // Others would wait for this caller a while if they missed its last report, and not for ever.
    tokio::time::timeout(LAST_REPORT, told).await.ok();
}

impl ClientThread {
    /// Connects for calls, and once more for the routes and metrics: that connection may come back
    /// by itself.
    async fn open(config: &Config) -> Result<(Rc<ClientThread>, async_nats::Client), Error> {
        let role = pool::Role {
            name: format!("caller {}", config.name),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            // What callers need of the routes bucket has no safe way between accounts.
            says_reply_subject: false,
        };
        let pools =
            CodecPools::new(role, NonZeroUsize::MIN, config.limits, &CodecCounts::default());
        pools.connect(&config.broker).await?;
        let control =
            config.broker.connect(&format!("caller {} control", config.name), INBOX_PREFIX).await;
        let control = control.map_err(Error::Unreachable)?;

        let active_routes = ActiveRoutes::unknown();
        spawn_local(follow_only(control.clone(), config.bucket.clone(), active_routes.clone()));
        let (ledger, counts) = (AttemptLedger::default(), Arc::default());
        let thread = Rc::new(ClientThread {
            dispatcher: Dispatcher::new(pools, active_routes, ledger, counts),
            spans: Spans::new(config.traced),
            goes_by: Cell::new(0),
            identity: Identity::new(Role::Caller, &config.name),
        });
        let following = Rc::clone(&thread);
        spawn_local(async move {
            let goes_by = |revision| following.goes_by.set(revision);
            following.dispatcher.routes().follow(goes_by).await;
        });
        Ok((thread, control))
    }

    /// Waits for the routes and for a connection.
    async fn ready(&self) {
        self.dispatcher.routes().known().await;
        self.dispatcher.pools().connected().await;
    }

    /// What it has counted, and the newest routes by which it goes.
    fn report(&self) -> Report {
        let routes = self.dispatcher.routes();
        self.identity.report(self.goes_by.get(), routes.ledger().metrics(), routes.active_routes())
    }
}
