//! Leaving because a rollout asks, not because the process is told to.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control;

use crate::caller::{Caller, Draft};
use crate::stage::{FORMS, Form, SUBJECT, Worker, options};

fn router() -> Router {
    let slow = async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        "slow"
    };
    Router::new().route("/slow", get(slow))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_leave_finishes_what_it_has_and_ends() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let worker = Worker::start(&caller.client, form, options(&broker.url()), router()).await;
        caller.send(SUBJECT, Draft::get("/slow")).await;
        // Of several readers one hears it, and it may be the last to come.
        let answer = eventually(Duration::from_secs(20), async || {
            caller
                .client
                .request(control::drain_subject(&SUBJECT.parse().unwrap()), "".into())
                .await
        })
        .await;
        assert_eq!(answer.payload, worker.id, "it says who leaves");
        let summary = worker.ends().await;
        assert_eq!((summary.requests, summary.unfinished), (1, 0), "{form:?}");
        caller.next_message().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_two_subjects_stays_when_one_is_asked_to_leave() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let options = options(&broker.url()).and_subject("svc.test.green");
    let worker = Worker::start(&client, Form::Spawned, options, router()).await;
    client.publish(control::drain_subject(&SUBJECT.parse().unwrap()), "".into()).await.unwrap();
    // Both questions take the same way, so the first was heard when the second is answered.
    let ping = control::WorkerCommand::Ping.encode();
    client.request(control::worker_subject(&worker.id), ping).await.unwrap();
    let present = control::presence_subject(&SUBJECT.parse().unwrap());
    client.request(present, "".into()).await.expect("it is still there");
    worker.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_answers_to_inboxes_only_and_obeys_nothing_that_jetstream_says() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let worker = Worker::start(&client, Form::Spawned, options(&broker.url()), router()).await;
    let subject = SUBJECT.parse().unwrap();
    let mut elsewhere = client.subscribe("elsewhere").await.unwrap();
    let present = control::presence_subject(&subject);
    client.publish_with_reply(present.clone(), "elsewhere", "".into()).await.unwrap();
    // What JetStream says of a message that was stored, to whoever named this subject for it.
    let said = br#"{"stream":"LOGS","seq":1}"#;
    client.publish(control::drain_subject(&subject), said.as_slice().into()).await.unwrap();
    client.publish_with_reply(SUBJECT, "$KV.natsway-routes.demo", "".into()).await.unwrap();
    for _ in 0..3 {
        client.request(present.clone(), "".into()).await.expect("it is still there");
    }
    let told = futures_util::FutureExt::now_or_never(futures_util::StreamExt::next(&mut elsewhere));
    assert!(told.is_none(), "{told:?}");
    let summary = worker.leave().await;
    assert_eq!(summary.without_reply, 1, "what wants its answer in a bucket is no request");
}
