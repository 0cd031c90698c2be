//! The broker connections of one thread, kept up: a lost one is replaced, one whose server is leaving before it goes.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use natsway_boot::{Broker, Dial, DialError, DialErrorKind, Dialer, Session, SessionEvent};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tracing::{info, warn};

use crate::counter::LinkCounts;
use crate::link::{Link, LinkLimits};

/// The connections of one thread.
pub struct Links {
    role: Role,
    limits: LinkLimits,
    counts: Arc<LinkCounts>,
    places: Vec<RefCell<Option<Rc<Link>>>>,
    next: Cell<usize>,
    /// Told whenever a connection is up that was not.
    came_up: Notify,
}

/// As what a thread connects.
#[derive(Clone, Debug)]
pub struct Role {
    /// The name that the broker's monitoring shows.
    pub name: String,
    /// The role's own inbox prefix, so that its permissions can be static.
    pub inbox_prefix: String,
}

impl Links {
    /// So many connections, none of which is made yet.
    pub fn new(
        role: Role,
        connections: NonZeroUsize,
        limits: LinkLimits,
        counts: Arc<LinkCounts>,
    ) -> Rc<Links> {
        let places = (0..connections.get()).map(|_| RefCell::new(None)).collect();
        Rc::new(Links { role, limits, counts, places, next: Cell::new(0), came_up: Notify::new() })
    }

    /// A connection to publish on, in turn where there are several; `None` while there is none.
    pub fn link(&self) -> Option<Rc<Link>> {
        let first = self.next.get();
        self.next.set((first + 1) % self.places.len());
        (0..self.places.len())
            .find_map(|step| self.places[(first + step) % self.places.len()].borrow().clone())
    }

    /// Keeps every connection up, for ever. Needs a `LocalSet`.
    pub fn keep_connected(self: &Rc<Links>, broker: &Broker) {
        for place in 0..self.places.len() {
            spawn_local(Rc::clone(self).keep_link(place, self.dialer(broker), None));
        }
    }

    /// Tries the broker once for the first of the connections, and then keeps all of them up, for ever; a broker that is
    /// away is waited for. Needs a `LocalSet`.
    ///
    /// # Errors
    /// The broker refused us or is too old. That is a mistake in somebody's configuration when it happens at the start,
    /// and nothing is kept up then.
    pub async fn connect(self: &Rc<Links>, broker: &Broker) -> Result<(), DialError> {
        let mut dialer = self.dialer(broker);
        let first = match dialer.dial_once(None).await {
            Ok(session) => Some(session),
            Err(error) if error.kind() == DialErrorKind::Unavailable => {
                warn!(%error, "broker not reached, trying again");
                None
            }
            Err(error) => return Err(error),
        };
        spawn_local(Rc::clone(self).keep_link(0, dialer, first));
        for place in 1..self.places.len() {
            spawn_local(Rc::clone(self).keep_link(place, self.dialer(broker), None));
        }
        Ok(())
    }

    /// Waits until there is a connection.
    pub async fn connected(&self) {
        while self.link().is_none() {
            self.came_up.notified().await;
        }
    }

    /// Dials the broker for one of the connections.
    fn dialer(&self, broker: &Broker) -> Dialer {
        let dial = Dial {
            name: self.role.name.clone(),
            inbox_prefix: self.role.inbox_prefix.clone(),
            // Every request in flight may be answered twice: a signal and a response.
            subscription_messages: self.limits.in_flight * 2 + 1_024,
            // Small, since what is in it when the connection breaks has an unknown outcome.
            publish_messages: 256,
        };
        Dialer::new(broker.clone(), dial)
    }

    /// Keeps one connection up: a lost one is replaced, one whose server is leaving is replaced before it goes.
    async fn keep_link(self: Rc<Links>, place: usize, mut dialer: Dialer, mut next: Option<Session>) {
        loop {
            let session = match next.take() {
                Some(session) => session,
                None => dialer.dial(None).await,
            };
            next = self.use_session(place, session, &mut dialer).await;
        }
    }

    /// Uses a session until it is lost, or until a better one is there: then that one.
    async fn use_session(&self, place: usize, mut session: Session, dialer: &mut Dialer) -> Option<Session> {
        let opened =
            Link::open(&session, &self.role.inbox_prefix, self.limits, Arc::clone(&self.counts)).await;
        let (link, replies) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!(%error, "broker connection lost while it was set up");
                return None;
            }
        };
        spawn_local(Rc::clone(&link).read_replies(replies));
        if self.places[place].replace(Some(Rc::clone(&link))).is_none() {
            self.counts.connected.add(1);
            self.came_up.notify_waiters();
        }
        self.counts.sessions.inc();
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
            self.places[place].replace(None);
            self.counts.connected.add(-1);
        }
        successor
    }
}

/// Waits until a session is lost, whatever else happens to it.
async fn lost(session: &mut Session) {
    while session.next_event().await != SessionEvent::Lost {}
}
