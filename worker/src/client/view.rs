//! The routes in force by their names, with what the client's thread needs of each version.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_nats::Subject;
use natsway_routes::figures::Recorder;
use natsway_routes::report::VersionFigures;
use natsway_routes::table::{Route, RouteTable};

/// A route table by name.
pub(super) struct View {
    pub(super) table: Arc<RouteTable>,
    routes: HashMap<String, RouteView>,
}

/// A route, and its versions in their order.
pub(super) struct RouteView {
    pub(super) route: Arc<Route>,
    pub(super) targets: Vec<TargetView>,
}

/// A version.
pub(super) struct TargetView {
    /// Its subject, in the client's type: a clone is a count.
    pub(super) subject: Subject,
    /// The tries that were made with it.
    pub(super) tries: Arc<Recorder>,
}

/// The tries with every version of every route that there ever was: kept over every change of the table.
#[derive(Default)]
pub(super) struct Tried(RefCell<BTreeMap<(String, String), Arc<Recorder>>>);

impl Tried {
    fn of(&self, route: &str, version: &str) -> Arc<Recorder> {
        let key = (route.to_owned(), version.to_owned());
        Arc::clone(self.0.borrow_mut().entry(key).or_default())
    }

    /// The figures of all versions that were tried.
    pub(super) fn figures(&self) -> Vec<VersionFigures> {
        let tried = self.0.borrow();
        let used = tried.iter().filter(|(_, tries)| tries.is_used());
        used.map(|((route, version), tries)| VersionFigures {
            route: route.clone(),
            version: version.clone(),
            figures: tries.read(),
        })
        .collect()
    }
}

impl View {
    pub(super) fn new(table: Arc<RouteTable>, tried: &Tried) -> View {
        let view = |route: &Arc<Route>| {
            let targets = route.split.targets().iter().map(|target| TargetView {
                subject: target.subject.as_str().into(),
                tries: tried.of(&route.name, &target.version),
            });
            (route.name.clone(), RouteView { route: Arc::clone(route), targets: targets.collect() })
        };
        let routes = table.routes().iter().map(view).collect();
        View { table, routes }
    }

    /// The route of that name.
    pub(super) fn route(&self, name: &str) -> Option<&RouteView> {
        self.routes.get(name)
    }
}
