//! How a request reaches a version and comes back, or why it does not: the one place for it.
//!
//! [`Dispatcher::dispatch`] walks: wait for a connection, reserve room for the answer, choose a
//! version, write the message, send it, count how that ended, decide about another attempt. A
//! gateway and a client differ in what they know of a request ([`Outbound`]) and in how they tell
//! its end.
//!
//! What a request goes over is known to `Run::connection` and `Run::attempt` alone: they give an
//! [`Answer`], whose [`AttemptError`] says whether the request may have run.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use natsway_routes::metrics::Recorder;
use natsway_routes::table::{Codec, Route, Transport};
use natsway_routes::watch::ActiveRoutes;
use natsway_tunnel::http2::{REFUSED_WITH, RecvBody};
use natsway_wire::native::NativeReply;

use crate::attempt::{Answer, AttemptError, Continuation, Hop, Outgoing};
use crate::codec_pools::CodecPools;
use crate::connection::{Connection, StreamEvent};
use crate::counter::DispatchCounts;
use crate::encode::{Encoded, Sending, TraceFields};
use crate::outbound::{Chosen, DispatchError, Dispatched, EncodeError, Outbound, Reply};
use crate::retry::{Attempts, Budget, Next};
use crate::route_view::{Ledger, Resolved, ThreadRoutes};
use crate::stream::{Opening, Rest, StreamBody, Streamed, UpgradedStream, head_of};
use crate::tunnels::{StreamError, Tunnels};
use crate::unary::{Member, RequestWay, UnaryTunnels};

/// Sends the requests of one thread.
pub struct Dispatcher<L: Ledger> {
    pools: CodecPools,
    routes: ThreadRoutes<L>,
    budget: RefCell<Budget>,
    counts: Arc<DispatchCounts>,
    /// What goes on by streams goes by these, once they are there.
    tunnels: OnceCell<Rc<Tunnels>>,
    /// Whole requests go by these where their routes allow it, once they are there.
    unary: OnceCell<Rc<UnaryTunnels>>,
}

impl<L: Ledger> Dispatcher<L> {
    /// Returns a dispatcher by the routes in force, over connections that are yet to be made.
    pub fn new(
        pools: CodecPools,
        active_routes: ActiveRoutes,
        ledger: L,
        counts: Arc<DispatchCounts>,
    ) -> Self {
        let budget = RefCell::new(Budget::new(Instant::now()));
        let routes = ThreadRoutes::new(active_routes, ledger);
        let (tunnels, unary) = (OnceCell::new(), OnceCell::new());
        Self { pools, routes, budget, counts, tunnels, unary }
    }

    /// Has requests offer tunnels from now on, and streams go by them.
    ///
    /// # Panics
    /// The second time.
    pub fn offer(&self, tunnels: Rc<Tunnels>) {
        let heard = Rc::downgrade(&tunnels);
        self.pools.hear_stream_events(move |event| {
            let Some(tunnels) = heard.upgrade() else { return };
            match event {
                StreamEvent::Invited(subject) => tunnels.invited(subject),
                StreamEvent::Unwanted(reference) => tunnels.give_back(reference),
            }
        });
        assert!(self.tunnels.set(tunnels).is_ok(), "a thread has its tunnels once");
    }

    /// Has requests of routes that allow it offer tunnels for whole requests, and go by them. Needs
    /// a `LocalSet`.
    ///
    /// # Panics
    /// The second time.
    pub fn offer_unary(&self, tunnels: Rc<UnaryTunnels>) {
        tunnels.look_after(Rc::clone(self.pools.envelope()));
        assert!(self.unary.set(tunnels).is_ok(), "a thread has its tunnels once");
    }

    /// Returns the thread's tunnels, if it takes any.
    pub fn tunnels(&self) -> Option<&Rc<Tunnels>> {
        self.tunnels.get()
    }

    /// Returns the thread's broker connections.
    pub fn pools(&self) -> &CodecPools {
        &self.pools
    }

    /// Returns the routes by which the thread goes.
    pub fn routes(&self) -> &ThreadRoutes<L> {
        &self.routes
    }

    /// Returns what it counts.
    pub(crate) fn counts(&self) -> &DispatchCounts {
        &self.counts
    }

