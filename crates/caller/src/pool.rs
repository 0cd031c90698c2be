//! The broker connections of one thread, kept up: a lost one is replaced, one whose server is
//! leaving before it goes.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use natsway_boot::{BrokerConfig, Dial, DialError, DialErrorKind, Dialer, Session, SessionEvent};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tracing::{error, info, warn};

use crate::connection::{Connection, ConnectionLimits, StreamEvent, StreamEvents};
use crate::counter::ConnectionCounts;

/// How long requests wait for another connection after the last one was lost. Another server of a
/// cluster is reached within milliseconds; a broker that stays away fails requests at once from
/// then on, for a queue would only grow.
pub const FAILOVER_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait where the replies may not be heard: somebody has to change the broker's
/// configuration.
const DENIED_PAUSE: Duration = Duration::from_secs(5);

/// The connections of one thread.
pub struct ConnectionPool {
    role: Role,
    limits: ConnectionLimits,
    counts: Arc<ConnectionCounts>,
    slots: Vec<RefCell<Option<Rc<Connection>>>>,
    next: Cell<usize>,
    /// When the last connection was lost, while there is none.
    lost_at: Cell<Option<Instant>>,
    /// Who hears of what concerns tunnels.
    stream_events: Rc<StreamEvents>,
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
    /// Whether envelopes say where they are answered: services in other accounts of the broker
    /// cannot tell otherwise.
    pub says_reply_subject: bool,
}

impl ConnectionPool {
    /// So many connections, none of which is made yet.
    pub fn new(
        role: Role,
        connections: NonZeroUsize,
        limits: ConnectionLimits,
        counts: Arc<ConnectionCounts>,
    ) -> Rc<Self> {
        let slots = (0..connections.get()).map(|_| RefCell::new(None)).collect();
        let (next, lost_at, stream_events, came_up) = Default::default();
        Rc::new(Self { role, limits, counts, slots, next, lost_at, stream_events, came_up })
    }

    /// A connection to publish on, in turn where there are several; `None` while there is none.
    pub fn connection(&self) -> Option<Rc<Connection>> {
        let first = self.next.get();
        self.next.set((first + 1) % self.slots.len());
        (0..self.slots.len())
            .find_map(|step| self.slots[(first + step) % self.slots.len()].borrow().clone())
    }

