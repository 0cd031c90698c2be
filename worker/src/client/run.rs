//! Starts the client's thread, hands it its calls, and ends it in order.

use std::rc::Rc;
use std::time::Duration;

use natsway_routes::report;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::call::{self, Call};
use super::options::Config;
use super::thread::ClientThread;
use crate::Error;

/// How long telling others that this caller is gone may take.
const LAST_REPORT: Duration = Duration::from_millis(500);

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
    thread.streams.ended().await;
    left.cancel();
    let told = async {
        reporting.await.ok();
        control.flush().await.ok();
    };
    // Others would wait for this caller a while if they missed its last report, and not for ever.
    tokio::time::timeout(LAST_REPORT, told).await.ok();
}
