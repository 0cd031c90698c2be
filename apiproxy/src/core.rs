//! One core of the gateway: a thread with a runtime, broker connections, a view of the routes and figures of its own.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_nats::Subject;
use natsway_boot::{Broker, Dial, Dialer, Session, SessionEvent};
use natsway_routes::table::{Route, RouteTable};
use natsway_routes::watch::InForce;
use tokio::task::spawn_local;
use tracing::{info, warn};

use crate::link::{INBOX_PREFIX, Link};
use crate::metrics::{CoreMetrics, TargetStats};
use crate::retry::Budget;
use crate::settings::Settings;

/// What the requests of one core share.
pub struct Core {
    /// The process's settings.
    pub settings: Arc<Settings>,
    /// This core's figures.
    pub metrics: Arc<CoreMetrics>,
    /// Retries that this core may spend.
    pub budget: RefCell<Budget>,
    links: Vec<RefCell<Option<Rc<Link>>>>,
    next_link: Cell<usize>,
    in_force: InForce,
    view: RefCell<Rc<RouteView>>,
}

/// A route table with what this core needs of each version of each route.
pub struct RouteView {
    /// The table.
    pub table: Arc<RouteTable>,
    targets: Vec<Vec<TargetView>>,
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
        RouteView { table, targets }
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
        let links = (0..settings.connections_per_core.get()).map(|_| RefCell::new(None)).collect();
        Rc::new(Core {
            settings,
            metrics,
            budget: RefCell::new(Budget::new(Instant::now())),
            links,
            next_link: Cell::new(0),
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

    /// A connection to publish on, in turn where there are several; `None` while there is none.
    pub fn link(&self) -> Option<Rc<Link>> {
        let first = self.next_link.get();
        self.next_link.set((first + 1) % self.links.len());
        (0..self.links.len()).find_map(|step| self.links[(first + step) % self.links.len()].borrow().clone())
    }

    /// Keeps every one of this core's broker connections up, for ever.
    pub fn keep_connected(self: &Rc<Core>, broker: &Broker) {
        for place in 0..self.links.len() {
            let dial = Dial {
                name: "apiproxy".to_owned(),
                inbox_prefix: INBOX_PREFIX.to_owned(),
                // Every request in flight may be answered twice: a signal and a response.
                subscription_messages: self.settings.link.in_flight * 2 + 1_024,
                // Small, since what is in it when the connection breaks has an unknown outcome.
                publish_messages: 256,
            };
            spawn_local(Rc::clone(self).keep_link(place, Dialer::new(broker.clone(), dial)));
        }
    }

    /// Keeps one connection up: a lost one is replaced, one whose server is leaving is replaced before it goes.
    async fn keep_link(self: Rc<Core>, place: usize, mut dialer: Dialer) {
        let mut next = None;
        loop {
            let session = match next.take() {
                Some(session) => session,
                None => dialer.dial(None).await,
            };
            next = self.use_session(place, session, &mut dialer).await;
        }
    }

    /// Uses a session until it is lost, or until a better one is there: then that one.
    async fn use_session(
        self: &Rc<Core>,
        place: usize,
        mut session: Session,
        dialer: &mut Dialer,
    ) -> Option<Session> {
        let opened = Link::open(&session, self.settings.link, Arc::clone(&self.metrics)).await;
        let (link, replies) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!(%error, "broker connection lost while it was set up");
                return None;
            }
        };
        spawn_local(Rc::clone(&link).read_replies(replies));
        if self.links[place].replace(Some(Rc::clone(&link))).is_none() {
            self.metrics.connected.add(1);
        }
        self.metrics.sessions.inc();
        let mut successor = None;
        if session.next_event().await == SessionEvent::LameDuck {
            info!(server_id = link.server_id(), "broker is shutting down, connecting to another");
            tokio::select! {
                better = dialer.dial(Some(link.server_id())) => successor = Some(better),
                () = lost(&mut session) => {}
            }
        }
        if successor.is_some() {
            // Requests that are out keep the old connection until they are answered.
            link.retire();
        } else {
            self.links[place].replace(None);
            self.metrics.connected.add(-1);
        }
        successor
    }
}

/// Waits until a session is lost, whatever else happens to it.
async fn lost(session: &mut Session) {
    while session.next_event().await != SessionEvent::Lost {}
}
