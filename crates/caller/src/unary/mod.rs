//! Whole requests by the tunnels of one thread: which there are, to whom, and what is out on them.
//!
//! A worker joins a tunnel for a subject in an answer by the broker, so requests to each subject go
//! by the broker at first, and now and then for ever. What is decided is decided by
//! [`natsway_tunnel::unary`].

mod tunnel;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use natsway_boot::Clock;
use natsway_routes::lease::Lease;
use natsway_tunnel::half_open::HalfOpen;
use natsway_tunnel::joins::{Arrived, JoinLimits, Joins, Said};
use natsway_tunnel::preface::{self, Welcome};
use natsway_tunnel::socket;
use natsway_tunnel::tls::Acceptor;
use natsway_tunnel::unary::choice::{BrokerTurns, Way, choose};
use natsway_tunnel::unary::{Fate, RequestKey, TICK, pump};
use natsway_wire::native::NativeReply;
use natsway_wire::offer::{Join, TunnelSecret};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio_util::either::Either;
use tracing::debug;

use self::tunnel::Tunnel;
use crate::attempt::{Answer, AttemptError, Outgoing};
use crate::connection::StreamEvents;
use crate::counter::TunnelCounts;
use crate::pending::{Key, PendingRequests, ReplyPolicy};
use crate::pool::ConnectionPool;
use crate::tunnels::{
    Connection, HANDSHAKE_TIMEOUT, MOST_HANDSHAKES, NAMED_FOR, SWEEP_INTERVAL, shake,
};

/// How often deadlines are looked at while requests are out: how late one may be noticed.
const EXPIRY_TICK: Duration = Duration::from_millis(10);

/// What a thread offers and bounds.
#[derive(Clone, Debug)]
pub struct UnaryConfig {
    /// An encoded [`Offer`](natsway_wire::offer::Offer) that takes requests.
    pub offer: Bytes,
    /// The name in it.
    pub gateway: String,
    /// The certificate that the offer names; `None` without TLS.
    pub acceptor: Option<Acceptor>,
    /// How many tunnels there may be, and of what waits.
    pub limits: JoinLimits,
    /// The longest answer.
    pub payload_bytes: u32,
    /// How long tunnels may be used.
    pub lease: Arc<Lease>,
    /// The clock of the lease, by which requests are stamped as well.
    pub clock: Clock,
}

/// The unary tunnels of one thread.
pub struct UnaryTunnels {
    config: UnaryConfig,
    counts: Arc<TunnelCounts>,
    joins: RefCell<Joins<Connection>>,
    /// What each tunnel was joined for, also of those that are not open yet.
    joined: RefCell<HashMap<TunnelSecret, Vec<JoinedSubject>>>,
    open: RefCell<HashMap<TunnelSecret, Rc<Tunnel>>>,
    subjects: RefCell<HashMap<Box<str>, Members>>,
    pending: RefCell<PendingRequests<Answer>>,
    /// Wakes [`expire`](Self::expire) when it is `expiry_parked`.
    expiry: Notify,
    expiry_parked: Cell<bool>,
    handshakes: HalfOpen,
    /// Who hears of responses that go on, and that nobody waits for.
    stream_events: OnceCell<Rc<StreamEvents>>,
}

/// A subject, and what requests for it are marked with on a tunnel.
type JoinedSubject = (Box<str>, u16);

/// The tunnels to the workers of one subject.
struct Members {
    turns: BrokerTurns,
    tunnels: Vec<Member>,
}

/// A tunnel, and what requests for a subject are marked with on it.
#[derive(Clone)]
pub(crate) struct Member {
    tunnel: Rc<Tunnel>,
    subject: u16,
}

/// What a request goes by.
pub(crate) enum RequestWay {
    /// A tunnel.
    Tunnel(Member),
    /// The broker.
    Broker,
    /// None: whoever is known is full.
    Nowhere,
}

impl UnaryTunnels {
    /// Returns one without a tunnel. Needs a `LocalSet`.
    pub fn new(config: UnaryConfig, counts: Arc<TunnelCounts>) -> Rc<Self> {
        let (joined, open, subjects, pending, expiry, expiry_parked) = Default::default();
        let tunnels = Rc::new(Self {
            joins: RefCell::new(Joins::new(config.limits)),
            config,
            counts,
            joined,
            open,
            subjects,
            pending,
            expiry,
            expiry_parked,
            handshakes: HalfOpen::new(MOST_HANDSHAKES),
            stream_events: OnceCell::new(),
        });
        let swept = Rc::downgrade(&tunnels);
        spawn_local(async move {
            let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
            loop {
                ticks.tick().await;
                let Some(tunnels) = swept.upgrade() else { return };
                tunnels.sweep();
            }
        });
        spawn_local(Rc::clone(&tunnels).expire());
        tunnels
    }

