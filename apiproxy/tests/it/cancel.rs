//! Nobody waits any more: the work is cancelled where it runs. The instance is gone: the client
//! hears it early.

use std::time::{Duration, Instant};

use async_nats::Subscriber;
use futures_util::StreamExt;
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::{WorkerCommand, worker_subject};
use natsway_wire::envelope::{Signal, encode_signal};
use natsway_wire::offer::{StreamToken, TunnelSecret};

use crate::backend::{Backend, accepted, ok, settled};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

const INSTANCE: &str = "instance-1";

/// The next cancellation that an instance is sent; answers pings on the way.
async fn next_cancel(client: &async_nats::Client, commands: &mut Subscriber) -> String {
    loop {
        let message = tokio::time::timeout(DEADLINE, commands.next())
            .await
            .expect("a command in time")
            .unwrap();
        match WorkerCommand::decode(&message.payload).unwrap() {
            WorkerCommand::Cancel { reply } => return reply,
            WorkerCommand::Ping => client.publish(message.reply.unwrap(), "".into()).await.unwrap(),
        }
    }
}

/// Routes whose own time-out, which cancels as well, is far beyond the tests' patience.
fn patient() -> String {
    ROUTES.replace("\"5s\"", "\"10m\"").replace("\"300ms\"", "\"10m\"")
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_work() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, _| vec![accepted(INSTANCE)]).await;
    let mut commands = backend.client.subscribe(worker_subject(INSTANCE)).await.unwrap();
    settled(&backend.client).await;
    let gateway = Gateway::start(&broker, &patient(), &[]).await;
    let mut client = gateway.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    eventually(DEADLINE, async || backend.seen.count() == 1).await;
    drop(client);
    let reply = next_cancel(&backend.client, &mut commands).await;
    assert!(reply.starts_with("_INBOX_apiproxy."), "{reply}");
    assert_eq!(gateway.metric("natsway_cancelled_total").await, 1.0);
}

#[tokio::test]
async fn work_that_is_accepted_after_the_client_went_is_cancelled_too() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, _| vec![]).await;
    let mut commands = backend.client.subscribe(worker_subject(INSTANCE)).await.unwrap();
    settled(&backend.client).await;
    let gateway = Gateway::start(&broker, &patient(), &[]).await;
    let mut client = gateway.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    eventually(DEADLINE, async || backend.seen.count() == 1).await;
    drop(client);
    eventually(DEADLINE, async || {
        gateway.metric("natsway_in_flight{route=\"test\",version=\"blue\"}").await == 0.0
    })
    .await;
    backend.answer(0, accepted(INSTANCE)).await;
    next_cancel(&backend.client, &mut commands).await;
}

#[tokio::test]
async fn the_place_that_a_worker_keeps_for_a_stream_is_given_back_when_the_client_goes() {
    let broker = TestBroker::start().await;
    let ready = encode_signal(&Signal::Ready {
        instance: INSTANCE.to_owned(),
        token: StreamToken([7; 16]),
        secret: TunnelSecret([9; 16]),
    });
    let backend = Backend::start(&broker, move |_, _| vec![ready.clone()]).await;
    let mut commands = backend.client.subscribe(worker_subject(INSTANCE)).await.unwrap();
    settled(&backend.client).await;
    let gateway = Gateway::start(&broker, &patient(), &[]).await;
    let mut client = gateway.client().await;
    let upgrade = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.send(upgrade).await.unwrap();
    eventually(DEADLINE, async || backend.seen.count() == 1).await;
    // The gateway waits for a tunnel that does not come, for 5 s.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let left = Instant::now();
    drop(client);
    next_cancel(&backend.client, &mut commands).await;
    assert!(left.elapsed() < Duration::from_secs(3), "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_lost_instance_is_an_early_502_for_a_post() {
    let broker = TestBroker::start().await;
    // It accepts, and nobody listens at its control subject: the broker says so.
    let _backend = Backend::start(&broker, |_, _| vec![accepted("gone")]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let started = Instant::now();
    let reply = gateway.post("/", "").await;
    assert_eq!((reply.status, reply.problem().as_str()), (502, "instance_lost"));
    assert!(started.elapsed() < Duration::from_secs(4), "before the route's time-out");
}

#[tokio::test]
async fn a_lost_instance_is_another_try_for_a_get() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |number, _| match number {
        0 => vec![accepted("gone")],
        _ => vec![ok("elsewhere")],
    })
    .await;
    let routes = ROUTES.replace("try_timeout = \"300ms\"", "try_timeout = \"5s\"");
    let gateway = Gateway::start(&broker, &routes, &[]).await;
    assert_eq!(gateway.get("/").await.text(), "elsewhere");
    assert_eq!(backend.seen.count(), 2);
    assert_eq!(
        gateway.metric("natsway_failed_attempts_total{reason=\"instance_lost\"}").await,
        1.0
    );
}
