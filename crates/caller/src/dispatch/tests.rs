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
        _: &[u8],
    ) -> Result<Encoded, EncodeError<NoRoute>> {
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
