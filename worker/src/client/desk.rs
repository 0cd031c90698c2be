//! The client's thread: its broker connection, the routes that it goes by, and what it tells others of itself.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use natsway_caller::lanes::{LaneCounts, Lanes};
use natsway_caller::links::Role;
use natsway_caller::retry::Budget;
use natsway_routes::report::{self, Report};
use natsway_routes::watch::{InForce, follow_only};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::call::{self, Call};
use super::options::Config;
use super::spans::Spans;
use super::view::{Tried, View};
use crate::Error;

/// The inbox prefix of callers, so that their permissions can be written down.
const INBOX_PREFIX: &str = "_INBOX_caller";

/// How long telling others that this caller is gone may take.
const LAST_REPORT: Duration = Duration::from_millis(500);

/// What the calls of one client share.
pub(super) struct Desk {
    pub(super) lanes: Lanes,
    /// Retries that may be spent.
    pub(super) budget: RefCell<Budget>,
    in_force: InForce,
    view: RefCell<Rc<View>>,
    tried: Tried,
    pub(super) spans: Spans,
    /// The revision of the routes by which every call goes that is sent from now on.
    goes_by: Cell<u64>,
    identity: Identity,
}

/// Who the caller is, for others.
struct Identity {
    /// Another one after each start.
    id: String,
    host: String,
    started: Instant,
}

impl Identity {
    fn new(name: &str) -> Identity {
        let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host = format!("{} {name}", machine.as_deref().unwrap_or("unknown"));
        Identity { id: natsway_boot::random_id(), host, started: Instant::now() }
    }
}

/// Starts the thread; returns when it can call, or will.
pub(super) async fn start(
    config: Config,
    calls: mpsc::Receiver<Call>,
    close: CancellationToken,
    closed: CancellationToken,
) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
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
    let (desk, control) = match Desk::open(&config).await {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody listens when the start was given up.
            started.send(Err(error)).ok();
            return;
        }
    };
    let left = CancellationToken::new();
    let figures = Rc::clone(&desk);
    let leave = left.clone().cancelled_owned();
    let source = natsway_wire::control::CALLER_SOURCE;
    let reporting = report::keep(control.clone(), source, move || figures.report(), leave);
    let reporting = spawn_local(reporting);
    if tokio::time::timeout(config.patience, desk.ready()).await.is_err() {
        warn!(patience = ?config.patience, broker = %config.broker, "cannot call others yet: no broker, or no routes in it");
    }
    info!(caller = %config.name, id = %desk.identity.id, "client started");
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
        tasks.spawn_local(call::answer(Rc::clone(&desk), call));
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

impl Desk {
    /// Connects for calls, and once more for the routes and figures: that connection may come back by itself.
    async fn open(config: &Config) -> Result<(Rc<Desk>, async_nats::Client), Error> {
        let role = Role {
            name: format!("caller {}", config.name),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            // What callers need of the routes bucket has no safe way between accounts.
            says_reply_subject: false,
        };
        let lanes = Lanes::new(role, NonZeroUsize::MIN, config.limits, &LaneCounts::default());
        lanes.connect(&config.broker).await?;
        let control = config.broker.connect(&format!("caller {} control", config.name), INBOX_PREFIX).await;
        let control = control.map_err(Error::Unreachable)?;

        let (in_force, tried) = (InForce::unknown(), Tried::default());
        spawn_local(follow_only(control.clone(), config.bucket.clone(), in_force.clone()));
        let view = View::new(in_force.table.load_full(), &tried);
        let revisions = in_force.revisions.subscribe();
        let desk = Rc::new(Desk {
            lanes,
            budget: RefCell::new(Budget::new(Instant::now())),
            in_force,
            view: RefCell::new(Rc::new(view)),
            tried,
            spans: Spans::new(config.traced),
            goes_by: Cell::new(0),
            identity: Identity::new(&config.name),
        });
        spawn_local(follow_routes(Rc::clone(&desk), revisions));
        Ok((desk, control))
    }

    /// Waits for the routes and for a connection.
    async fn ready(&self) {
        let mut revisions = self.in_force.revisions.subscribe();
        while !self.knows_routes() {
            // It is not closed, since its sender is ours.
            revisions.changed().await.ok();
        }
        self.lanes.connected().await;
    }

    /// The routes in force.
    pub(super) fn routes(&self) -> Rc<View> {
        let newest = self.in_force.table.load();
        if !Arc::ptr_eq(&newest, &self.view.borrow().table) {
            self.view.replace(Rc::new(View::new(Arc::clone(&newest), &self.tried)));
        }
        Rc::clone(&self.view.borrow())
    }

    /// Whether there are routes at all: false until the bucket was read.
    pub(super) fn knows_routes(&self) -> bool {
        self.in_force.known.load(Ordering::Acquire)
    }

    /// What it has counted, and the newest routes by which it goes.
    fn report(&self) -> Report {
        Report {
            id: self.identity.id.clone(),
            role: report::Role::Caller,
            host: self.identity.host.clone(),
            age_ms: u64::try_from(self.identity.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            revision: self.goes_by.get(),
            bucket: self.in_force.reading.load().bucket,
            refused: self.in_force.refused(),
            whole: true,
            versions: self.tried.figures(),
            ..Report::default()
        }
    }
}

/// Notes by which routes this thread goes. A call chooses its version and is counted as out without giving way to this
/// task in between, so whatever went by older routes is counted when a newer revision is noted here.
async fn follow_routes(desk: Rc<Desk>, mut revisions: watch::Receiver<u64>) {
    loop {
        let revision = *revisions.borrow_and_update();
        desk.routes();
        desk.goes_by.set(revision);
        if revisions.changed().await.is_err() {
            return;
        }
    }
}