    /// Takes note of a request that came in: it earns its share of a retry.
    pub fn deposit(&self) {
        self.budget.borrow_mut().deposit();
    }

    /// Finds a request's route among those in force.
    ///
    /// # Errors
    /// No route answers it.
    pub fn resolve<O>(&self, outbound: &O) -> Result<Resolved<L::Route>, O::Error>
    where
        O: Outbound<Route = L::Route>,
    {
        // Before the table: a first one that comes in between is not taken for one without this
        // route.
        let are_known = self.routes.are_known();
        let view = self.routes.view();
        let index = outbound.find(view.table(), are_known)?;
        Ok(Resolved::new(view, index))
    }

    /// Sends a request until there is an answer, or no attempt is left. `first` is the route in
    /// force, and `attempts` what it allows.
    ///
    /// # Errors
    /// [`DispatchError`].
    ///
    /// # Cancel safety
    /// When the future is dropped, nobody waits any more: the work is cancelled at its worker, if
    /// the route wants that, and what comes back is dropped.
    pub async fn dispatch<O>(
        &self,
        outbound: &mut O,
        first: Resolved<L::Route>,
        attempts: Attempts,
    ) -> Result<Dispatched<O>, DispatchError<O>>
    where
        O: Outbound<Route = L::Route>,
    {
        Run { dispatcher: self, outbound, resolved: first, attempts, encoded: None }.drive().await
    }
}

/// A request on its way.
struct Run<'d, L: Ledger, O> {
    dispatcher: &'d Dispatcher<L>,
    outbound: &'d mut O,
    /// Its route, as of the last wait.
    resolved: Resolved<L::Route>,
    attempts: Attempts,
    /// Its message, once it was written for a route like that.
    encoded: Option<Encoded>,
}

impl<'d, L: Ledger, O: Outbound<Route = L::Route>> Run<'d, L, O> {
    async fn drive(mut self) -> Result<Dispatched<O>, DispatchError<O>> {
        let mut room = None;
        loop {
            let connection = self.connection().await?;
            if let (Some(most_bytes), None) = (self.most_bytes(connection.as_deref()), &room) {
                room = self.outbound.reserve(self.resolved.kept(), most_bytes);
                if room.is_none() {
                    room = Some(self.wait_for_room(most_bytes).await?);
                    // The connection may be gone by now.
                    continue;
                }
            }
            let version = self.choose().ok_or(DispatchError::NoVersion)?;
            let by = match self.way(version, connection.as_deref()) {
                RequestWay::Tunnel(member) => Ok(By::Tunnel(member)),
                RequestWay::Broker => connection.map(By::Broker).ok_or(AttemptError::NotConnected),
                RequestWay::Nowhere => Err(AttemptError::Overloaded),
            };
            let is_away = matches!(by, Err(AttemptError::NotConnected));
            let answer = match by {
                Ok(by) => self.attempt(by, version).await?,
                Err(error) => Answer::Failed(error),
            };
            // What failed brings nothing that needs room.
            let reserved = room.take();
            let error = match answer {
                Answer::Replied(reply) => {
                    let room = reserved.expect("room is reserved before anything is sent");
                    let chosen = Chosen { resolved: self.resolved, version };
                    return Ok(Dispatched { reply: Reply::Whole(reply), chosen, room });
                }
                Answer::Streamed(streamed) => {
                    let room = reserved.expect("room is reserved before anything is sent");
                    let chosen = Chosen { resolved: self.resolved, version };
                    return Ok(Dispatched { reply: Reply::Streamed(streamed), chosen, room });
                }
                Answer::Continues(_) => unreachable!("it was followed"),
                Answer::Unreadable(reason) => {
                    let chosen = Chosen { resolved: self.resolved, version };
                    return Err(DispatchError::BadReply { reason, chosen });
                }
                Answer::Failed(error) => error,
            };
            drop(reserved);
            // One that may have run is idempotent if it got here, and worth a longer wait.
            let is_away = is_away && !self.attempts.may_have_run();
            let is_spent = self.outbound.is_stream() && !self.outbound.has_opening();
            let Some(pause) = self.pause_after(error, is_away, is_spent) else {
                let (attempts, may_have_run) = (self.attempts.made(), self.attempts.may_have_run());
                let chosen = Chosen { resolved: self.resolved, version };
                return Err(DispatchError::GivenUp { error, attempts, may_have_run, chosen });
            };
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
            self.resolve_anew()?;
        }
    }

