//! A broker can be started, hurt and brought back, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use async_nats::connection::State;
use futures_util::StreamExt;
use natsway_testkit::{Cluster, TestBroker, eventually};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(20);

/// A message to oneself shows that the way to the broker and back is open.
async fn echo(client: &async_nats::Client) {
    let mut inbox = client.subscribe("echo").await.unwrap();
    client.publish("echo", "hello".into()).await.unwrap();
    assert_eq!(inbox.next().await.unwrap().payload, "hello");
}

fn runs(pid: u32) -> bool {
    kill(Pid::from_raw(pid.try_into().unwrap()), None).is_ok()
}

#[tokio::test]
async fn a_dropped_broker_leaves_no_process_and_no_port_behind() {
    let broker = TestBroker::start().await;
    echo(&broker.connect().await).await;
    let (pid, port) = (broker.pid(), broker.port());
    drop(broker);
    assert!(!runs(pid));
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[tokio::test]
async fn settings_reach_the_server_and_own_lines_win() {
    let builder = TestBroker::builder().max_payload(4096).config_lines("ping_interval: \"7s\"");
    let broker = builder.start().await;
    let page = broker.monitor("/varz").await.unwrap();
    assert_eq!(page["max_payload"], 4096);
    assert_eq!(page["ping_interval"], 7_000_000_000_u64);
    assert_eq!(page["ping_max"], 2);
    assert!(broker.monitor("/nothing-here").await.is_err());
}

#[tokio::test]
async fn a_restarted_broker_keeps_its_address_and_its_store() {
    let mut broker = TestBroker::builder().jetstream().start().await;
    let client = broker.connect().await;
    let created = client
        .request("$JS.API.STREAM.CREATE.KEPT", r#"{"name":"KEPT","subjects":["kept"]}"#.into())
        .await;
    assert!(
        created
            .unwrap()
            .payload
            .starts_with(b"{\"type\":\"io.nats.jetstream.api.v1.stream_create_response\"")
    );

    let url = broker.url();
    broker.restart().await;
    assert_eq!(broker.url(), url);
    eventually(DEADLINE, async || client.connection_state() == State::Connected).await;
    let page = broker.monitor("/jsz").await.unwrap();
    assert_eq!(page["streams"], 1);

    broker.kill9();
    eventually(DEADLINE, async || client.connection_state() != State::Connected).await;
    broker.start_again().await;
    eventually(DEADLINE, async || client.connection_state() == State::Connected).await;
    echo(&client).await;
}

#[tokio::test]
async fn a_frozen_broker_answers_after_the_thaw() {
    let mut broker = TestBroker::start().await;
    let client = broker.connect().await;
    broker.freeze();
    let look = tokio::time::timeout(Duration::from_millis(200), broker.monitor("/varz")).await;
    assert!(look.is_err(), "a frozen server answers nothing");
    broker.thaw();
    echo(&client).await;
}

#[tokio::test]
async fn a_lame_duck_tells_its_clients_and_ends() {
    let mut broker = TestBroker::start().await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let options = async_nats::ConnectOptions::new().event_callback(move |event| {
        let tell = tell.clone();
        async move { drop(tell.send(event)) }
    });
    let _client = broker.connect_with(options).await;
    broker.lame_duck();
    let lame = async { while told.recv().await.unwrap() != async_nats::Event::LameDuckMode {} };
    tokio::time::timeout(DEADLINE, lame).await.unwrap();
    broker.wait_exit(Duration::from_secs(60)).await;
}

#[tokio::test]
#[should_panic(expected = "unknown field \"no_such_setting\"")]
async fn a_broker_that_cannot_start_shows_its_log() {
    TestBroker::builder().config_lines("no_such_setting: 1").start().await;
}

#[tokio::test]
async fn a_cluster_routes_and_survives_one_member() {
    let mut cluster = TestBroker::builder().jetstream().start_cluster(3).await;
    assert_eq!(cluster.url().split(',').count(), 3);
    let (near, far) = (cluster[0].connect().await, cluster[2].connect().await);
    let mut inbox = far.subscribe("across").await.unwrap();
    eventually(DEADLINE, async || {
        near.publish("across", "hello".into()).await.unwrap();
        tokio::time::timeout(Duration::from_millis(100), inbox.next()).await.ok().flatten()
    })
    .await;

    cluster[1].kill9();
    near.publish("across", "again".into()).await.unwrap();
    while inbox.next().await.unwrap().payload != "again" {}
    cluster[1].start_again().await;
    cluster.ready().await;
}

#[tokio::test]
async fn a_cluster_of_one_is_a_broker() {
    let cluster = Cluster::start(1).await;
    echo(&cluster[0].connect().await).await;
}
