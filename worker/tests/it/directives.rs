//! Subscription sets that come and go by directive.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::Client;
use axum::Router;
use axum::routing::get;
use futures_util::StreamExt;
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::Subject;
use natsway_wire::control::{Directive, directive_subject, presence_subject};
use natsway_worker::serve_scaled;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::caller::{Caller, Draft};
use crate::stage::{SUBJECT, options};

const DEADLINE: Duration = Duration::from_secs(20);

fn subject() -> Subject {
    SUBJECT.parse().unwrap()
}

/// How many sets serve, by the word of each.
async fn present(client: &Client) -> usize {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(presence_subject(&subject()), inbox, "".into()).await.unwrap();
    let mut count = 0;
    while let Ok(Some(answer)) =
        tokio::time::timeout(Duration::from_millis(100), answers.next()).await
    {
        count += usize::from(answer.status.is_none());
    }
    count
}

async fn settles_at(client: &Client, expected: usize) {
    eventually(DEADLINE, async || {
        let sets = present(client).await;
        if sets == expected { Ok(()) } else { Err(sets) }
    })
    .await;
}

/// The sets that the one who obeyed has then; `None` when nobody can obey.
async fn direct(client: &Client, directive: Directive) -> Option<u64> {
    let message = format!("{{\"directive\":\"{directive}\"}}");
    let answer =
        client.request(directive_subject(directive, &subject()), message.into()).await.ok()?;
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    answer["sets"].as_u64()
}

#[tokio::test]
async fn a_directive_is_obeyed_by_one_worker_and_by_none_at_its_bounds() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let router = Router::new().route("/", get(async || "ok"));
    let stop = CancellationToken::new();
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let most = NonZeroUsize::new(3).unwrap();
            let stopped = stop.clone().cancelled_owned();
            tokio::spawn(serve_scaled(options(&broker.url()), most, router.clone(), stopped))
        })
        .collect();
    settles_at(&client, 2).await;
    eventually(DEADLINE, async || direct(&client, Directive::ScaleOut).await).await;
    settles_at(&client, 3).await;
    // Two workers with at most three sets each: three more are opened, and then nobody can.
    for expected in 4..=6 {
        eventually(DEADLINE, async || direct(&client, Directive::ScaleOut).await).await;
        settles_at(&client, expected).await;
    }
    eventually(DEADLINE, async || direct(&client, Directive::ScaleOut).await.is_none()).await;

    let mut caller = Caller::new(broker.connect().await).await;
    for expected in (2..6).rev() {
        for _ in 0..20 {
            caller.send(SUBJECT, Draft::get("/")).await;
        }
        eventually(DEADLINE, async || direct(&client, Directive::ScaleIn).await).await;
        for _ in 0..20 {
            assert_eq!(caller.response().await.status, 200, "nothing in hand is lost");
        }
        settles_at(&client, expected).await;
    }
    eventually(DEADLINE, async || direct(&client, Directive::ScaleIn).await.is_none()).await;

    stop.cancel();
    let mut requests = 0;
    for worker in workers {
        requests += worker.await.unwrap().unwrap().requests;
    }
    assert_eq!(requests, 80, "the sets that left are counted too");
}
