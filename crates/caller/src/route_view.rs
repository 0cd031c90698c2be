//! The routes in force as one thread goes by them, with what it needs of each version.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::Subject;
use natsway_routes::metrics::Recorder;
use natsway_routes::table::{Route, RouteTable};
use natsway_routes::watch::ActiveRoutes;

/// Where a sender counts what it sends. What it gives out stays the same over every change of the
/// table.
pub trait Ledger {
    /// What the sender keeps of each route.
    type Route;

    /// Returns where the attempts with a version of a route are counted.
    fn attempts(&self, route: &str, version: &str) -> Arc<Recorder>;

    /// Returns what the sender keeps of a route.
    fn route(&self, route: &Route) -> Self::Route;
}

/// A route table with what one thread needs of each route and version.
pub struct RouteView<R> {
    table: Arc<RouteTable>,
    routes: Vec<ViewedRoute<R>>,
}

struct ViewedRoute<R> {
    versions: Vec<VersionView>,
    kept: R,
}

/// A version as a thread uses it.
pub(crate) struct VersionView {
    /// Its subject, in the client's type: a clone is a count.
    pub(crate) subject: Subject,
    /// The attempts that were made with it.
    pub(crate) attempts: Arc<Recorder>,
}

impl<R> RouteView<R> {
    fn new(table: Arc<RouteTable>, ledger: &impl Ledger<Route = R>) -> Self {
        let view = |route: &Arc<Route>| {
            let versions = route.split.targets().iter().map(|target| VersionView {
                subject: target.subject.as_str().into(),
                attempts: ledger.attempts(&route.name, &target.version),
            });
            ViewedRoute { versions: versions.collect(), kept: ledger.route(route) }
        };
        let routes = table.routes().iter().map(view).collect();
        Self { table, routes }
    }

    /// Returns the table.
    pub fn table(&self) -> &RouteTable {
        &self.table
    }
}

/// A route, in the table in which it was found.
pub struct Resolved<R> {
    view: Rc<RouteView<R>>,
    index: usize,
}

impl<R> Resolved<R> {
    pub(crate) fn new(view: Rc<RouteView<R>>, index: usize) -> Self {
        Self { view, index }
    }

    /// Returns the route.
    pub fn route(&self) -> &Route {
        &self.view.table.routes()[self.index]
    }

    /// Returns what the sender keeps of it.
    pub fn kept(&self) -> &R {
        &self.view.routes[self.index].kept
    }

    pub(crate) fn version(&self, place: usize) -> &VersionView {
        &self.view.routes[self.index].versions[place]
    }
}

/// The newest routes, for one thread.
pub struct ThreadRoutes<L: Ledger> {
    active_routes: ActiveRoutes,
    ledger: L,
    view: RefCell<Rc<RouteView<L::Route>>>,
}

impl<L: Ledger> ThreadRoutes<L> {
    /// Returns the view of a thread that counts in `ledger`.
    pub fn new(active_routes: ActiveRoutes, ledger: L) -> Self {
        let view = RouteView::new(active_routes.table.load_full(), &ledger);
        Self { active_routes, ledger, view: RefCell::new(Rc::new(view)) }
    }

    /// Returns the routes in force.
    pub fn view(&self) -> Rc<RouteView<L::Route>> {
        let newest = self.active_routes.table.load();
        if !Arc::ptr_eq(&newest, &self.view.borrow().table) {
            self.view.replace(Rc::new(RouteView::new(Arc::clone(&newest), &self.ledger)));
        }
        Rc::clone(&self.view.borrow())
    }

    /// Returns whether there are routes at all: false until the bucket was read.
    pub fn are_known(&self) -> bool {
        self.active_routes.known.load(Ordering::Acquire)
    }

    /// Waits until there are routes.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub async fn known(&self) {
        let mut revisions = self.active_routes.revisions.subscribe();
        while !self.are_known() {
            // It is not closed, since its sender is ours.
            revisions.changed().await.ok();
        }
    }

    /// Returns the routes as all threads share them.
    pub fn active_routes(&self) -> &ActiveRoutes {
        &self.active_routes
    }

    /// Returns where this thread counts.
    pub fn ledger(&self) -> &L {
        &self.ledger
    }

    /// Says, for ever, by which revision of the routes this thread goes.
    ///
    /// A request chooses its version and is counted as out without giving way to this task in
    /// between. So whatever went by older routes is counted when a newer revision is said.
    pub async fn follow(&self, goes_by: impl Fn(u64)) {
        let mut revisions = self.active_routes.revisions.subscribe();
        loop {
            let revision = *revisions.borrow_and_update();
            self.view();
            goes_by(revision);
            if revisions.changed().await.is_err() {
                return;
            }
        }
    }
}
