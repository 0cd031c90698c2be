//! What a gateway does besides its requests: it follows the routes, drives rollouts, stands in for workers that left,
//! reports what it has counted, and answers at its admin address. One task each, and all are joined at the end.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_nats::Client;
use natsway_boot::Refused;
use natsway_caller::identity::Identity;
use natsway_routes::report::{self, Report, Role};
use natsway_routes::watch::{Bucket, InForce, follow};
use natsway_wire::control::GATEWAY_SOURCE;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::admin::{self, Watched};
use crate::metrics::{self, CoreMetrics};
use crate::rollout::driver::{Beliefs, Driver, Progresses};
use crate::settings::Settings;
use crate::told::Told;
use crate::tombstone;

/// How long telling others that this gateway is gone, and ending all else, may take.
const LAST_REPORT: Duration = Duration::from_millis(500);

/// How long a gateway waits that may not hear what it must, until it asks again; the cores wait as long.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The tasks of a gateway that are no request's.
pub(crate) struct ControlPlane {
    client: Client,
    in_force: InForce,
    cores: Arc<[Arc<CoreMetrics>]>,
    identity: Identity,
    progresses: Progresses,
    beliefs: Arc<Beliefs>,
    tasks: TaskTracker,
    /// Cancelled when the gateway has answered its last request.
    ending: CancellationToken,
}

impl ControlPlane {
    /// A control plane that does nothing yet, over `client`.
    pub(crate) fn new(
        settings: &Settings,
        client: Client,
        cores: Arc<[Arc<CoreMetrics>]>,
        in_force: InForce,
    ) -> ControlPlane {
        let identity = Identity::new(Role::Gateway, settings.listen);
        let (progresses, beliefs, tasks, ending) = Default::default();
        ControlPlane { client, in_force, cores, identity, progresses, beliefs, tasks, ending }
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
            self.in_force.clone(),
            Arc::clone(&self.progresses),
            settings.peers,
            Arc::clone(&self.beliefs),
        );
        self.spawn(follow(self.client.clone(), bucket, self.in_force.clone()));
        self.spawn(rollouts.run(self.identity.id.clone()));
        if !settings.across_accounts {
            self.spawn(tombstone::of_rollouts(
                self.client.clone(),
                self.in_force.clone(),
                self.tasks.clone(),
            ));
        }
    }

    /// Reports what the cores have counted, until the end and then once more.
    pub(crate) fn report(&self) {
        let (identity, cores) = (self.identity.clone(), Arc::clone(&self.cores));
        let (in_force, progresses) = (self.in_force.clone(), Arc::clone(&self.progresses));
        let report = move || report_of(&identity, &cores, &in_force, &progresses);
        let leave = self.ending.clone().cancelled_owned();
        self.tasks.spawn(report::keep(self.client.clone(), GATEWAY_SOURCE, report, leave));
    }

    /// Stands in for workers that leave, as far as the broker permits to hear them.
    pub(crate) fn stand_in(&self, settings: &Settings, refused: &Refused) {
        self.spawn(ask_again(self.client.clone(), refused.clone()));
        // Beside an import from another account a queue group here is one more receiver, not a member of the
        // workers': both would get each request.
        if !settings.across_accounts {
            self.spawn(tombstone::keep(self.client.clone()));
        }
    }

    /// Answers at the admin address until the end; returns what it looks at.
    pub(crate) fn serve_admin(
        &self,
        listener: TcpListener,
        refused: Refused,
        draining: CancellationToken,
    ) -> Watched {
        let (told, asking) = Told::by(self.client.clone());
        self.spawn(asking);
        let watched = Watched {
            cores: Arc::clone(&self.cores),
            routes: self.in_force.clone(),
            told,
            refused,
            draining,
            beliefs: Arc::clone(&self.beliefs),
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

    /// Ends all of it. Others would wait for this gateway a while if they missed its last report, and not for ever.
    pub(crate) async fn end(self) {
        self.ending.cancel();
        self.tasks.close();
        if tokio::time::timeout(LAST_REPORT, self.tasks.wait()).await.is_err() {
            debug!(tasks = self.tasks.len(), "not waited for");
        }
    }
}

/// What the cores have counted, and the newest routes by which all of them go.
fn report_of(
    identity: &Identity,
    cores: &[Arc<CoreMetrics>],
    in_force: &InForce,
    progresses: &Progresses,
) -> Report {
    let revision = cores.iter().map(|core| core.routes_revision()).min().unwrap_or(0);
    let rollouts = progresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Report { rollouts, ..identity.report(revision, metrics::versions(cores), in_force) }
}

/// Makes a connection anew from time to time that may not hear what it must: what a broker has refused, it is not asked for
/// again on the same connection, and the permission may have been given by now.
async fn ask_again(client: Client, refused: Refused) {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if refused.find(admin::is_needed).is_some() {
            // A client that has ended has nothing to ask for.
            client.force_reconnect().await.ok();
        }
    }
}
