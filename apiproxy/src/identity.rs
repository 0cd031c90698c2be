//! Who this gateway is, and what it tells others of itself.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use natsway_routes::report::{Report, Role};
use natsway_routes::watch::InForce;

use crate::metrics::{self, CoreMetrics};
use crate::rollout::driver::Progresses;

/// A gateway from its start to its end.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Another one after each start.
    pub id: String,
    /// The machine and the address that it serves, for people.
    pub host: String,
    started: Instant,
}

impl Identity {
    /// A gateway that starts now and listens at `listen`.
    pub fn new(listen: SocketAddr) -> Identity {
        let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host = format!("{} {listen}", name.as_deref().unwrap_or("unknown"));
        Identity { id: natsway_boot::random_id(), host, started: Instant::now() }
    }

    /// What it has counted, and the newest routes by which all of its cores go.
    pub fn report(&self, cores: &[Arc<CoreMetrics>], in_force: &InForce, progresses: &Progresses) -> Report {
        // Before the figures: a try by older routes began before its core took the newer ones, so it is in them.
        let revision = cores.iter().map(|core| core.routes_revision()).min().unwrap_or(0);
        Report {
            id: self.id.clone(),
            role: Role::Gateway,
            host: self.host.clone(),
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            revision,
            bucket: in_force.reading.load().bucket,
            refused: in_force.refused(),
            whole: true,
            versions: metrics::versions(cores),
            rollouts: progresses.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..Report::default()
        }
    }
}
