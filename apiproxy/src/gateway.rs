//! A whole gateway: its shards, its listener, its control plane, and how it starts and stops.

use std::sync::Arc;
use std::time::Duration;

use natsway_boot::BrokerConfig;
use natsway_routes::table::RouteTable;
use natsway_routes::watch::{ActiveRoutes, Bucket};
use natsway_tunnel::socket::{UNACKNOWLEDGED_FOR, notice_loss};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::admin::AdminState;
use crate::control_plane::ControlPlane;
use crate::descriptors::allowed_connections;
use crate::drain::DrainStages;
use crate::listener::{accept, listen};
use crate::memory::plan::MemoryPlan;
use crate::results::SharedResults;
use crate::settings::Settings;
use crate::shard::INBOX_PREFIX;
use crate::shard_handle::ShardHandle;
use crate::shard_threads::ShardThreads;
use crate::start_error::StartError;
use crate::tunnel_listener::TunnelListener;

/// How long a gateway that starts may keep clients waiting for it to be ready; then it says that it
/// is not.
const START_LIMIT: Duration = Duration::from_secs(1);

/// How long a client that connected last has for its first request.
const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// Where a gateway's routes come from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it is taken apart at the start")]
pub enum Routes {
    /// A file's, as they were at the start.
    Fixed(RouteTable),
    /// A bucket's, as they change.
    Bucket(Bucket),
}

/// Runs a gateway until `shutdown`, then drains it. Needs a multi-thread or current-thread runtime
/// with I/O and time.
///
/// # Errors
/// [`StartError`]: nothing was served.
pub async fn run(
    settings: Settings,
    routes: Routes,
    broker: BrokerConfig,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let settings = Arc::new(settings);
    say_memory(&settings.memory);
    let most_connections = allowed_connections(&settings);
    let listener = listen(settings.listen)?;
    notice_vanished_clients(&listener, settings.client.send.span);
    let admin_listener = listen(settings.admin_listen)?;
    let tunnels = settings.tunnels.as_ref().map(TunnelListener::bind).transpose()?;
    let leaving = DrainStages::default();
    let (active_routes, bucket) = match routes {
        Routes::Fixed(table) => (ActiveRoutes::fixed(table), None),
        Routes::Bucket(bucket) => (ActiveRoutes::unknown(), Some(bucket)),
    };
    let offers = tunnels.as_ref().map(TunnelListener::offers);
    let results = SharedResults::default();
    let started =
        ShardThreads::start(&settings, &active_routes, &broker, &leaving, offers, &results);
    let (threads, handles) = started.map_err(StartError::Shard)?;
    let shards = handles.iter().map(|handle| Arc::clone(&handle.metrics)).collect();
    let connected = broker.connect_watched("apiproxy control", INBOX_PREFIX).await;
    let (client, refused) = connected.map_err(StartError::Broker)?;
    results.connect(client.clone());
    let control = ControlPlane::new(&settings, client, shards, active_routes);
    match bucket {
        Some(bucket) => control.follow_routes(&settings, bucket),
        None => control.follow_connection(),
    }
    control.report();
    control.stand_in(&settings, &refused);
    let watched = control.serve_admin(admin_listener, refused, leaving.draining.clone());

    let listening = tunnels.and_then(|tunnels| tunnels.spawn(&handles));
    let _tunnels = listening.map(AbortOnDropHandle::new);
    let stop_accepting = CancellationToken::new();
    let accepting =
        accept_when_ready(listener, watched, handles, most_connections, &stop_accepting);
    let (listen, admin, shards) = (settings.listen, settings.admin_listen, settings.shards);
    info!(%listen, %admin, %broker, shards, "gateway started");

    shutdown.cancelled().await;
    drain(&settings, leaving, stop_accepting, accepting, threads).await;
    control.end().await;
    Ok(())
}

/// Has connections end whose clients are gone without a word; one that only takes nothing has as
/// long as it may.
fn notice_vanished_clients(listener: &TcpListener, may_take_nothing: Duration) {
    let unacknowledged = may_take_nothing.max(UNACKNOWLEDGED_FOR);
    if let Err(error) = notice_loss(listener, Some(unacknowledged)) {
        warn!(%error, "clients that vanish are noticed late");
    }
}

/// Accepts clients once the gateway is ready, or says that it is not.
fn accept_when_ready(
    listener: TcpListener,
    watched: AdminState,
    handles: Vec<ShardHandle>,
    most_connections: usize,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let stop = stop.clone();
    tokio::spawn(async move {
        // Meanwhile clients wait in the backlog, where a restart would otherwise refuse them.
        tokio::select! {
            _ = tokio::time::timeout(START_LIMIT, watched.ready()) => {}
            () = stop.cancelled() => {}
        }
        accept(listener, handles, most_connections, stop).await;
    })
}

/// Says what the process may need, and warns when it may not have as much.
fn say_memory(plan: &MemoryPlan) {
    const MIB: usize = 1 << 20;
    let MemoryPlan { connections, held_bytes, streams, limit_bytes, .. } = *plan;
    let (needed_mib, limit_mib) =
        (plan.needed_bytes().div_ceil(MIB), limit_bytes.map(|bytes| bytes / MIB));
    info!(
        needed_mib,
        limit_mib, connections, held_bytes, streams, "memory that clients may make it need"
    );
    if !plan.fits() {
        warn!(
            needed_mib,
            limit_mib,
            "clients may make the gateway need more than nine tenths of its memory, and the system \
             would kill it: lower --max-connections, --max-held-bytes, --max-streams or --shards, \
             or raise the limit (mem_limit, MemoryMax)"
        );
    }
}

/// Says that it is not ready, goes on accepting for the grace period, then finishes what is in
/// hand.
async fn drain(
    settings: &Settings,
    leaving: DrainStages,
    stop_accepting: CancellationToken,
    accepting: JoinHandle<()>,
    threads: ShardThreads,
) {
    let deadline = tokio::time::Instant::now() + settings.drain.timeout;
    leaving.draining.cancel();
    info!(grace = ?settings.drain.grace, "not ready any more, still accepting");
    tokio::time::sleep(settings.drain.grace.min(settings.drain.timeout)).await;
    stop_accepting.cancel();
    // The listener closes once its backlog is empty; the shards end when their last connection
    // does.
    if accepting.await.is_err() {
        warn!("the listener's task failed");
    }
    // Who was accepted last has not sent a request yet, and to close its connection now would lose
    // that.
    tokio::time::timeout_at(deadline, tokio::time::sleep(LAST_REQUESTS)).await.ok();
    leaving.closing.cancel();
    match tokio::time::timeout_at(deadline, threads.join()).await {
        Ok(Some(0)) => info!("all requests finished"),
        Ok(_) => warn!("a shard failed"),
        Err(_) => {
            warn!(timeout = ?settings.drain.timeout, "requests were still in hand at the drain \
                                                      timeout")
        }
    }
}