    /// Asks by the broker after the workers of tunnels that are stalled: those that are silent
    /// there too are lost.
    pub(crate) fn look_after(self: &Rc<Self>, pool: Rc<ConnectionPool>) {
        let is_first = self.stream_events.set(pool.stream_events()).is_ok();
        debug_assert!(is_first, "a thread has its tunnels once");
        let tunnels = Rc::downgrade(self);
        spawn_local(async move {
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                let Some(tunnels) = tunnels.upgrade() else { return };
                let Some(connection) = pool.connection() else { continue };
                for tunnel in tunnels.open.borrow().values().filter(|tunnel| tunnel.is_stalled()) {
                    spawn_local(Rc::clone(tunnel).ask_by(Rc::clone(&connection)));
                }
            }
        });
    }

    pub(crate) fn stream_events(&self) -> &Rc<StreamEvents> {
        self.stream_events.get_or_init(Rc::default)
    }

    /// Returns what requests say of it.
    pub fn offer(&self) -> &Bytes {
        &self.config.offer
    }

    /// The longest answer.
    pub(crate) fn most_bytes(&self) -> usize {
        self.config.payload_bytes as usize
    }

    /// The time to stamp a request with that is sent at `now`.
    pub(crate) fn unix_ms_at(&self, now: Instant) -> u64 {
        self.config.clock.unix_ms_at(now)
    }

    /// Whether requests may go by tunnels.
    fn has_lease(&self, now: Instant) -> bool {
        self.config.lease.holds(self.unix_ms_at(now))
    }

    /// Whether some request to a subject can go by a tunnel now.
    pub(crate) fn reaches(&self, subject: &Subject) -> bool {
        let subjects = self.subjects.borrow();
        let members = subjects.get(subject.as_str()).map_or(&[][..], |members| &members.tunnels);
        members.iter().any(|member| member.tunnel.is_usable()) && self.has_lease(Instant::now())
    }

    /// Chooses what a request to a subject goes by, where the broker does or does not answer.
    pub(crate) fn way(&self, subject: &Subject, broker_answers: bool) -> RequestWay {
        let now = Instant::now();
        if !self.has_lease(now) {
            return RequestWay::Broker;
        }
        let mut subjects = self.subjects.borrow_mut();
        let Some(Members { turns, tunnels }) = subjects.get_mut(subject.as_str()) else {
            return RequestWay::Broker;
        };
        let candidate = |index: usize| tunnels[index].tunnel.candidate(now);
        match choose(turns, broker_answers, tunnels.len(), candidate, now, || fastrand::u32(..)) {
            Way::Tunnel(index) => RequestWay::Tunnel(tunnels[index].clone()),
            Way::Broker => RequestWay::Broker,
            Way::Nowhere => RequestWay::Nowhere,
        }
    }

    /// Takes note that a request to a subject was answered by the broker, and of the tunnel that
    /// its worker joins.
    pub(crate) fn answered(self: &Rc<Self>, subject: &Subject, join: Option<Join>) {
        let now = Instant::now();
        let mut subjects = self.subjects.borrow_mut();
        let members = subjects
            .entry(subject.as_str().into())
            .or_insert_with(|| Members { turns: BrokerTurns::new(now), tunnels: Vec::new() });
        let open = join.and_then(|join| self.open.borrow().get(&join.secret).cloned());
        let is_member = |tunnel: &Rc<Tunnel>| {
            members.tunnels.iter().any(|member| Rc::ptr_eq(&member.tunnel, tunnel))
        };
        let is_known = open.as_ref().is_some_and(is_member);
        members.turns.answered(is_known, members.tunnels.len());
        let Some(join) = join.filter(|_| !is_known) else { return };
        if let Some(tunnel) = open {
            members.tunnels.push(Member { tunnel, subject: join.subject });
        }
        drop(subjects);
        let said = self.said(join.secret, subject.as_str(), now);
        if matches!(said, Said::Open | Said::Admitted(_) | Said::Expected) {
            let mut joined = self.joined.borrow_mut();
            let subjects = joined.entry(join.secret).or_default();
            if !subjects.iter().any(|(known, _)| **known == *subject.as_str()) {
                subjects.push((subject.as_str().into(), join.subject));
            }
        }
        if let Said::Admitted(connection) = said {
            let tunnels = Rc::clone(self);
            spawn_local(async move { tunnels.admit(join.secret, connection).await });
        }
    }

    /// Takes a connection whose [preface](preface::Preface) was read, and serves it to its end.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn accept(self: Rc<Self>, stream: TcpStream) {
        if socket::for_tunnel(&stream).is_err() {
            return self.counts.refused.inc();
        }
        let shaking = shake(self.config.acceptor.as_ref(), Either::Left(stream));
        let shaking = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking);
        let Some(Ok(Ok((secret, connection)))) = self.handshakes.run(shaking).await else {
            return self.counts.refused.inc();
        };
        let (is_full, is_expected) = {
            let joins = self.joins.borrow();
            (joins.is_full(), joins.is_expected(secret))
        };
        if is_full && is_expected {
            self.end_idle(|_| true);
        }
        let arrived = self.joins.borrow_mut().arrived(secret, connection, Instant::now());
        match arrived {
            Arrived::Admitted(connection) => self.admit(secret, connection).await,
            Arrived::Early { instead_of: None } => {}
            Arrived::Early { instead_of: Some(connection) } | Arrived::Twice(connection) => {
                self.refuse(connection, Welcome::Unknown).await;
            }
            Arrived::Full(connection) => self.refuse(connection, Welcome::Full).await,
        }
    }

    async fn refuse(&self, mut connection: Connection, why: Welcome) {
        self.counts.refused.inc();
        // Who does not read it learns as much from the close.
        let told = preface::welcome(&mut connection, why);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, told).await.ok();
    }

    /// Makes a connection the tunnel of its secret, until it ends.
    async fn admit(self: &Rc<Self>, secret: TunnelSecret, mut connection: Connection) {
        let welcomed = preface::welcome(&mut connection, Welcome::Accepted);
        let welcomed = tokio::time::timeout(HANDSHAKE_TIMEOUT, welcomed).await;
        let tunnel = Rc::new(Tunnel::new(self));
        if let Ok(Ok(())) = welcomed {
            self.counts.unary_opened.inc();
            self.counts.unary_open.add(1);
            self.open.borrow_mut().insert(secret, Rc::clone(&tunnel));
            for (subject, number) in self.joined.borrow().get(&secret).into_iter().flatten() {
                if let Some(members) = self.subjects.borrow_mut().get_mut(subject) {
                    let tunnel = Rc::clone(&tunnel);
                    members.tunnels.push(Member { tunnel, subject: *number });
                }
            }
            if let Err(error) = pump(connection, &*tunnel, self.most_bytes()).await {
                debug!(%error, source = error_source(&error), "unary tunnel lost");
            }
            self.counts.unary_open.add(-1);
        }
        self.open.borrow_mut().remove(&secret);
        self.joined.borrow_mut().remove(&secret);
        for members in self.subjects.borrow_mut().values_mut() {
            members.tunnels.retain(|member| !Rc::ptr_eq(&member.tunnel, &tunnel));
        }
        self.joins.borrow_mut().ended(secret, Instant::now());
        self.settle(tunnel.lost());
    }

    /// Takes note of a secret, and makes room for its tunnel if there is none.
    fn said(&self, secret: TunnelSecret, subject: &str, now: Instant) -> Said<Connection> {
        let said = self.joins.borrow_mut().said(secret, subject, now);
        if !matches!(said, Said::Full) {
            return said;
        }
        let (is_full, is_full_of_one) = {
            let joins = self.joins.borrow();
            (joins.is_full(), joins.is_full_of(subject))
        };
        if !is_full && !is_full_of_one {
            return said;
        }
        let has_room =
            self.end_idle(|secret| !is_full_of_one || self.joins.borrow().is_of(secret, subject));
        match has_room {
            true => self.joins.borrow_mut().said(secret, subject, now),
            false => Said::Full,
        }
    }

    /// Ends the tunnel that was used longest ago of those on which nothing is out, if one may end.
    fn end_idle(&self, may_end: impl Fn(TunnelSecret) -> bool) -> bool {
        let now = Instant::now();
        let open = self.open.borrow();
        let idle = open.iter().filter(|(secret, tunnel)| {
            tunnel.is_idle() && tunnel.used() + NAMED_FOR <= now && may_end(**secret)
        });
        let Some((secret, tunnel)) = idle.min_by_key(|(_, tunnel)| tunnel.used()) else {
            return false;
        };
        tunnel.give_up();
        // Its place is free at once; what is left of it is its task's to end.
        self.joins.borrow_mut().ended(*secret, now);
        true
    }

    fn sweep(&self) {
        let given_up = self.joins.borrow_mut().expire(Instant::now());
        self.counts.refused.add(given_up.len() as u64);
        let joins = self.joins.borrow();
        self.joined.borrow_mut().retain(|secret, _| joins.is_to_come(*secret));
    }

    /// Sends a request by a tunnel and waits for how it ends, no longer than its deadline.
    ///
    /// # Cancel safety
    /// When the future is dropped, nobody waits any more: the work is cancelled at its worker, if
    /// the request's policy says so, and what comes back is dropped.
    pub(crate) async fn call(self: &Rc<Self>, member: Member, outgoing: Outgoing) -> Answer {
        let Outgoing { payload, policy, deadline, .. } = outgoing;
        let Member { tunnel, subject } = member;
        // Who is to be told of the end is known without being told.
        let waits = ReplyPolicy { cancel: false, ..policy };
        let secret = natsway_boot::random_u64();
        let key = self.pending.borrow_mut().insert(deadline, waits, secret);
        let sent = tunnel.send(subject, &payload, key);
        drop(payload);
        let Ok(request) = sent else {
            self.pending.borrow_mut().abandon(key);
            return Answer::Failed(AttemptError::NotConnected);
        };
        self.counts.unary_requests.inc();
        if self.expiry_parked.get() {
            self.expiry.notify_one();
        }
        let mut wait = Wait {
            tunnels: self,
            tunnel: &tunnel,
            key,
            request,
            cancels: policy.cancel,
            is_done: false,
            has_failed: false,
        };
        let answer = std::future::poll_fn(|cx| wait.poll(cx)).await;
        wait.has_failed = is_failure(&answer);
        answer
    }

    /// Gives a request what it waits for; returns whether it did.
    fn deliver(&self, key: Key, answer: Answer) -> bool {
        self.pending.borrow_mut().deliver(key, answer)
    }

    fn settle(&self, unanswered: Vec<(Key, Fate)>) {
        for (key, fate) in unanswered {
            let error = match fate {
                Fate::NeverRan => AttemptError::NotConnected,
                Fate::Unknown => AttemptError::InstanceLost,
            };
            self.deliver(key, Answer::Failed(error));
        }
    }

    /// Gives up the requests whose deadline has passed, for ever.
    async fn expire(self: Rc<Self>) {
        loop {
            if self.pending.borrow().is_empty() {
                self.expiry_parked.set(true);
                self.expiry.notified().await;
                self.expiry_parked.set(false);
            }
            tokio::time::sleep(EXPIRY_TICK).await;
            self.pending.borrow_mut().expire(Instant::now(), false);
        }
    }
}

