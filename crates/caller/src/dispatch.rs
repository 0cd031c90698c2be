//! How a request reaches a version and comes back, or why it does not: the one place for it.
//!
//! [`Dispatcher::dispatch`] walks: wait for a connection, reserve room for the answer, choose a
//! version, write the message, send it, count how that ended, decide about another attempt. A
//! gateway and a client differ in what they know of a request ([`Outbound`]) and in how they tell
//! its end.
//!
//! What a request goes over is known to `Run::connection` and `Run::attempt` alone: they give an
//! [`Answer`], whose [`AttemptError`] says whether the request may have run.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natsway_routes::table::Route;
use natsway_routes::watch::ActiveRoutes;

use crate::attempt::{Answer, AttemptError, Hop, Outgoing};
use crate::codec_pools::CodecPools;
use crate::connection::Connection;
use crate::counter::DispatchCounts;
use crate::encode::{Encoded, Sending, TraceFields};
use crate::outbound::{Chosen, DispatchError, Dispatched, Outbound};
use crate::retry::{Attempts, Budget, Next};
use crate::route_view::{Ledger, Resolved, ThreadRoutes};

/// Sends the requests of one thread.
pub struct Dispatcher<L: Ledger> {
    pools: CodecPools,
    routes: ThreadRoutes<L>,
    budget: RefCell<Budget>,
    counts: Arc<DispatchCounts>,
}

impl<L: Ledger> Dispatcher<L> {
    /// Returns a dispatcher by the routes in force, over connections that are yet to be made.
    pub fn new(
        pools: CodecPools,
        active_routes: ActiveRoutes,
        ledger: L,
        counts: Arc<DispatchCounts>,
    ) -> Dispatcher<L> {
        let budget = RefCell::new(Budget::new(Instant::now()));
        Dispatcher { pools, routes: ThreadRoutes::new(active_routes, ledger), budget, counts }
    }

    /// Returns the thread's broker connections.
    pub fn pools(&self) -> &CodecPools {
        &self.pools
    }

