//! What operators and probes ask: alive, ready, metrics.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use natsway_boot::DeniedSubscriptions;
use natsway_boot::exposition::CONTENT_TYPE;
use natsway_routes::watch::ActiveRoutes;
use natsway_wire::control;
use tokio_util::sync::CancellationToken;

use crate::fleet_metrics::FleetMetrics;
use crate::metrics::{ShardMetrics, render};
use crate::rollout::driver::ReportFaults;

/// What the admin address looks at.
#[derive(Clone, Debug)]
pub struct AdminState {
    /// Every shard's metrics.
    pub shards: Arc<[Arc<ShardMetrics>]>,
    /// The routes in force.
    pub routes: ActiveRoutes,
    /// What workers and provisioners tell of themselves.
    pub fleet_metrics: FleetMetrics,
    /// What the broker does not permit the gateway's control connection to hear.
    pub refused: DeniedSubscriptions,
    /// Cancelled when the gateway begins to leave.
    pub draining: CancellationToken,
    /// The reports of senders that are not believed.
    pub report_faults: Arc<ReportFaults>,
}

/// How often a gateway that starts looks whether it is ready.
const READY_PACE: Duration = Duration::from_millis(5);

impl AdminState {
    /// Waits until requests may be sent here.
    pub async fn ready(&self) {
        while self.not_ready().is_some() {
            tokio::time::sleep(READY_PACE).await;
        }
    }

    /// Why no request should be sent here now, or `None`.
    fn not_ready(&self) -> Option<Cow<'static, str>> {
        if self.draining.is_cancelled() {
            return Some("shutting down".into());
        }
        if let Some(subject) = self.refused.find(is_needed) {
            return Some(
                format!(
                    "the broker does not permit to subscribe to {subject}: see docs/security.md"
                )
                .into(),
            );
        }
        if !self.routes.known.load(Ordering::Acquire) {
            return Some("routes not read yet".into());
        }
        // One connection is enough for a shard to serve.
        let unconnected =
            self.shards.iter().any(|shard| shard.broker_connections.envelope.connected.get() == 0);
        unconnected.then_some("not connected to the broker".into())
    }
}

/// Whether a gateway that does not hear a subject is of less use than none: it would lose requests
/// when workers leave, hold up rollouts, or hear no answer. It asks for all of these when it
/// starts, so that this shows then, and not in the middle of things at all gateways at once.
pub(crate) fn is_needed(subject: &str) -> bool {
    subject.starts_with("_INBOX")
        || subject == control::report_subject()
        || subject == control::metrics_subject("*", "*")
        || subject.strip_suffix(".>").is_some_and(|prefix| prefix == control::tombstone_prefix())
}

/// The admin address's routes: `/livez`, `/readyz`, `/metrics`.
pub fn router(watched: AdminState) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(watched)
}

async fn ready(State(watched): State<AdminState>) -> impl IntoResponse {
    match watched.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(watched): State<AdminState>) -> impl IntoResponse {
    let fleet_metrics = watched.fleet_metrics.page().await;
    let own = render(&watched.shards, &watched.routes.status.load());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], own + &watched.report_faults.page() + &fleet_metrics)
}
