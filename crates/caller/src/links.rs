//! The broker connections of one thread, kept up: a lost one is replaced, one whose server is leaving before it goes.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use natsway_boot::{Broker, Dial, DialError, DialErrorKind, Dialer, Session, SessionEvent};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tracing::{error, info, warn};

use crate::counter::LinkCounts;
use crate::link::{Link, LinkLimits};

/// How long requests wait for another connection after the last one was lost. Another server of a cluster is reached
/// within milliseconds; a broker that stays away fails requests at once from then on, for a queue would only grow.
pub const FAILOVER_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait where the replies may not be heard: somebody has to change the broker's configuration.
const DEAF_PAUSE: Duration = Duration::from_secs(5);

/// The connections of one thread.
pub struct Links {
    role: Role,
    limits: LinkLimits,
    counts: Arc<LinkCounts>,
    places: Vec<RefCell<Option<Rc<Link>>>>,
    next: Cell<usize>,
    /// When the last connection was lost, while there is none.
    lost_at: Cell<Option<Instant>>,
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
    /// Whether envelopes say where they are answered: services in other accounts of the broker cannot tell otherwise.
    pub says_reply_subject: bool,
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
        let (next, lost_at, came_up) = Default::default();
        Rc::new(Links { role, limits, counts, places, next, lost_at, came_up })
    }

    /// A connection to publish on, in turn where there are several; `None` while there is none.
    pub fn link(&self) -> Option<Rc<Link>> {
        let first = self.next.get();
        self.next.set((first + 1) % self.places.len());
        (0..self.places.len())
            .find_map(|step| self.places[(first + step) % self.places.len()].borrow().clone())
    }

    /// The same, and waits for it until `deadline`, but no longer than [`FAILOVER_LIMIT`] after the last one was lost.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub async fn link_by(&self, deadline: Instant) -> Option<Rc<Link>> {
        if let Some(link) = self.link() {
            return Some(link);
        }
        let until = deadline.min(self.lost_at.get()? + FAILOVER_LIMIT);
        tokio::time::timeout_at(until.into(), self.connected()).await.ok()?;
        self.link()
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

    /// Has requests wait for the first connection as they would for another one after a loss.
    pub(crate) fn expect(&self) {
        if self.link().is_none() {
            self.lost_at.set(Some(Instant::now()));
        }
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

    /// Keeps one connection up: a lost one is replaced, one whose server is leaving or silent is replaced before it goes.
    async fn keep_link(self: Rc<Links>, place: usize, mut dialer: Dialer, first: Option<Session>) {
        let mut next = first.map(|session| (session, None));
        loop {
            let (session, before) = match next.take() {
                Some(next) => next,
                None => (dialer.dial(None).await, None),
            };
            next = self.use_session(place, session, before, &mut dialer).await;
        }
    }

    /// Uses a session, in place of the link `before` if there is one, until it is lost, or until a better one is there:
    /// then that one, and what it takes the place of.
    async fn use_session(
        self: &Rc<Links>,
        place: usize,
        mut session: Session,
        before: Option<Replaced>,
        dialer: &mut Dialer,
    ) -> Option<(Session, Option<Replaced>)> {
        let opened =
            Link::open(&session, self.limits, Arc::clone(&self.counts), self.role.says_reply_subject).await;
        let (link, replies) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!(%error, "broker connection lost while it was set up");
                if let Some(Replaced { link, .. }) = before {
                    self.lose(place, &link);
                    link.retire();
                }
                return None;
            }
        };
        if is_deaf(&session) {
            if let Some(Replaced { link, .. }) = before {
                self.lose(place, &link);
                link.retire();
            }
            tokio::time::sleep(DEAF_PAUSE).await;
            return None;
        }
        spawn_local(Rc::clone(self).read_replies(place, Rc::clone(&link), replies));
        if self.places[place].replace(Some(Rc::clone(&link))).is_none() {
            self.counts.connected.add(1);
            self.lost_at.set(None);
            self.came_up.notify_waiters();
        }
        self.counts.sessions.inc();
        // Now that nothing new goes there.
        before.inspect(Replaced::retire);
        match successor(&mut session, &link, dialer).await {
            Some((better, is_doubted)) => Some((better, Some(Replaced { link, is_doubted }))),
            None => {
                self.lose(place, &link);
                None
            }
        }
    }

    async fn read_replies(self: Rc<Links>, place: usize, link: Rc<Link>, replies: Subscriber) {
        Rc::clone(&link).read_replies(replies).await;
        if link.is_lost() {
            self.lose(place, &link);
        }
    }

    /// Nothing is sent by a connection any more that is gone, from this moment on, whoever notices it first.
    fn lose(&self, place: usize, link: &Rc<Link>) {
        let is_used = self.places[place].borrow().as_ref().is_some_and(|used| Rc::ptr_eq(used, link));
        if is_used {
            self.places[place].replace(None);
            self.counts.connected.add(-1);
            if self.link().is_none() {
                self.lost_at.set(Some(Instant::now()));
            }
        }
    }
}

/// A link that another one takes the place of.
struct Replaced {
    link: Rc<Link>,
    /// It did not answer.
    is_doubted: bool,
}

impl Replaced {
    /// Requests that are out keep the old connection until they are answered, unless they are better tried elsewhere.
    fn retire(&self) {
        self.link.retire();
        if self.is_doubted {
            self.link.doubt();
        }
    }
}

/// What else a connection wants while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// Another connection: this one does not answer. The same server will do, if it takes one.
    Another,
    /// A connection to another server: this one will shut down.
    AnotherServer,
}

/// Whether replies will never be heard: to send requests would be to lose them. Why it is was told with what to do.
fn is_deaf(session: &Session) -> bool {
    let refused = session.refused().find(|subject| subject.starts_with(session.inbox_prefix()));
    if let Some(subject) = &refused {
        error!(subject, "no request is sent: the broker does not permit to hear the replies");
    }
    refused.is_some()
}

/// Waits until a session is lost, or until there is a better one: then that one, and whether the old one did not answer.
async fn successor(session: &mut Session, link: &Link, dialer: &mut Dialer) -> Option<(Session, bool)> {
    let mut wanted = Wanted::Nothing;
    loop {
        let avoid = (wanted == Wanted::AnotherServer).then_some(link.server_id());
        let event = tokio::select! {
            biased;
            event = session.next_event() => event,
            better = dialer.dial(avoid), if wanted != Wanted::Nothing => {
                return Some((better, wanted == Wanted::Another));
            }
        };
        wanted = match event {
            SessionEvent::Lost => return None,
            SessionEvent::NotPermitted if is_deaf(session) => return None,
            SessionEvent::NotPermitted => continue,
            SessionEvent::LameDuck => {
                info!(server_id = link.server_id(), "broker is shutting down, connecting to another");
                Wanted::AnotherServer
            }
            SessionEvent::Silent => {
                warn!(server_id = link.server_id(), "broker does not answer, trying another connection");
                if wanted == Wanted::Nothing { Wanted::Another } else { wanted }
            }
            SessionEvent::Answers => {
                info!(server_id = link.server_id(), "broker answers again");
                if wanted == Wanted::Another { Wanted::Nothing } else { wanted }
            }
        };
    }
}
