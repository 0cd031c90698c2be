//! One core of the gateway: a thread with a runtime, broker connections, a view of the routes and figures of its own.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_nats::Subject;
use natsway_boot::Broker;
use natsway_caller::lanes::Lanes;
use natsway_caller::link::Link;
use natsway_caller::links::Role;
use natsway_caller::retry::Budget;
use natsway_routes::table::{Codec, Route, RouteTable};
use natsway_routes::watch::InForce;

use crate::listener::Failures;
use crate::memory::MemoryBudget;
use crate::memory::room::Room;
use crate::metrics::{CoreMetrics, TargetStats};
use crate::settings::Settings;
use crate::trace::Spans;

/// The inbox prefix of the gateway's role, so that its permissions can be static.
pub const INBOX_PREFIX: &str = "_INBOX_apiproxy";

/// What the requests of one core share.
pub struct Core {
    /// The process's settings.
    pub settings: Arc<Settings>,
    /// This core's figures.
    pub metrics: Arc<CoreMetrics>,
    /// Retries that this core may spend.
    pub budget: RefCell<Budget>,
    /// Replies that could not be passed on.
    pub bad_replies: RefCell<Failures>,
    /// Makes spans, when traces are exported.
    pub spans: Option<Spans>,
    /// The memory that this core holds for its clients.
    pub memory: Rc<MemoryBudget>,
    /// Room for answers.
    pub room: Room,
    /// Requests that wait for room to be told that they are refused.
    pub refusing: Cell<usize>,
    lanes: Lanes,
    in_force: InForce,
    view: RefCell<Rc<RouteView>>,
}

/// A route table with what this core needs of each version of each route.
pub struct RouteView {
    /// The table.
    pub table: Arc<RouteTable>,
    targets: Vec<Vec<TargetView>>,
    /// A number for the name of each route.
    kinds: Vec<u64>,
}

/// A version as a core uses it.
pub struct TargetView {
    /// Its subject, in the client's type: a clone is a count.
    pub subject: Subject,
    /// This core's figures for it.
    pub stats: Arc<TargetStats>,
}

impl RouteView {
    fn new(table: Arc<RouteTable>, metrics: &CoreMetrics) -> RouteView {
        let view = |route: &Arc<Route>| {
            let targets = route.split.targets().iter();
            targets
                .map(|target| TargetView {
                    subject: target.subject.as_str().into(),
                    stats: metrics.target(&route.name, &target.version),
                })
                .collect()
        };
        let targets = table.routes().iter().map(view).collect();
        let number = |route: &Arc<Route>| {
            let mut hasher = DefaultHasher::new();
            route.name.hash(&mut hasher);
            hasher.finish()
        };
        let kinds = table.routes().iter().map(number).collect();
        RouteView { table, targets, kinds }
    }

    /// A number that stands for a route's name, by its place.
    pub fn kind(&self, route_index: usize) -> u64 {
        self.kinds[route_index]
    }

    /// A version by its route's and its own place.
    pub fn target(&self, route_index: usize, target_index: usize) -> &TargetView {
        &self.targets[route_index][target_index]
    }
}

impl Core {
    /// A core that is not connected yet.
    pub fn new(settings: Arc<Settings>, metrics: Arc<CoreMetrics>, in_force: InForce) -> Rc<Core> {
        let view = RouteView::new(in_force.table.load_full(), &metrics);
        let role = Role {
            name: "apiproxy".to_owned(),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            says_reply_subject: settings.across_accounts,
        };
        let (connections, limits) = (settings.connections_per_core, settings.link);
        let lanes = Lanes::new(role, connections, limits, &metrics.links);
        let memory =
            MemoryBudget::new(settings.memory.limits(settings.coming_bytes), Arc::clone(&metrics.memory));
        Rc::new(Core {
            spans: settings.traced.map(Spans::new),
            settings,
            metrics,
            room: Room::new(Rc::clone(&memory), Instant::now()),
            memory,
            refusing: Cell::new(0),
            budget: RefCell::new(Budget::new(Instant::now())),
            bad_replies: RefCell::default(),
            lanes,
            in_force,
            view: RefCell::new(Rc::new(view)),
        })
    }

    /// The routes in force.
    pub fn routes(&self) -> Rc<RouteView> {
        let newest = self.in_force.table.load();
        if !Arc::ptr_eq(&newest, &self.view.borrow().table) {
            self.view.replace(Rc::new(RouteView::new(Arc::clone(&newest), &self.metrics)));
        }
        Rc::clone(&self.view.borrow())
    }

    /// Whether there are routes at all: false until the bucket was read.
    pub fn knows_routes(&self) -> bool {
        self.in_force.known.load(Ordering::Acquire)
    }

    /// A connection to publish on what is written in `codec`, in turn where there are several; `None` while there is
    /// none.
    pub fn link(&self, codec: Codec) -> Option<Rc<Link>> {
        self.lanes.of(codec).link()
    }

    /// The same, and waits a moment for it after the last one was lost.
    pub async fn link_by(&self, codec: Codec, deadline: Instant) -> Option<Rc<Link>> {
        self.lanes.of(codec).link_by(deadline).await
    }

    /// Keeps every one of this core's broker connections up, for ever.
    pub fn keep_connected(&self, broker: &Broker) {
        self.lanes.keep_connected(broker);
    }
}
