//! What a gateway does besides its requests: it follows the routes, drives rollouts, stands in for
//! workers that left, reports what it has counted, and answers at its admin address. One task each,
//! and all are joined at the end.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_nats::Client;
use natsway_boot::DeniedSubscriptions;
use natsway_caller::identity::Identity;
use natsway_routes::report::{self, Report, Role};
use natsway_routes::watch::{ActiveRoutes, Bucket, follow};
use natsway_wire::control::GATEWAY_SOURCE;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::admin::{self, AdminState};
use crate::fleet_metrics::FleetMetrics;
use crate::metrics::{self, ShardMetrics};
use crate::rollout::driver::{Driver, Progresses, ReportFaults};
use crate::settings::Settings;
use crate::tombstone;

/// How long telling others that this gateway is gone, and ending all else, may take.
const LAST_REPORT: Duration = Duration::from_millis(500);

/// How long a gateway waits that may not hear what it must, until it asks again; the shards wait as
/// long.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The tasks of a gateway that are no request's.
pub(crate) struct ControlPlane {
    client: Client,
    active_routes: ActiveRoutes,
    shards: Arc<[Arc<ShardMetrics>]>,
    identity: Identity,
    progresses: Progresses,
    report_faults: Arc<ReportFaults>,
    tasks: TaskTracker,
    /// Cancelled when the gateway has answered its last request.
    ending: CancellationToken,
}

impl ControlPlane {
    /// A control plane that does nothing yet, over `client`.
    pub(crate) fn new(
        settings: &Settings,
        client: Client,
        shards: Arc<[Arc<ShardMetrics>]>,
        active_routes: ActiveRoutes,
    ) -> Self {
        let identity = Identity::new(Role::Gateway, settings.listen);
        let (progresses, report_faults, tasks, ending) = Default::default();
        Self { client, active_routes, shards, identity, progresses, report_faults, tasks, ending }
    }

    /// Spawns what goes on until the end.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        self.tasks.spawn(async move {
            ending.run_until_cancelled(task).await;
        });
    }

    /// Keeps the routes equal to the bucket's, and drives the rollouts in it.
    pub(crate) fn follow_routes(&self, settings: &Settings, bucket: Bucket) {
        let rollouts = Driver::new(
            self.client.clone(),
            &bucket,
            self.active_routes.clone(),
            Arc::clone(&self.progresses),
            settings.peers,
            Arc::clone(&self.report_faults),
        );
        self.spawn(follow(self.client.clone(), bucket, self.active_routes.clone()));
        self.spawn(rollouts.run(self.identity.id.clone()));
        if !settings.across_accounts {
            self.spawn(tombstone::of_rollouts(
                self.client.clone(),
                self.active_routes.clone(),
                self.tasks.clone(),
            ));
        }
    }

    /// Keeps the lease of routes that do not change as long as the broker is reached.
    pub(crate) fn follow_connection(&self) {
        let (client, routes) = (self.client.clone(), self.active_routes.clone());
        self.spawn(async move {
            if let Err(error) = routes.lease.follow_connection(&client, routes.clock).await {
                warn!(%error, "no whole requests go by tunnels");
            }
        });
    }

    /// Reports what the shards have counted, until the end and then once more.
    pub(crate) fn report(&self) {
        let (identity, shards) = (self.identity.clone(), Arc::clone(&self.shards));
        let (active_routes, progresses) =
            (self.active_routes.clone(), Arc::clone(&self.progresses));
        let report = move || report_of(&identity, &shards, &active_routes, &progresses);
        let leave = self.ending.clone().cancelled_owned();
        self.tasks.spawn(report::keep(self.client.clone(), GATEWAY_SOURCE, report, leave));
    }

    /// Stands in for workers that leave, as far as the broker permits to hear them.
    pub(crate) fn stand_in(&self, settings: &Settings, refused: &DeniedSubscriptions) {
        self.spawn(ask_again(self.client.clone(), refused.clone()));
        // Beside an import from another account a queue group here is one more receiver, not a
        // member of the workers': both would get each request.
        if !settings.across_accounts {
            self.spawn(tombstone::keep(self.client.clone()));
        }
    }

    /// Answers at the admin address until the end; returns what it looks at.
    pub(crate) fn serve_admin(
        &self,
        listener: TcpListener,
        refused: DeniedSubscriptions,
        draining: CancellationToken,
    ) -> AdminState {
        let (fleet_metrics, asking) = FleetMetrics::by(self.client.clone());
        self.spawn(asking);
        let watched = AdminState {
            shards: Arc::clone(&self.shards),
            routes: self.active_routes.clone(),
            fleet_metrics,
            refused,
            draining,
            report_faults: Arc::clone(&self.report_faults),
        };
        let admin = axum::serve(listener, admin::router(watched.clone()))
            .with_graceful_shutdown(self.ending.clone().cancelled_owned());
        self.tasks.spawn(async move {
            if let Err(error) = admin.await {
                warn!(%error, "admin address closed");
            }
        });
        watched
    }

    /// Ends all of it. Others would wait for this gateway a while if they missed its last report,
    /// and not for ever.
    pub(crate) async fn end(self) {
        self.ending.cancel();
        self.tasks.close();
        if tokio::time::timeout(LAST_REPORT, self.tasks.wait()).await.is_err() {
            debug!(tasks = self.tasks.len(), "not waited for");
        }
    }
}

/// What the shards have counted, and the newest routes by which all of them go.
fn report_of(
    identity: &Identity,
    shards: &[Arc<ShardMetrics>],
    active_routes: &ActiveRoutes,
    progresses: &Progresses,
) -> Report {
    let revision = shards.iter().map(|shard| shard.routes_revision()).min().unwrap_or(0);
    let rollouts = progresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Report { rollouts, ..identity.report(revision, metrics::versions(shards), active_routes) }
}

/// Makes a connection anew from time to time that may not hear what it must: what a broker has
/// refused, it is not asked for again on the same connection, and the permission may have been
/// given by now.
async fn ask_again(client: Client, refused: DeniedSubscriptions) {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if refused.find(admin::is_needed).is_some() {
            // A client that has ended has nothing to ask for.
            client.force_reconnect().await.ok();
        }
    }
}
