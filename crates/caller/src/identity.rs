//! Who a sender of requests is, and what it reports of itself to others.

use std::fmt::Display;
use std::time::Instant;

use natsway_routes::document::SCHEMA;
use natsway_routes::report::{Report, Role, VersionMetrics};
use natsway_routes::watch::ActiveRoutes;

/// A sender of requests, from its start to its end.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Another one after each start.
    pub id: String,
    /// The machine, and what tells the sender from others there, for people.
    pub host: String,
    role: Role,
    started: Instant,
}

impl Identity {
    /// A sender that starts now; `name` tells it from others on this machine.
    pub fn new(role: Role, name: impl Display) -> Self {
        let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host = format!("{} {name}", machine.as_deref().unwrap_or("unknown"));
        Self { id: natsway_boot::random_id(), host, role, started: Instant::now() }
    }

    /// Returns its whole report.
    ///
    /// `revision` is that of the oldest routes by which some of its threads go. It must be read
    /// before `versions` are: an attempt by older routes began before its thread took the newer
    /// ones, so it is among those that are read afterwards.
    pub fn report(
        &self,
        revision: u64,
        versions: Vec<VersionMetrics>,
        active_routes: &ActiveRoutes,
    ) -> Report {
        Report {
            id: self.id.clone(),
            role: self.role,
            host: self.host.clone(),
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            revision,
            bucket: active_routes.status.load().bucket,
            schema: SCHEMA,
            refused: active_routes.refused(),
            whole: true,
            versions,
            ..Report::default()
        }
    }
}
