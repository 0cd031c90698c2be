//! Keeps the routes in force equal to the bucket's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_nats::Client;
use futures_util::StreamExt;
use futures_util::future::{Fuse, FusedFuture, FutureExt};
use natsway_boot::Clock;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::document::RouteDocument;
use crate::lease::{CONFIRM_INTERVAL, Lease};
use crate::reconciler::{RejectedDocument, RouteReconciler};
use crate::store::{RouteStore, StoreError, Update};
use crate::table::{RouteTable, Transport};

/// How long to wait before another try to reach the bucket.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How often a look is taken whether the client has another connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Where a gateway's routes live.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Copies of it in a cluster, when it has to be made.
    pub replicas: usize,
    /// What a bucket is filled with that nobody has written to.
    pub seed: Vec<RouteDocument>,
}

/// The routes in force, for all who need them.
#[derive(Clone, Debug)]
pub struct ActiveRoutes {
    /// The table.
    pub table: Arc<ArcSwap<RouteTable>>,
    /// Whether there is one: false until the bucket was read.
    pub known: Arc<AtomicBool>,
    /// What it was made of.
    pub status: Arc<ArcSwap<BucketStatus>>,
    /// The newest revision in force, told after the table is: who waits here finds the table of it,
    /// or a newer one.
    pub revisions: watch::Sender<u64>,
    /// How long requests may go by tunnels, where who goes by old routes is not told.
    pub lease: Arc<Lease>,
    /// The clock of the lease.
    pub clock: Clock,
}

/// What was taken in of the bucket last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BucketStatus {
    /// Routes in force.
    pub serving: usize,
    /// Documents that are not.
    pub refusals: Vec<RejectedDocument>,
    /// Identifies the bucket among others of its name; see [`RouteStore::made_at`].
    pub bucket: u64,
    /// The newest revision of the bucket.
    pub revision: u64,
    /// Whether requests of some route may go by tunnels.
    pub uses_tunnels: bool,
    /// The documents in force that have a rollout, each with its revision.
    pub rollouts: Vec<(u64, Arc<RouteDocument>)>,
}

impl ActiveRoutes {
    /// Routes that are known from the start, and stay. Their lease is to
    /// [follow](Lease::follow_connection) a connection.
    pub fn fixed(table: RouteTable) -> Self {
        let active_routes = Self::unknown();
        active_routes.publish(table, BucketStatus::default());
        active_routes
    }

    /// No routes yet.
    pub fn unknown() -> Self {
        let (table, known, status, lease) = Default::default();
        let (revisions, clock) = (watch::Sender::new(0), Clock::start());
        Self { table, known, status, revisions, lease, clock }
    }

    /// The routes whose newest document is refused.
    pub fn refused(&self) -> Vec<String> {
        self.status.load().refusals.iter().map(|refusal| refusal.name.clone()).collect()
    }

    fn publish(&self, table: RouteTable, status: BucketStatus) {
        let revision = status.revision;
        let serving = table.routes().len();
        let uses_tunnels = table.routes().iter().any(|route| route.transport == Transport::Auto);
        self.status.store(Arc::new(BucketStatus { serving, uses_tunnels, ..status }));
        self.table.store(Arc::new(table));
        self.known.store(true, Ordering::Release);
        self.revisions.send_replace(revision);
    }
}

/// Who keeps a bucket.
#[derive(Clone, Debug)]
enum Keeper {
    /// We make and fill it if need be.
    Us(Bucket),
    /// Others do; its name.
    Others(String),
}

impl Keeper {
    /// Opens the bucket. `seeding` says, over all attempts, whether we have begun to fill it.
    async fn open(&self, client: &Client, seeding: &mut bool) -> Result<RouteStore, StoreError> {
        match self {
            Self::Us(bucket) => {
                let store =
                    RouteStore::open_or_create(client.clone(), &bucket.name, bucket.replicas)
                        .await?;
                let replicas = store.replicas();
                if replicas < bucket.replicas {
                    warn!(
                        replicas,
                        asked_for = bucket.replicas,
                        "the routes bucket has fewer copies than asked for: nats stream edit KV_{} \
                         --replicas {}",
                        bucket.name,
                        bucket.replicas
                    );
                }
                seed(&store, &bucket.seed, seeding).await?;
                Ok(store)
            }
            Self::Others(name) => RouteStore::open(client.clone(), name).await,
        }
    }

    /// What is to be done when the bucket is not reached.
    fn advice(&self) -> &'static str {
        match self {
            Self::Us(_) => {
                "it needs JetStream, and where users may not make buckets `apiproxy setup`; or \
                 start with --static-routes"
            }
            Self::Others(_) => "a gateway with live routes makes it, or `apiproxy setup`",
        }
    }
}

/// Follows the bucket for ever, making and filling it if need be. What was read last stays in force
/// while the broker is away.
pub async fn follow(client: Client, bucket: Bucket, active_routes: ActiveRoutes) {
    keep_current(client, Keeper::Us(bucket), active_routes).await;
}

/// Follows a bucket that others make, for ever, and only reads it.
pub async fn follow_only(client: Client, bucket: String, active_routes: ActiveRoutes) {
    keep_current(client, Keeper::Others(bucket), active_routes).await;
}

