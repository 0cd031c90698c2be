//! A whole gateway: its cores, its listener, its admin address, and how it starts and stops.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_nats::Client;
use natsway_boot::{Broker, Refused};
use natsway_routes::report;
use natsway_routes::table::RouteTable;
use natsway_routes::watch::{Bucket, InForce, follow};
use natsway_wire::control;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::connection::{self, Leaving};
use crate::core::{Core, INBOX_PREFIX};
use crate::descriptors::allowed_connections;
use crate::identity::Identity;
use crate::listener::{Accepted, Seat, accept, bind};
use crate::memory::LOOK_INTERVAL;
use crate::memory::plan::MemoryPlan;
use crate::metrics::CoreMetrics;
use crate::rollout::driver::{Beliefs, Driver, Progresses};
use crate::settings::Settings;
use crate::told::Told;
use crate::{admin, tombstone};

/// Connections that may wait for a core to take them over; the listener waits when there are more.
const HANDOVER: usize = 256;

/// How long a gateway that starts may keep clients waiting for it to be ready; then it says that it is not.
const START_LIMIT: Duration = Duration::from_secs(1);

/// How long a client that connected last has for its first request.
const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// How long telling others that this gateway is gone may take.
const LAST_REPORT: Duration = Duration::from_millis(500);

/// How long a gateway waits that may not hear what it must, until it asks again; the cores wait as long.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Where a gateway's routes come from.
#[derive(Debug)]
pub enum Routes {
    /// A file's, as they were at the start.
    Fixed(RouteTable),
    /// A bucket's, as they change.
    Bucket(Bucket),
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}; is another process using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A thread or a runtime cannot be had.
    #[error("cannot start a core")]
    Core(#[source] io::Error),
    /// What keeps the broker out of reach for ever.
    #[error("cannot reach the broker, now or later")]
    Broker(#[source] async_nats::ConnectError),
}

/// Runs a gateway until `shutdown`, then drains it. Needs a multi-thread or current-thread runtime with I/O and time.
///
/// # Errors
/// [`StartError`]: nothing was served.
pub async fn run(
    settings: Settings,
    routes: Routes,
    broker: Broker,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let settings = Arc::new(settings);
    say_memory(&settings.memory);
    let most_connections = allowed_connections(&settings);
    let listener = listen(settings.listen)?;
    let admin_listener = listen(settings.admin_listen)?;
    let leaving = Leaving::default();
    let (in_force, bucket) = match routes {
        Routes::Fixed(table) => (InForce::fixed(table), None),
        Routes::Bucket(bucket) => (InForce::unknown(), Some(bucket)),
    };

    let mut seats = Vec::new();
    let mut threads = Vec::new();
    for number in 0..settings.cores.get() {
        let (connections, handed_over) = mpsc::channel(HANDOVER);
        let metrics = Arc::<CoreMetrics>::default();
        seats.push(Seat { connections, metrics: Arc::clone(&metrics) });
        let core = CoreThread {
            settings: Arc::clone(&settings),
            metrics,
            in_force: in_force.clone(),
            broker: broker.clone(),
            leaving: leaving.child(),
        };
        threads.push(core.spawn(number, handed_over).map_err(StartError::Core)?);
    }

    let connected = broker.connect_watched("apiproxy control", INBOX_PREFIX).await;
    let (control, refused) = connected.map_err(StartError::Broker)?;
    let cores: Arc<[Arc<CoreMetrics>]> = seats.iter().map(|seat| Arc::clone(&seat.metrics)).collect();
    let identity = Identity::new(settings.listen);
    let progresses = Progresses::default();
    let beliefs = Arc::<Beliefs>::default();
    if let Some(bucket) = bucket {
        let rollouts = Driver::new(
            control.clone(),
            &bucket,
            in_force.clone(),
            Arc::clone(&progresses),
            settings.peers,
            Arc::clone(&beliefs),
        );
        tokio::spawn(follow(control.clone(), bucket, in_force.clone()));
        tokio::spawn(rollouts.run(identity.id.clone()));
        if !settings.across_accounts {
            tokio::spawn(tombstone::of_rollouts(control.clone(), in_force.clone()));
        }
    }
    let finished = CancellationToken::new();
    let (figures, known) = (Arc::clone(&cores), in_force.clone());
    let reporting = tokio::spawn(report::keep(
        control.clone(),
        control::GATEWAY_SOURCE,
        move || identity.report(&figures, &known, &progresses),
        finished.clone().cancelled_owned(),
    ));
    let told = Told::by(control.clone());
    tokio::spawn(ask_again(control.clone(), refused.clone()));
    // Beside an import from another account a queue group here is one more receiver, not a member of the workers': both would
    // get each request.
    if !settings.across_accounts {
        tokio::spawn(tombstone::keep(control));
    }
    let watched = admin::Watched {
        cores,
        routes: in_force,
        told,
        refused,
        draining: leaving.draining.clone(),
        beliefs,
    };
    let ready = watched.clone();
    let admin = axum::serve(admin_listener, admin::router(watched));
    tokio::spawn(async move {
        if let Err(error) = admin.await {
            warn!(%error, "admin address closed");
        }
    });
    let stop_accepting = CancellationToken::new();
    let stopped = stop_accepting.clone();
    let accepting = tokio::spawn(async move {
        // Meanwhile clients wait in the backlog, where a restart would otherwise refuse them.
        tokio::select! {
            _ = tokio::time::timeout(START_LIMIT, ready.ready()) => {}
            () = stopped.cancelled() => {}
        }
        accept(listener, seats, most_connections, stopped).await;
    });
    info!(listen = %settings.listen, admin = %settings.admin_listen, %broker, cores = settings.cores, "gateway started");

    shutdown.cancelled().await;
    drain(&settings, leaving, stop_accepting, accepting, threads).await;
    finished.cancel();
    // Others would wait for this gateway a while if they missed its last report, and not for ever.
    tokio::time::timeout(LAST_REPORT, reporting).await.ok();
    Ok(())
}

/// Makes a connection anew from time to time that may not hear what it must: what a broker has refused, it is not asked for
/// again on the same connection, and the permission may have been given by now.
async fn ask_again(control: Client, refused: Refused) {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if refused.find(admin::is_needed).is_some() {
            // A client that has ended has nothing to ask for.
            control.force_reconnect().await.ok();
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |source| StartError::Listen { address, source };
    TcpListener::from_std(bind(address).map_err(failed)?).map_err(failed)
}

/// Says what the process may need, and warns when it may not have as much.
fn say_memory(plan: &MemoryPlan) {
    const MIB: usize = 1 << 20;
    let MemoryPlan { connections, held_bytes, limit_bytes, .. } = *plan;
    let (needed_mib, limit_mib) = (plan.needed_bytes().div_ceil(MIB), limit_bytes.map(|bytes| bytes / MIB));
    info!(needed_mib, limit_mib, connections, held_bytes, "memory that clients may make it need");
    if !plan.fits() {
        warn!(
            needed_mib,
            limit_mib,
            "clients may make the gateway need more than nine tenths of its memory, and the system would kill it: \
             lower --max-connections, --max-held-bytes or --cores, or raise the limit (mem_limit, MemoryMax)"
        );
    }
}

/// Says that it is not ready, goes on accepting for the grace period, then finishes what is in hand.
async fn drain(
    settings: &Settings,
    leaving: Leaving,
    stop_accepting: CancellationToken,
    accepting: tokio::task::JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
) {
    let deadline = tokio::time::Instant::now() + settings.drain.limit;
    leaving.draining.cancel();
    info!(grace = ?settings.drain.grace, "not ready any more, still accepting");
    tokio::time::sleep(settings.drain.grace.min(settings.drain.limit)).await;
    stop_accepting.cancel();
    // The listener closes once its backlog is empty; the cores end when their last connection does.
    if accepting.await.is_err() {
        warn!("the listener's task failed");
    }
    // Who was accepted last has not sent a request yet, and to close its connection now would lose that.
    tokio::time::timeout_at(deadline, tokio::time::sleep(LAST_REQUESTS)).await.ok();
    leaving.closing.cancel();
    match tokio::time::timeout_at(deadline, joined(threads)).await {
        Ok(Some(0)) => info!("all requests finished"),
        Ok(_) => warn!("a core failed"),
        Err(_) => warn!(limit = ?settings.drain.limit, "requests were still in hand at the drain limit"),
    }
}

/// How many of the threads failed, once all have ended. They are joined on a thread of their own rather than on the
/// runtime's: that would not end before they do, and the drain limit would be none.
async fn joined(threads: Vec<JoinHandle<()>>) -> Option<usize> {
    let (ended, all_ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let failed = threads.into_iter().filter_map(|core| core.join().err()).count();
        // Nobody listens any more once the limit has passed.
        ended.send(failed).ok();
    });
    all_ended.await.ok()
}

/// What a core's thread starts from.
struct CoreThread {
    settings: Arc<Settings>,
    metrics: Arc<CoreMetrics>,
    in_force: InForce,
    broker: Broker,
    leaving: Leaving,
}

impl CoreThread {
    fn spawn(self, number: usize, handed_over: mpsc::Receiver<Accepted>) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name(format!("core-{number}"))
            .spawn(move || LocalSet::new().block_on(&runtime, self.run(handed_over)))
    }

    /// Serves connections until the listener is closed and the last connection has ended.
    async fn run(self, mut handed_over: mpsc::Receiver<Accepted>) {
        let revisions = self.in_force.revisions.subscribe();
        let core = Core::new(self.settings, Arc::clone(&self.metrics), self.in_force);
        core.keep_connected(&self.broker);
        let waiting = Rc::clone(&core);
        spawn_local(async move { waiting.room.look_after().await });
        let memory = Rc::clone(&core.memory);
        spawn_local(async move {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                memory.look();
            }
        });
        spawn_local(follow_routes(Rc::clone(&core), revisions));
        let connections = TaskTracker::new();
        while let Some(Accepted { stream, peer, permit }) = handed_over.recv().await {
            let (core, leaving, metrics) =
                (Rc::clone(&core), self.leaving.clone(), Arc::clone(&self.metrics));
            connections.spawn_local(async move {
                match TcpStream::from_std(stream) {
                    Ok(stream) => connection::serve(core, stream, peer, leaving).await,
                    Err(error) => warn!(%error, "accepted connection not served"),
                }
                metrics.connections.add(-1);
                drop(permit);
            });
        }
        connections.close();
        connections.wait().await;
    }
}

/// Says by which routes this core goes. A request chooses its version and is counted as out without giving way to this
/// task in between, so whatever went by older routes is counted when a newer revision is said here.
async fn follow_routes(core: Rc<Core>, mut revisions: watch::Receiver<u64>) {
    loop {
        let revision = *revisions.borrow_and_update();
        core.routes();
        core.metrics.goes_by(revision);
        if revisions.changed().await.is_err() {
            return;
        }
    }
}
