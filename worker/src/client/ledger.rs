//! What the client's thread counts of the versions that it calls.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use natsway_caller::route_view::Ledger;
use natsway_routes::metrics::Recorder;
use natsway_routes::report::VersionMetrics;
use natsway_routes::table::Route;

/// The attempts with every version of every route that there ever was.
#[derive(Default)]
pub(super) struct AttemptLedger(RefCell<BTreeMap<(String, String), Arc<Recorder>>>);

impl AttemptLedger {
    /// Returns the metrics of all versions that were called.
    pub(super) fn metrics(&self) -> Vec<VersionMetrics> {
        let versions = self.0.borrow();
        let used = versions.iter().filter(|(_, attempts)| attempts.is_used());
        used.map(|((route, version), attempts)| VersionMetrics {
            route: route.clone(),
            version: version.clone(),
            metrics: attempts.read(),
        })
        .collect()
    }
}

impl Ledger for AttemptLedger {
    type Route = ();

    fn attempts(&self, route: &str, version: &str) -> Arc<Recorder> {
        let key = (route.to_owned(), version.to_owned());
        Arc::clone(self.0.borrow_mut().entry(key).or_default())
    }

    fn route(&self, _: &Route) {}
}