    /// Returns a connection to publish on, and waits a moment for one after the last was lost.
    async fn connection(&mut self) -> Result<Option<Rc<Connection>>, DispatchError<O>> {
        loop {
            let codec = self.resolved.route().codec;
            let pool = self.dispatcher.pools.of(codec);
            if let Some(connection) = pool.connection() {
                return Ok(Some(connection));
            }
            if self.is_reached_by_tunnel() {
                return Ok(None);
            }
            // In a box: it is rare, and the room would be kept in every request's future.
            let connection = Box::pin(pool.connection_by(self.attempts.deadline())).await;
            self.resolve_anew()?;
            // What is written in another codec goes by a connection of its own.
            if self.resolved.route().codec == codec {
                return Ok(connection);
            }
        }
    }

    /// The tunnels by which this request may go whole.
    fn unary(&self) -> Option<&'d Rc<UnaryTunnels>> {
        let route = self.resolved.route();
        let may = route.transport == Transport::Auto
            && route.codec == Codec::Http
            && !self.outbound.is_stream();
        self.dispatcher.unary.get().filter(|_| may)
    }

    /// Whether it can be sent although there is no connection to the broker.
    fn is_reached_by_tunnel(&self) -> bool {
        let versions = 0..self.resolved.route().split.targets().len();
        self.unary().is_some_and(|unary| {
            versions.clone().any(|version| unary.reaches(&self.resolved.version(version).subject))
        })
    }

    /// The longest answer; `None` where there is no way to have one.
    fn most_bytes(&self, connection: Option<&Connection>) -> Option<usize> {
        let by_broker = connection.map(Connection::max_payload);
        let by_tunnel = self.unary().map(|unary| unary.most_bytes());
        by_broker.max(by_tunnel)
    }

    /// Chooses what a request to a version goes by.
    fn way(&self, version: usize, connection: Option<&Connection>) -> RequestWay {
        let broker_answers = connection.is_some_and(|connection| !connection.is_silent());
        match self.unary() {
            Some(unary) => unary.way(&self.resolved.version(version).subject, broker_answers),
            None => RequestWay::Broker,
        }
    }

    async fn wait_for_room(&mut self, most_bytes: usize) -> Result<O::Room, DispatchError<O>> {
        let (kept, deadline) = (self.resolved.kept(), self.attempts.deadline());
        // In a box, as above.
        let waiting = Box::pin(self.outbound.wait_for_room(kept, most_bytes, deadline));
        let room = waiting.await.map_err(DispatchError::Sender)?;
        self.resolve_anew()?;
        Ok(room)
    }

    /// Takes the route in force after a wait: what an attempt missed may be because it changed, and
    /// a version is chosen and counted as out without giving way in between.
    fn resolve_anew(&mut self) -> Result<(), DispatchError<O>> {
        let newest = self.dispatcher.resolve(&*self.outbound).map_err(DispatchError::Sender)?;
        if !encode_alike(self.resolved.route(), newest.route()) {
            self.encoded = None;
        }
        self.resolved = newest;
        Ok(())
    }

    fn choose(&self) -> Option<usize> {
        let route = self.resolved.route();
        let (headers, client) = (self.outbound.headers(), self.outbound.client_address());
        route.selection.choose(&route.split, headers, client, fastrand::u32(..))
    }

    /// Sends the request to a version once, and counts how that ended.
    async fn attempt(&mut self, by: By, version: usize) -> Result<Answer, DispatchError<O>> {
        let hop = Hop {
            subject: &self.resolved.version(version).subject,
            version: Some(&self.resolved.route().split.targets()[version].version),
            broker: by.address(),
            resends: self.attempts.made(),
        };
        let trace = self.outbound.begin_attempt(hop);
        if trace.are_new {
            // The worker's span is this attempt's child, so it has a message of its own.
            self.encoded = None;
        }
        let outgoing = self.prepare(&by, version, trace.fields.as_ref())?;
        let until = outgoing.deadline;
        let recorder = Arc::clone(&self.resolved.version(version).attempts);
        let attempt = recorder.begin();
        let budget = &self.dispatcher.budget;
        let give_up = || budget.borrow_mut().withdraw(Instant::now());
        let mut answer = match (by, self.dispatcher.unary.get()) {
            (By::Tunnel(member), Some(unary)) => unary.call(member, outgoing).await,
            (By::Tunnel(_), None) => unreachable!("it is one of theirs"),
            (By::Broker(connection), _) => {
                let answer = connection.call(outgoing, give_up).await;
                self.learn(version, &answer);
                answer
            }
        };
        if let Answer::Continues(continuation) = answer {
            // In a box: most requests have no stream, and the room would be kept in every
            // request's future.
            let subject = self.resolved.version(version).subject.clone();
            answer = Box::pin(self.follow(*continuation, subject.as_str(), &recorder, until)).await;
        }
        match matches!(answer, Answer::Failed(_)) && self.outbound.is_own_fault() {
            true => attempt.withdraw(),
            false => answer.count(attempt),
        }
        self.outbound.end_attempt(&answer);
        Ok(answer)
    }

    /// Learns by which tunnel further requests to a version may go, from an answer by the broker.
    fn learn(&self, version: usize, answer: &Answer) {
        if let (Some(unary), Answer::Replied(NativeReply::Response(response))) =
            (self.unary(), answer)
        {
            unary.answered(&self.resolved.version(version).subject, response.join);
        }
    }

    /// Goes on where an answer says, on a stream.
    async fn follow(
        &mut self,
        continuation: Continuation,
        subject: &str,
        version: &Arc<Recorder>,
        until: Instant,
    ) -> Answer {
        let Some(tunnels) = self.dispatcher.tunnels.get() else {
            return Answer::Unreadable("it goes on by a tunnel, and none was offered".to_owned());
        };
        let streamed = |response, stream: http::Response<RecvBody>, permit| {
            let rest = StreamBody::new(stream.into_body(), permit, version);
            Answer::Streamed(Box::new(Streamed { response, rest: Rest::Body(rest) }))
        };
        match continuation {
            Continuation::Response { response, reference, place } => {
                let taken = tunnels.take(reference, subject, until).await;
                if !matches!(taken, Err(StreamError::TimedOut)) {
                    place.taken();
                }
                match taken {
                    Ok((stream, permit)) => streamed(response, stream, permit),
                    Err(StreamError::TimedOut) => Answer::Failed(AttemptError::TimedOut),
                    // The handler has run, as its response shows.
                    Err(StreamError::NotOpened(_) | StreamError::Lost) => {
                        Answer::Failed(AttemptError::StreamLost)
                    }
                }
            }
            Continuation::Ready { token, secret, place } => {
                let Some(opening) = self.outbound.take_opening() else {
                    return Answer::Unreadable(
                        "it waits for a stream that there is not".to_owned(),
                    );
                };
                let is_upgrade = matches!(opening, Opening::Upgrade { .. });
                let (outbound, until) = (&*self.outbound, self.attempts.deadline());
                let deadline = || outbound.deadline(until);
                let sent = tunnels.send(token, secret, subject, opening, deadline).await;
                let (mut stream, permit) = match sent {
                    Ok(opened) => opened,
                    Err(StreamError::TimedOut) => {
                        return Answer::Failed(AttemptError::TimedOut);
                    }
                    Err(StreamError::Lost) => return Answer::Failed(AttemptError::StreamLost),
                    Err(StreamError::NotOpened(opening)) => {
                        if let Some(opening) = opening {
                            self.outbound.put_back(opening);
                        }
                        return Answer::Failed(AttemptError::StreamNotOpened);
                    }
                };
                place.taken();
                let mut headers = std::mem::take(stream.headers_mut());
                if is_upgrade && stream.status() == StatusCode::OK {
                    let response = head_of(StatusCode::SWITCHING_PROTOCOLS, headers);
                    let Some(io) = stream.into_body().into_upgraded() else {
                        return Answer::Failed(AttemptError::StreamLost);
                    };
                    let rest = Rest::Upgraded(UpgradedStream::new(io, permit, version));
                    return Answer::Streamed(Box::new(Streamed { response, rest }));
                }
                let refused_with = refused_with(&mut headers).filter(|_| is_upgrade);
                let status = refused_with.unwrap_or(stream.status());
                streamed(head_of(status, headers), stream, permit)
            }
        }
    }

    /// Makes the message of one attempt, within the bounds of the connection.
    fn prepare(
        &mut self,
        by: &By,
        version: usize,
        trace: Option<&TraceFields>,
    ) -> Result<Outgoing, DispatchError<O>> {
        let (route, version) = (self.resolved.route(), self.resolved.version(version));
        let offer = match (self.unary(), self.dispatcher.tunnels.get()) {
            (Some(unary), _) => &unary.offer()[..],
            (None, Some(tunnels)) => tunnels.offer(),
            (None, None) => &[],
        };
        let now = Instant::now();
        let until = self.attempts.until(now, route.try_timeout);
        let sent_ms = match (by, self.unary()) {
            (By::Broker(connection), _) => connection.unix_ms_at(now),
            (By::Tunnel(_), unary) => unary.map_or(0, |unary| unary.unix_ms_at(now)),
        };
        let sending = Sending::new(now, until, sent_ms);
        let message = match &mut self.encoded {
            Some(encoded) => encoded.stamped(sending),
            none => {
                let encoded = self.outbound.encode(route, sending, trace, offer);
                let encoded = encoded.map_err(|error| match error {
                    EncodeError::Wire(error) => DispatchError::<O>::Unencodable(error),
                    EncodeError::Sender(error) => DispatchError::Sender(error),
                })?;
                none.insert(encoded).first()
            }
        };
        let bytes = message.bytes();
        if let By::Broker(connection) = by {
            connection.admit(bytes).map_err(DispatchError::NotAdmitted)?;
        }
        let policy = message.policy(route.cancel, self.attempts.is_idempotent());
        Ok(Outgoing {
            subject: version.subject.clone(),
            policy,
            payload: message.payload,
            offer_bytes: if message.headers.is_none() { offer.len() } else { 0 },
            headers: message.headers,
            bytes,
            deadline: until,
            accept_by: self.attempts.accept_by(now, until).filter(|_| policy.signals),
            version: Some(Arc::clone(&version.attempts)),
        })
    }

    /// Counts an attempt that failed; returns how long to wait for the next one, if there is one.
    /// `is_away` is whether there was no broker to make it with, `is_spent` whether its body is
    /// gone.
    fn pause_after(
        &mut self,
        error: AttemptError,
        is_away: bool,
        is_spent: bool,
    ) -> Option<Duration> {
        let Dispatcher { counts, budget, .. } = self.dispatcher;
        counts.failed(error);
        if is_away {
            return None;
        }
        if is_spent {
            self.attempts.note(error);
            return None;
        }
        match self.attempts.after(error, Instant::now(), fastrand::f64(), &mut budget.borrow_mut())
        {
            Next::GiveUp => None,
            Next::RetryAfter(pause) => {
                counts.retries.inc();
                Some(pause)
            }
        }
    }
}

/// What an attempt goes by.
enum By {
    Broker(Rc<Connection>),
    Tunnel(Member),
}

impl By {
    /// Where it goes first, for its span.
    fn address(&self) -> &str {
        match self {
            Self::Broker(connection) => connection.address(),
            Self::Tunnel(_) => "tunnel",
        }
    }
}

/// Whether a message that was written for one route can go out for another as it is.
fn encode_alike(one: &Route, other: &Route) -> bool {
    (one.codec, one.transport) == (other.codec, other.transport)
        && one.strip_prefix == other.strip_prefix
        && (one.codec != Codec::Args || (&one.args, &one.path) == (&other.args, &other.path))
}

/// Takes the status of an answer that says no to an upgrade.
fn refused_with(headers: &mut HeaderMap) -> Option<StatusCode> {
    let status = headers.remove(REFUSED_WITH)?;
    StatusCode::from_bytes(status.as_bytes()).ok().filter(|status| !status.is_informational())
}

#[cfg(test)]
mod tests;
