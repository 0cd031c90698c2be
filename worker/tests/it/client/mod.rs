//! A client that calls workers by the names of their routes: on a real broker, with real workers.

mod accounts;
mod context;
mod errors;
mod metrics;
mod routing;
mod streams;
mod upheaval;

use std::time::Duration;

use axum::Router;
use axum::routing::any;
use futures_util::FutureExt;
use http::{Request, Response};
use natsway_routes::document::RouteDocument;
use natsway_routes::report::Report;
use natsway_routes::store::{BUCKET, RouteStore};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::report_subject;
use natsway_worker::{Body, Client, ClientOptions, Options};

use crate::stage::{Form, Worker};

/// Generous: a deadline is for a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A broker with routes, and a client that calls by them.
struct Stage {
    broker: TestBroker,
    /// For starting workers, and for looking.
    nats: async_nats::Client,
    store: RouteStore,
    client: Client,
}

impl Stage {
    /// Routes are given as the members of their documents but for `schema` and `name`.
    async fn new(routes: &[(&str, &str)]) -> Self {
        Self::with(routes, |options| options).await
    }

    /// A client with further options.
    async fn with(
        routes: &[(&str, &str)],
        further: impl FnOnce(ClientOptions) -> ClientOptions,
    ) -> Self {
        let broker = TestBroker::builder().jetstream().start().await;
        let nats = broker.connect().await;
        let store = RouteStore::open_or_create(nats.clone(), BUCKET, 1).await.unwrap();
        for (name, members) in routes {
            store.put(&document(name, members), None).await.unwrap();
        }
        let options = ClientOptions::new("test")
            .broker(natsway_worker::BrokerConfig::new(&broker.url()).unwrap());
        let client = Client::connect(further(options.patience(DEADLINE))).await.unwrap();
        Self { broker, nats, store, client }
    }

    /// Writes a route anew, and gives the revision.
    async fn change(&self, name: &str, members: &str) -> u64 {
        let stored = self.store.get(name).await.unwrap();
        let revision = stored.map(|stored| stored.revision);
        self.store.put(&document(name, members), revision).await.unwrap()
    }

    async fn worker(&self, subject: &str, router: Router) -> Worker {
        self.worker_with(subject, router, |options| options).await
    }

    /// A worker with further options.
    async fn worker_with(
        &self,
        subject: &str,
        router: Router,
        further: impl FnOnce(Options) -> Options,
    ) -> Worker {
        let broker = natsway_worker::BrokerConfig::new(&self.broker.url()).unwrap();
        let options = Options::new(subject).broker(broker).drain_timeout(DEADLINE);
        Worker::start(&self.nats, Form::Spawned, further(options), router).await
    }

    /// A worker that answers everything with its subject.
    async fn naming_worker(&self, subject: &'static str) -> Worker {
        self.worker(subject, Router::new().fallback(any(async move || subject))).await
    }
}

fn document(name: &str, members: &str) -> RouteDocument {
    let json = format!(r#"{{"schema":1,"name":"{name}",{members}}}"#);
    RouteDocument::from_json(json.as_bytes()).unwrap()
}

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::default()).unwrap()
}

fn post(uri: &str, body: &'static str) -> Request<Body> {
    Request::post(uri).body(body.into()).unwrap()
}

fn text(response: Response<Body>) -> String {
    assert_eq!(response.status(), 200);
    let whole = response.into_body().into_bytes().now_or_never().expect("it is small");
    String::from_utf8(whole.unwrap().to_vec()).unwrap()
}

/// What the one client says when it is asked.
async fn ask(nats: &async_nats::Client) -> Report {
    let answer = tokio::time::timeout(DEADLINE, nats.request(report_subject(), "".into())).await;
    Report::read(&answer.expect("the client answers").unwrap().payload).unwrap()
}

/// Waits until the client goes by the routes of that revision.
async fn goes_by(stage: &Stage, revision: u64) -> Report {
    eventually(DEADLINE, async || {
        let report = ask(&stage.nats).await;
        if report.revision == revision { Ok(report) } else { Err(report.revision) }
    })
    .await
}

async fn eventually_says(client: &Client, uri: &str, expected: &str) {
    eventually(DEADLINE, async || {
        let said = client.send(get(uri)).await.map(text);
        if said.as_deref() == Ok(expected) { Ok(()) } else { Err(said) }
    })
    .await;
}