/// A request that is out, and what cleans up when nobody waits any more.
struct Wait<'t> {
    tunnels: &'t UnaryTunnels,
    tunnel: &'t Tunnel,
    key: Key,
    request: RequestKey,
    cancels: bool,
    is_done: bool,
    has_failed: bool,
}

impl Wait<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        let answer = self.tunnels.pending.borrow_mut().poll(self.key, cx);
        answer.map(|answer| match answer {
            Some(answer) => {
                self.is_done = true;
                answer
            }
            None => Answer::Failed(AttemptError::TimedOut),
        })
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.tunnels.pending.borrow_mut().abandon(self.key);
            self.tunnel.forget(self.request, self.cancels);
        }
        self.tunnel.ended(self.has_failed);
    }
}

/// Whether an answer speaks against the worker that gave it.
fn is_failure(answer: &Answer) -> bool {
    match answer {
        Answer::Replied(NativeReply::Response(response)) => response.status.is_server_error(),
        Answer::Replied(NativeReply::ServiceError { status, .. }) => status.is_server_error(),
        Answer::Failed(_) | Answer::Unreadable(_) => true,
        Answer::Continues(_) | Answer::Streamed(_) => false,
    }
}

fn error_source(error: &dyn std::error::Error) -> Option<String> {
    error.source().map(ToString::to_string)
}