    /// The same, and waits for it until `deadline`, but no longer than [`FAILOVER_LIMIT`] after the
    /// last one was lost.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub async fn connection_by(&self, deadline: Instant) -> Option<Rc<Connection>> {
        if let Some(connection) = self.connection() {
            return Some(connection);
        }
        let until = deadline.min(self.lost_at.get()? + FAILOVER_LIMIT);
        tokio::time::timeout_at(until.into(), self.connected()).await.ok()?;
        self.connection()
    }

    /// Keeps every connection up, for ever. Needs a `LocalSet`.
    pub fn keep_connected(self: &Rc<Self>, broker: &BrokerConfig) {
        for slot in 0..self.slots.len() {
            spawn_local(Rc::clone(self).keep_connection(slot, self.dialer(broker), None));
        }
    }

    /// Attempts the broker once for the first of the connections, and then keeps all of them up,
    /// for ever; a broker that is away is waited for. Needs a `LocalSet`.
    ///
    /// # Errors
    /// The broker refused us or is too old. That is a mistake in somebody's configuration when it
    /// happens at the start, and nothing is kept up then.
    pub async fn connect(self: &Rc<Self>, broker: &BrokerConfig) -> Result<(), DialError> {
        let mut dialer = self.dialer(broker);
        let first = match dialer.dial_once(None).await {
            Ok(session) => Some(session),
            Err(error) if error.kind() == DialErrorKind::Unavailable => {
                warn!(%error, "broker not reached, trying again");
                None
            }
            Err(error) => return Err(error),
        };
        spawn_local(Rc::clone(self).keep_connection(0, dialer, first));
        for slot in 1..self.slots.len() {
            spawn_local(Rc::clone(self).keep_connection(slot, self.dialer(broker), None));
        }
        Ok(())
    }

    /// Has somebody hear of what concerns tunnels, from now on.
    pub(crate) fn hear_stream_events(&self, hear: impl Fn(StreamEvent) + 'static) {
        let is_first = self.stream_events.set(Box::new(hear)).is_ok();
        assert!(is_first, "a thread has its tunnels once");
    }

    /// Returns who hears of that.
    pub(crate) fn stream_events(&self) -> Rc<StreamEvents> {
        Rc::clone(&self.stream_events)
    }

    /// Has requests wait for the first connection as they would for another one after a loss.
    pub(crate) fn expect(&self) {
        if self.connection().is_none() {
            self.lost_at.set(Some(Instant::now()));
        }
    }

    /// Waits until there is a connection.
    pub async fn connected(&self) {
        while self.connection().is_none() {
            self.came_up.notified().await;
        }
    }

    /// Dials the broker for one of the connections.
    fn dialer(&self, broker: &BrokerConfig) -> Dialer {
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

    /// Keeps one connection up: a lost one is replaced, one whose server is leaving or silent is
    /// replaced before it goes.
    async fn keep_connection(
        self: Rc<Self>,
        slot: usize,
        mut dialer: Dialer,
        first: Option<Session>,
    ) {
        let mut next = first.map(|session| (session, None));
        loop {
            let (session, before) = match next.take() {
                Some(next) => next,
                None => (dialer.dial(None).await, None),
            };
            match self.open(&session).await {
                Ok((connection, replies)) => {
                    self.install(slot, &connection, replies);
                    // Now that nothing new goes there.
                    before.inspect(Replaced::retire);
                    next = self.replace(slot, session, connection, &mut dialer).await;
                }
                Err(unusable) => {
                    if let Some(Replaced { connection, .. }) = before {
                        self.lose(slot, &connection);
                        connection.retire();
                    }
                    if unusable == Unusable::Denied {
                        tokio::time::sleep(DENIED_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Makes a session a connection on which replies are heard.
    async fn open(&self, session: &Session) -> Result<(Rc<Connection>, Subscriber), Unusable> {
        let (counts, says_reply_subject) = (Arc::clone(&self.counts), self.role.says_reply_subject);
        let stream_events = self.stream_events();
        let opened =
            Connection::open(session, self.limits, counts, says_reply_subject, stream_events).await;
        let opened = opened.map_err(|error| {
            warn!(%error, "broker connection lost while it was set up");
            Unusable::Lost
        })?;
        if are_replies_denied(session) { Err(Unusable::Denied) } else { Ok(opened) }
    }

    /// Has requests go by a connection from now on.
    fn install(self: &Rc<Self>, slot: usize, connection: &Rc<Connection>, replies: Subscriber) {
        spawn_local(Rc::clone(self).read_replies(slot, Rc::clone(connection), replies));
        if self.slots[slot].replace(Some(Rc::clone(connection))).is_none() {
            self.counts.connected.add(1);
            self.lost_at.set(None);
            self.came_up.notify_waiters();
        }
        self.counts.sessions.inc();
    }

    /// Waits until a connection is lost, or until there is a better session: then that, and what it
    /// takes the slot of.
    async fn replace(
        &self,
        slot: usize,
        mut session: Session,
        connection: Rc<Connection>,
        dialer: &mut Dialer,
    ) -> Option<(Session, Option<Replaced>)> {
        let Some((better, is_silent)) = successor(&mut session, &connection, dialer).await else {
            self.lose(slot, &connection);
            return None;
        };
        Some((better, Some(Replaced { connection, is_silent })))
    }

    async fn read_replies(
        self: Rc<Self>,
        slot: usize,
        connection: Rc<Connection>,
        replies: Subscriber,
    ) {
        Rc::clone(&connection).read_replies(replies).await;
        if connection.is_lost() {
            self.lose(slot, &connection);
        }
    }

    /// Nothing is sent by a connection any more that is gone, from this moment on, whoever notices
    /// it first.
    fn lose(&self, slot: usize, connection: &Rc<Connection>) {
        let is_used =
            self.slots[slot].borrow().as_ref().is_some_and(|used| Rc::ptr_eq(used, connection));
        if is_used {
            self.slots[slot].replace(None);
            self.counts.connected.add(-1);
            if self.connection().is_none() {
                self.lost_at.set(Some(Instant::now()));
            }
        }
    }
}

/// Why requests cannot go by a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unusable {
    /// It was lost while it was set up.
    Lost,
    /// The broker does not permit to hear the replies.
    Denied,
}

/// A connection that another one takes the slot of.
struct Replaced {
    connection: Rc<Connection>,
    /// It did not answer.
    is_silent: bool,
}

impl Replaced {
    /// Requests that are out keep the old connection until they are answered, unless they are
    /// better tried elsewhere.
    fn retire(&self) {
        self.connection.retire();
        if self.is_silent {
            self.connection.give_up_repeatable();
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

/// Whether replies will never be heard: to send requests would be to lose them. Why it is was told
/// with what to do.
fn are_replies_denied(session: &Session) -> bool {
    let refused =
        session.denied_subscriptions().find(|subject| subject.starts_with(session.inbox_prefix()));
    if let Some(subject) = &refused {
        error!(subject, "no request is sent: the broker does not permit to hear the replies");
    }
    refused.is_some()
}

/// Waits until a session is lost, or until there is a better one: then that one, and whether the
/// old one did not answer.
async fn successor(
    session: &mut Session,
    connection: &Connection,
    dialer: &mut Dialer,
) -> Option<(Session, bool)> {
    let mut wanted = Wanted::Nothing;
    loop {
        let avoid = (wanted == Wanted::AnotherServer).then_some(connection.server_id());
        let event = tokio::select! {
            biased;
            event = session.next_event() => event,
            better = dialer.dial(avoid), if wanted != Wanted::Nothing => {
                return Some((better, wanted == Wanted::Another));
            }
        };
        wanted = match event {
            SessionEvent::Lost => return None,
            SessionEvent::NotPermitted if are_replies_denied(session) => return None,
            SessionEvent::NotPermitted => continue,
            SessionEvent::LameDuck => {
                info!(
                    server_id = connection.server_id(),
                    "broker is shutting down, connecting to another"
                );
                Wanted::AnotherServer
            }
            SessionEvent::Silent => {
                warn!(
                    server_id = connection.server_id(),
                    "broker does not answer, trying another connection"
                );
                connection.is_heard(false);
                if wanted == Wanted::Nothing { Wanted::Another } else { wanted }
            }
            SessionEvent::Answers => {
                info!(server_id = connection.server_id(), "broker answers again");
                connection.is_heard(true);
                if wanted == Wanted::Another { Wanted::Nothing } else { wanted }
            }
        };
    }
}