    /// Returns the routes by which the thread goes.
    pub fn routes(&self) -> &ThreadRoutes<L> {
        &self.routes
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

impl<L: Ledger, O: Outbound<Route = L::Route>> Run<'_, L, O> {
    async fn drive(mut self) -> Result<Dispatched<O>, DispatchError<O>> {
        let mut room = None;
        loop {
            let connection = self.connection().await?;
            if let (Some(connection), None) = (&connection, &room) {
                let most_bytes = connection.max_payload();
                room = self.outbound.reserve(self.resolved.kept(), most_bytes);
                if room.is_none() {
                    room = Some(self.wait_for_room(most_bytes).await?);
                    // The connection may be gone by now.
                    continue;
                }
            }
            let version = self.choose().ok_or(DispatchError::NoVersion)?;
            let answer = match &connection {
                Some(connection) => self.attempt(connection, version).await?,
                None => Answer::Failed(AttemptError::NotConnected),
            };
            // What failed brings nothing that needs room.
            let reserved = room.take();
            let error = match answer {
                Answer::Replied(reply) => {
                    let room = reserved.expect("room is reserved before anything is sent");
                    let chosen = Chosen { resolved: self.resolved, version };
                    return Ok(Dispatched { reply, chosen, room });
                }
                Answer::Unreadable(reason) => {
                    let chosen = Chosen { resolved: self.resolved, version };
                    return Err(DispatchError::BadReply { reason, chosen });
                }
                Answer::Failed(error) => error,
            };
            drop(reserved);
            // One that may have run is idempotent if it got here, and worth a longer wait.
            let is_away = connection.is_none() && !self.attempts.may_have_run();
            let Some(pause) = self.pause_after(error, is_away) else {
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
            // In a box: it is rare, and the room would be kept in every request's future.
            let connection = Box::pin(pool.connection_by(self.attempts.deadline())).await;
            self.resolve_anew()?;
            // What is written in another codec goes by a connection of its own.
            if self.resolved.route().codec == codec {
                return Ok(connection);
            }
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
    async fn attempt(
        &mut self,
        connection: &Rc<Connection>,
        version: usize,
    ) -> Result<Answer, DispatchError<O>> {
        let hop = Hop {
            subject: &self.resolved.version(version).subject,
            version: &self.resolved.route().split.targets()[version].version,
            broker: connection.address(),
            resends: self.attempts.made(),
        };
        let trace = self.outbound.begin_attempt(hop);
        if trace.are_new {
            // The worker's span is this attempt's child, so it has a message of its own.
            self.encoded = None;
        }
        let outgoing = self.prepare(connection, version, trace.fields.as_ref())?;
        let attempt = self.resolved.version(version).attempts.begin();
        let budget = &self.dispatcher.budget;
        let give_up = || budget.borrow_mut().withdraw(Instant::now());
        let answer = connection.call(outgoing, give_up).await;
        answer.count(attempt);
        self.outbound.end_attempt(&answer);
        Ok(answer)
    }

    /// Makes the message of one attempt, within the bounds of the connection.
    fn prepare(
        &mut self,
        connection: &Connection,
        version: usize,
        trace: Option<&TraceFields>,
    ) -> Result<Outgoing, DispatchError<O>> {
        let (route, version) = (self.resolved.route(), self.resolved.version(version));
        let now = Instant::now();
        let until = self.attempts.until(now, route.try_timeout);
        let sending = Sending::new(now, until, connection.unix_ms_at(now));
        let message = match &mut self.encoded {
            Some(encoded) => encoded.stamped(sending),
            none => {
                let encoded = self.outbound.encode(route, sending, trace);
                none.insert(encoded.map_err(DispatchError::Unencodable)?).first()
            }
        };
        let bytes = message.bytes();
        connection.admit(bytes).map_err(DispatchError::NotAdmitted)?;
        let policy = message.policy(route.cancel, self.attempts.is_idempotent());
        Ok(Outgoing {
            subject: version.subject.clone(),
            policy,
            payload: message.payload,
            headers: message.headers,
            bytes,
            deadline: until,
            accept_by: self.attempts.accept_by(now, until).filter(|_| policy.signals),
            version: Some(Arc::clone(&version.attempts)),
        })
    }

    /// Counts an attempt that failed; returns how long to wait for the next one, if there is one.
    fn pause_after(&mut self, error: AttemptError, is_last: bool) -> Option<Duration> {
        let Dispatcher { counts, budget, .. } = self.dispatcher;
        counts.failed(error);
        if is_last {
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

/// Whether a message that was written for one route can go out for another as it is.
fn encode_alike(one: &Route, other: &Route) -> bool {
    one.codec == other.codec && one.strip_prefix == other.strip_prefix
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::num::NonZeroUsize;

    use http::HeaderMap;
    use natsway_routes::document::RouteDocument;
    use natsway_routes::metrics::Recorder;
    use natsway_routes::table::RouteTable;

    use super::*;
    use crate::attempt::TraceContext;
    use crate::connection::ConnectionLimits;
    use crate::pool::Role;

    #[derive(Default)]
    struct NoLedger(Arc<Recorder>);

    impl Ledger for NoLedger {
        type Route = ();

        fn attempts(&self, _: &str, _: &str) -> Arc<Recorder> {
            Arc::clone(&self.0)
        }

        fn route(&self, _: &Route) {}
    }

    #[derive(Debug, PartialEq)]
    struct NoRoute {
        are_known: bool,
    }

    struct Named(&'static str, HeaderMap);

    impl Outbound for Named {
        type Route = ();
        type Error = NoRoute;
        type Room = ();

        fn find(&self, table: &RouteTable, are_known: bool) -> Result<usize, NoRoute> {
            table.named(self.0).ok_or(NoRoute { are_known })
        }

        fn headers(&self) -> &HeaderMap {
            &self.1
        }

        fn client_address(&self) -> Option<IpAddr> {
            None
        }

        fn reserve(&self, (): &(), _: usize) -> Option<()> {
            Some(())
        }

        async fn wait_for_room(&self, (): &(), _: usize, _: Instant) -> Result<(), NoRoute> {
            Ok(())
        }

        fn begin_attempt(&mut self, _: Hop<'_>) -> TraceContext {
            TraceContext::default()
        }

        fn end_attempt(&mut self, _: &Answer) {}

        fn encode(
            &self,
            _: &Route,
            _: Sending,
            _: Option<&TraceFields>,
        ) -> Result<Encoded, natsway_wire::Error> {
            unreachable!("there is no connection to send anything on")
        }
    }

    fn table() -> RouteTable {
        let route = |name: &str, weight: u32| {
            let json = format!(
                r#"{{"name":"{name}","path":"/{name}",
                    "target":[{{"version":"blue","subject":"svc.{name}.blue","weight":{weight}}}]}}"#
            );
            RouteDocument::from_json(json.as_bytes()).unwrap().check(None).unwrap()
        };
        RouteTable::new(vec![route("math", 1), route("closed", 0)]).unwrap()
    }

    fn dispatcher(active_routes: ActiveRoutes) -> Dispatcher<NoLedger> {
        let role = Role {
            name: "test".to_owned(),
            inbox_prefix: "_INBOX_test".to_owned(),
            says_reply_subject: false,
        };
        let limits = ConnectionLimits { in_flight: 1, in_flight_bytes: 1 };
        let pools = CodecPools::new(role, NonZeroUsize::MIN, limits, &Default::default());
        Dispatcher::new(pools, active_routes, NoLedger::default(), Arc::default())
    }

    async fn sent(dispatcher: &Dispatcher<NoLedger>, name: &'static str) -> DispatchError<Named> {
        let mut request = Named(name, HeaderMap::new());
        let first = match dispatcher.resolve(&request) {
            Ok(first) => first,
            Err(error) => return DispatchError::Sender(error),
        };
        let (now, route) = (Instant::now(), first.route());
        let attempts = Attempts::new(route.retry, true, now, now + route.timeout);
        match dispatcher.dispatch(&mut request, first, attempts).await {
            Ok(_) => panic!("answered by nobody"),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn without_a_connection_nothing_was_sent_and_that_is_said_at_once() {
        let dispatcher = dispatcher(ActiveRoutes::fixed(table()));
        let DispatchError::GivenUp { error, attempts, may_have_run, .. } =
            sent(&dispatcher, "math").await
        else {
            panic!("it has a route and a version");
        };
        assert_eq!((error, attempts, may_have_run), (AttemptError::NotConnected, 0, false));
        assert_eq!(dispatcher.counts.failures(AttemptError::NotConnected), 1);
        assert_eq!(dispatcher.counts.retries.get(), 0);
        let version = dispatcher.routes().ledger().0.read();
        assert_eq!(
            (version.requests(), version.in_flight),
            (0, 0),
            "it says nothing about the version"
        );
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_apart_from_what_is_not_known_yet() {
        for (active_routes, are_known) in
            [(ActiveRoutes::fixed(table()), true), (ActiveRoutes::unknown(), false)]
        {
            match sent(&dispatcher(active_routes), "none").await {
                DispatchError::Sender(error) => assert_eq!(error, NoRoute { are_known }),
                _ => panic!("there is no such route"),
            }
        }
        let closed = sent(&dispatcher(ActiveRoutes::fixed(table())), "closed").await;
        assert!(matches!(closed, DispatchError::NoVersion));
    }
}
