//! Connections that break, brokers that go, and leaving while work is in hand.

use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use natsway_testkit::{Cluster, TcpLink, TestBroker, eventually};
use natsway_wire::control;

use crate::caller::{Caller, Draft};
use crate::flood::Flood;
use crate::stage::{FORMS, Form, SUBJECT, Worker, options};

fn router() -> Router {
    Router::new()
        .route("/slow", get(async || tokio::time::sleep(Duration::from_millis(700)).await))
        .route("/forever", get(async || std::future::pending::<()>().await))
        .route("/", get(async || "quick"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_answers_by_the_new_session_when_its_own_was_lost() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let mut link = TcpLink::to_port(broker.port()).await;
        let worker = Worker::start(&caller.client, form, options(&link.url()), router()).await;
        caller.send(SUBJECT, Draft::get("/slow")).await;
        caller.accepted().await;
        link.cut().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        link.resume().await;
        assert_eq!(caller.response().await.status, StatusCode::OK, "{form:?}");
        eventually(Duration::from_secs(30), async || {
            caller
                .client
                .request(control::presence_subject(&SUBJECT.parse().unwrap()), "".into())
                .await
        })
        .await;
        assert_eq!(caller.call(SUBJECT, Draft::get("/")).await.body, "quick");
        worker.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_waits_for_what_is_in_hand_and_takes_nothing_new() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let worker = Worker::start(&caller.client, form, options(&broker.url()), router()).await;
        caller.send(SUBJECT, Draft::get("/slow")).await;
        caller.accepted().await;
        let leaving = worker.leave();
        eventually(Duration::from_secs(30), async || no_responders(&caller).await).await;
        assert_eq!(caller.response().await.status, StatusCode::OK, "{form:?}");
        assert_eq!(leaving.await.unfinished, 0);
    }
}

async fn no_responders(caller: &Caller) -> bool {
    let request = caller.client.request(SUBJECT, "".into()).await;
    request.is_err_and(|error| error.kind() == async_nats::RequestErrorKind::NoResponders)
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_ends_at_the_drain_timeout() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let limit = Duration::from_millis(800);
        let options = options(&broker.url()).drain_timeout(limit);
        let worker = Worker::start(&caller.client, form, options, router()).await;
        caller.send(SUBJECT, Draft::get("/forever")).await;
        caller.accepted().await;
        let began = Instant::now();
        assert_eq!(worker.leave().await.unfinished, 1, "{form:?}");
        assert!(began.elapsed() >= limit);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_leave_do_not_say_that_they_are_there() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let stays =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), router()).await;
    let leaves =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), router()).await;
    let ids = [stays.id.clone(), leaves.id.clone()];
    let client = caller.client.clone();
    eventually(Duration::from_secs(30), async || present(&client).await == sorted(ids.to_vec()))
        .await;
    // Enough of them that the one that leaves has one, and so stays for a while.
    for _ in 0..20 {
        caller.send(SUBJECT, Draft::get("/slow")).await;
    }
    let leaving = leaves.leave();
    eventually(Duration::from_secs(30), async || present(&client).await == ids[..1]).await;
    leaving.await;
    stays.leave().await;
}

/// The instances that say that they are there, in order.
async fn present(client: &async_nats::Client) -> Vec<String> {
    use futures_util::StreamExt;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let question = control::presence_subject(&SUBJECT.parse().unwrap());
    client.publish_with_reply(question, inbox, "".into()).await.unwrap();
    let mut ids = Vec::new();
    while let Ok(Some(answer)) =
        tokio::time::timeout(Duration::from_millis(200), answers.next()).await
    {
        ids.push(String::from_utf8_lossy(&answer.payload).into_owned());
    }
    // Each reader answers for its instance.
    ids.dedup();
    sorted(ids)
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_shuts_down_costs_no_request() {
    let mut cluster = Cluster::start(2).await;
    let client = cluster[1].connect().await;
    // It knows the first server only; the other it must have been told of.
    let worker = Worker::start(&client, Form::Spawned, options(&cluster[0].url()), router()).await;
    let flood = Flood::start(cluster[1].port(), 200);
    flood.reaches(2_000).await;
    cluster[0].lame_duck();
    cluster[0].wait_exit(Duration::from_secs(120)).await;
    let sent = flood.sent();
    flood.reaches(sent + 2_000).await;
    let tally = flood.stop();
    assert_eq!(tally.unanswered, 0, "{tally:?}");
    let summary = worker.leave().await;
    assert!(summary.requests >= tally.sent, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_leave_while_it_moves() {
    let mut cluster = Cluster::start(2).await;
    let client = cluster[1].connect().await;
    let stays = Worker::start(&client, Form::PerCore, options(&cluster[1].url()), router()).await;
    let moves = Worker::start(&client, Form::PerCore, options(&cluster[0].url()), router()).await;
    let flood = Flood::start(cluster[1].port(), 5_000);
    flood.reaches(2_000).await;
    cluster[0].lame_duck();
    eventually(Duration::from_secs(60), async || {
        let connections = cluster[1].monitor("/connz").await.map_err(|error| error.to_string())?;
        if connections.to_string().contains(&moves.id) {
            Ok(())
        } else {
            Err("not there yet".to_owned())
        }
    })
    .await;
    moves.leave().await;
    flood.reaches(flood.sent() + 2_000).await;
    let tally = flood.stop();
    assert_eq!((tally.unanswered, tally.twice), (0, 0), "{tally:?}");
    stays.leave().await;
}
