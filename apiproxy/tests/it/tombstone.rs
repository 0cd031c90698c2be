//! A gateway stands in for the last worker of a subject, and goes when one is back.

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::Subject;
use natsway_wire::control::{presence_subject, report_subject, tombstone_subject};

use crate::backend::{Backend, SUBJECT};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

const MOVED: &str = "natsway_failed_attempts_total{reason=\"moved\"}";

#[tokio::test]
async fn a_gateway_stands_in_for_the_last_worker_until_one_is_back() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let service: Subject = SUBJECT.parse().unwrap();
    let worker = broker.connect().await;
    // Confirmed only when it stands: from here on nothing that is sent can find nobody.
    eventually(DEADLINE, async || worker.request(tombstone_subject(&service), "q".into()).await)
        .await;
    let refused = gateway.post("/", "x").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "moved"));
    let told = gateway.metric(MOVED).await;
    assert!(told >= 2.0, "it was tried again: {told}");
    assert_eq!(
        gateway.metric("natsway_failed_attempts_total{reason=\"no_responders\"}").await,
        0.0
    );

    // A member is back and says so. Nothing fails while the gateway still stands beside it.
    let backend = Backend::saying(&broker, "back").await;
    let mut questions = worker.subscribe(presence_subject(&service)).await.unwrap();
    let answering = worker.clone();
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            answering
                .publish(question.reply.unwrap(), Bytes::from_static(b"instance"))
                .await
                .unwrap();
        }
    });
    eventually(DEADLINE, async || {
        assert_eq!(gateway.post("/", "x").await.text(), "back");
        gateway.process.stderr().contains("not standing in any more")
    })
    .await;
    let (before, seen) = (gateway.metric(MOVED).await, backend.seen.count());
    for _ in 0..100 {
        assert_eq!(gateway.post("/", "x").await.text(), "back");
    }
    assert_eq!(gateway.metric(MOVED).await, before, "nothing reaches the tombstone any more");
    assert_eq!(backend.seen.count(), seen + 100);
}

#[tokio::test]
async fn requests_for_a_tombstone_that_name_no_service_are_ignored() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let client = broker.connect().await;
    let prefix = natsway_wire::control::tombstone_prefix();
    for (subject, group) in
        [("$SYS.x", "q"), ("natsway.x", "q"), ("_INBOX.x", "q"), ("svc.x", "a b"), ("svc.x", "")]
    {
        client.publish(format!("{prefix}.{subject}"), group.into()).await.unwrap();
    }
    crate::backend::settled(&client).await;
    let service: Subject = SUBJECT.parse().unwrap();
    eventually(DEADLINE, async || client.request(tombstone_subject(&service), "q".into()).await)
        .await;
    assert_eq!(gateway.process.stderr().matches("standing in for the last worker").count(), 1);
}

#[tokio::test]
async fn a_gateway_answers_to_inboxes_only() {
    let broker = TestBroker::start().await;
    let _gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let client = broker.connect().await;
    let service: Subject = SUBJECT.parse().unwrap();
    let questions =
        [(tombstone_subject(&service), "q"), (report_subject(), ""), (SUBJECT.to_owned(), "")];
    // From here on it stands in, so it answers requests too.
    eventually(DEADLINE, async || client.request(questions[0].0.clone(), "q".into()).await).await;
    // Where the gateway may publish and others may not.
    let elsewhere = "$KV.natsway-routes.demo";
    let mut heard = client.subscribe(elsewhere).await.unwrap();
    for (subject, payload) in &questions {
        client.publish_with_reply(subject.clone(), elsewhere, (*payload).into()).await.unwrap();
    }
    for (subject, payload) in &questions {
        // The same subscription hears it, later.
        client.request(subject.clone(), (*payload).into()).await.expect("an inbox is answered");
    }
    crate::backend::settled(&client).await;
    assert!(heard.next().now_or_never().is_none(), "a subject that is no inbox is not answered");
}
