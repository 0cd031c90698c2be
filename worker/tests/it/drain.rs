//! Leaving a queue group under a flood of requests, which loses them unless it is done by the
//! fence.

use std::time::Duration;

use async_nats::{Client, Subscriber};
use axum::Router;
use axum::routing::any;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use natsway_testkit::{Cluster, Process, TestBroker, eventually, free_port, workspace_binary};
use natsway_wire::control;
use natsway_wire::envelope::{NotRun, Signal, encode_response, encode_signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::flood::Flood;
use crate::stage::{Form, SUBJECT, Worker, options};

/// Requests outstanding: more than fit on the wire at a moment, so that there are always some to
/// lose.
const WINDOW: u64 = 5_000;

/// Requests sent between two departures.
const BETWEEN: u64 = 10_000;

fn router() -> Router {
    Router::new().route("/", any(async || "done"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_under_a_flood_and_loses_nothing_where_a_plain_drain_would() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let stays = Worker::start(&client, Form::PerCore, options(&broker.url()), router()).await;

    let flood = Flood::start(broker.port(), WINDOW);
    for form in [Form::Spawned, Form::PerCore].into_iter().cycle().take(8) {
        let worker = Worker::start(&client, form, options(&broker.url()), router()).await;
        flood.reaches(flood.sent() + BETWEEN).await;
        worker.leave().await;
    }
    let tally = flood.stop();
    assert_eq!((tally.unanswered, tally.twice), (0, 0), "{tally:?}");

    // The same flood and the same departure, but for the fence: were it no harder than this,
    // nothing was shown above.
    let mut lost = 0;
    for _ in 0..100 {
        let flood = Flood::start(broker.port(), WINDOW);
        for _ in 0..3 {
            let member = PlainMember::join(broker.connect().await).await;
            flood.reaches(flood.sent() + BETWEEN).await;
            member.leave_by_drain().await;
        }
        lost += flood.stop().unanswered;
        if lost > 0 {
            break;
        }
    }
    assert!(lost > 0, "the flood is too weak to show that a departure loses requests");
    stays.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_a_cluster_under_a_flood_and_loses_nothing() {
    let cluster = Cluster::start(3).await;
    let client = cluster[2].connect().await;
    let stays = Worker::start(&client, Form::PerCore, options(&cluster[1].url()), router()).await;
    let flood = Flood::start(cluster[2].port(), WINDOW);
    for _ in 0..5 {
        let worker =
            Worker::start(&client, Form::PerCore, options(&cluster[0].url()), router()).await;
        flood.reaches(flood.sent() + BETWEEN).await;
        worker.leave().await;
    }
    let tally = flood.stop();
    assert_eq!((tally.unanswered, tally.twice), (0, 0), "{tally:?}");
    stays.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_member_leaves_its_requests_to_those_that_stand_in() {
    let cluster = Cluster::start(3).await;
    let client = cluster[2].connect().await;
    let stand_in = StandIn::ready(client.clone()).await;
    let worker = Worker::start(&client, Form::Spawned, options(&cluster[0].url()), router()).await;
    let flood = Flood::start(cluster[2].port(), WINDOW);
    flood.reaches(BETWEEN).await;
    worker.leave().await;
    flood.reaches(flood.sent() + BETWEEN).await;
    let tally = flood.stop();
    assert_eq!((tally.unanswered, tally.twice), (0, 0), "{tally:?}");
    assert!(tally.responses > 0 && tally.moved > 0, "{tally:?}");
    stand_in.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_member_leaves_its_requests_to_a_gateway() {
    let program = tokio::task::spawn_blocking(|| workspace_binary("apiproxy")).await.unwrap();
    let cluster = Cluster::start(3).await;
    let client = cluster[2].connect().await;
    let directory = tempfile::tempdir().unwrap();
    let routes = directory.path().join("routes.toml");
    let route = "[[route]]\nname = \"test\"\npath = \"/{*rest}\"\n";
    let target = format!("[[route.target]]\nversion = \"blue\"\nsubject = \"{SUBJECT}\"\n");
    std::fs::write(&routes, route.to_owned() + &target).unwrap();
    let port = || format!("127.0.0.1:{}", free_port());
    let builder = Process::builder(program).args(["--static-routes", "--routes"]).arg(&routes);
    let addresses =
        ["--listen", &port(), "--admin-listen", &port(), "--nats-url", &cluster[2].url()];
    let gateway = builder.args(addresses).start();
    let question = control::tombstone_subject(&SUBJECT.parse().unwrap());

    let worker = Worker::start(&client, Form::PerCore, options(&cluster[0].url()), router()).await;
    // No group has the empty name, so it keeps silent; while it is not there, the broker says so at
    // once.
    eventually(Duration::from_secs(60), async || {
        let asked = client.request(question.clone(), "".into());
        match tokio::time::timeout(Duration::from_millis(200), asked).await {
            Ok(answer) => Err(format!("no gateway listens: {answer:?}")),
            Err(_silence) => Ok(()),
        }
    })
    .await;
    let flood = Flood::start(cluster[2].port(), WINDOW);
    flood.reaches(BETWEEN).await;
    worker.leave().await;
    flood.reaches(flood.sent() + BETWEEN).await;
    let tally = flood.stop();
    assert_eq!((tally.unanswered, tally.twice), (0, 0), "{tally:?}");
    assert!(tally.responses > 0 && tally.moved > 0, "{tally:?}\n{}", gateway.stderr());
}

/// A member that answers as fast as it can and leaves as a client library would have it.
struct PlainMember {
    client: Client,
    leave: CancellationToken,
    answering: JoinHandle<()>,
}

impl PlainMember {
    async fn join(client: Client) -> Self {
        let requests = client.queue_subscribe(SUBJECT, "q".to_owned()).await.unwrap();
        client.flush().await.unwrap();
        let leave = CancellationToken::new();
        let answering = tokio::spawn(answer(client.clone(), requests, leave.clone()));
        Self { client, leave, answering }
    }

    async fn leave_by_drain(self) {
        self.leave.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.answering).await.unwrap().unwrap();
        // Every answer is out before the connection is closed: what is lost was lost by the
        // departure.
        let inbox = self.client.new_inbox();
        let mut echo = self.client.subscribe(inbox.clone()).await.unwrap();
        self.client.publish(inbox, "".into()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), echo.next()).await.unwrap().unwrap();
    }
}

async fn answer(client: Client, mut requests: Subscriber, leave: CancellationToken) {
    let none = HeaderMap::new();
    let response = encode_response(StatusCode::OK, &none, &none, b"done").unwrap();
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            () = leave.cancelled(), if !leaving => {
                leaving = true;
                requests.drain().await.unwrap();
            }
            request = requests.next() => match request {
                Some(request) => client.publish(request.reply.unwrap(), response.clone()).await.unwrap(),
                None => return,
            },
        }
    }
}

/// What a gateway does when the last member of a subject leaves.
struct StandIn(JoinHandle<()>);

impl StandIn {
    async fn ready(client: Client) -> Self {
        let question = control::tombstone_subject(&SUBJECT.parse().unwrap());
        let mut questions = client.subscribe(question).await.unwrap();
        client.flush().await.unwrap();
        Self(tokio::spawn(async move {
            let question = questions.next().await.unwrap();
            let group = String::from_utf8(question.payload.to_vec()).unwrap();
            let mut requests = client.queue_subscribe(SUBJECT, group).await.unwrap();
            let inbox = client.new_inbox();
            let mut echo = client.subscribe(inbox.clone()).await.unwrap();
            client.publish(inbox, "".into()).await.unwrap();
            echo.next().await.unwrap();
            client.publish(question.reply.unwrap(), "".into()).await.unwrap();
            let moved = encode_signal(&Signal::NotRun(NotRun::Moved));
            while let Some(request) = requests.next().await {
                client.publish(request.reply.unwrap(), moved.clone()).await.unwrap();
            }
        }))
    }

    fn stop(self) {
        self.0.abort();
    }
}