async fn keep_current(client: Client, keeper: Keeper, active_routes: ActiveRoutes) {
    let mut reconciler = RouteReconciler::default();
    let (mut was_reached, mut seeding) = (true, false);
    loop {
        match follow_once(&client, &keeper, &active_routes, &mut reconciler, &mut seeding).await {
            Ok(Ended::Reconnected) => {
                was_reached = true;
                continue;
            }
            Ok(Ended::Broken) => was_reached = true,
            Err(error) if was_reached => {
                let advice = keeper.advice();
                warn!(%error, "routes bucket not reached, trying again; {advice}");
                was_reached = false;
            }
            Err(error) => debug!(%error, "routes bucket still not reached"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Why following ended.
enum Ended {
    /// The watch did.
    Broken,
    /// The client has another connection. The watch would go on by itself, seconds later: when it
    /// misses the broker's heartbeats. A gateway that was frozen must not go by old routes for so
    /// long.
    Reconnected,
}

async fn follow_once(
    client: &Client,
    keeper: &Keeper,
    active_routes: &ActiveRoutes,
    reconciler: &mut RouteReconciler,
    seeding: &mut bool,
) -> Result<Ended, StoreError> {
    let connects = || client.statistics().connects.load(Ordering::Relaxed);
    let connected = connects();
    let store = keeper.open(client, seeding).await?;
    reconciler.of_bucket(store.made_at());
    let mut updates = std::pin::pin!(store.watch().await?);
    let mut seen = Some(Vec::new());
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    let mut confirm = tokio::time::interval(CONFIRM_INTERVAL);
    let mut newest = std::pin::pin!(Fuse::terminated());
    loop {
        let update = tokio::select! {
            update = updates.next() => update,
            _ = confirm.tick(), if newest.is_terminated() => {
                newest.set(asked(&store, active_routes).fuse());
                continue;
            }
            (asked_ms, revision) = &mut newest => {
                // What is on its way to us is in force by the next time.
                let in_force = *active_routes.revisions.borrow();
                let is_current = revision.is_some_and(|newest| newest <= in_force);
                if is_current && seen.is_none() && !reconciler.knows_only_another_bucket() {
                    active_routes.lease.confirm(asked_ms);
                }
                continue;
            }
            _ = look.tick() => {
                if connects() != connected {
                    return Ok(Ended::Reconnected);
                }
                continue;
            }
        };
        let Some(update) = update else { return Ok(Ended::Broken) };
        match update {
            Update::Change(change) => {
                if let Some(seen) = &mut seen {
                    seen.push(change.name().to_owned());
                }
                reconciler.apply(change);
            }
            Update::Complete => {
                if reconciler.knows_only_another_bucket() {
                    warn!(
                        "the routes bucket was made anew and is empty; going on by the routes of \
                         the one before"
                    );
                    continue;
                }
                // What was deleted while nobody looked is not said; it is missing.
                if let Some(seen) = seen.take() {
                    reconciler.retain(&seen);
                }
                publish(reconciler, active_routes);
            }
            Update::Broken(reason) => {
                debug!(reason, "watch of the routes ended");
                return Ok(Ended::Broken);
            }
        }
    }
}

/// Asks the bucket's leader for its newest revision; returns when it was asked, too.
async fn asked(store: &RouteStore, active_routes: &ActiveRoutes) -> (u64, Option<u64>) {
    let asked_ms = active_routes.clock.unix_ms_at(Instant::now());
    (asked_ms, store.last_revision().await.ok())
}

fn publish(reconciler: &mut RouteReconciler, active_routes: &ActiveRoutes) {
    let table = reconciler.table();
    let refusals = reconciler.refusals();
    for refusal in &refusals {
        let RejectedDocument { name, revision, reason, earlier_serves } = refusal;
        warn!(route = name, revision, earlier_serves, reason, "route document refused");
    }
    info!(
        routes = table.routes().len(),
        refused = refusals.len(),
        revision = reconciler.revision(),
        "routes in force"
    );
    let (bucket, revision, rollouts) =
        (reconciler.bucket(), reconciler.revision(), reconciler.rollouts());
    active_routes.publish(
        table,
        BucketStatus { refusals, bucket, revision, rollouts, ..BucketStatus::default() },
    );
}

/// Fills a bucket that nobody has written to, or goes on filling it where a broker that went away
/// has interrupted us: what operators have removed must not come back. Of several gateways that do
/// so at once, each document is written by one.
async fn seed(
    store: &RouteStore,
    documents: &[RouteDocument],
    begun: &mut bool,
) -> Result<(), StoreError> {
    use crate::store::StoreErrorKind::Conflict;
    if documents.is_empty() || !(*begun || store.is_untouched().await?) {
        return Ok(());
    }
    *begun = true;
    for document in documents {
        match store.put(document, None).await {
            Ok(_) => info!(route = document.name, "routes bucket seeded from the route file"),
            Err(error) if error.kind() == Conflict => debug!(%error, "seeded by another gateway"),
            Err(error) => return Err(error),
        }
    }
    *begun = false;
    Ok(())
}
