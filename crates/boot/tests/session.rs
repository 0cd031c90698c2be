//! A session against a real broker: it is there or it is lost, and nothing of it comes back.

use std::time::Duration;

use futures_util::StreamExt;
use natsway_boot::{Broker, Dial, DialErrorKind, Dialer, SessionEvent};
use natsway_testkit::{Cluster, TcpLink, eventually};

const DEADLINE: Duration = Duration::from_secs(20);

fn dialer(url: &str) -> Dialer {
    let dial = Dial {
        name: "test".to_owned(),
        inbox_prefix: "_INBOX_test".to_owned(),
        subscription_messages: 1_024,
        publish_messages: 256,
    };
    Dialer::new(Broker::new(url).expect("a broker's url"), dial)
}

async fn event(session: &mut natsway_boot::Session) -> SessionEvent {
    tokio::time::timeout(DEADLINE, session.next_event()).await.expect("something happens to the session")
}

#[tokio::test]
async fn what_was_queued_when_the_connection_broke_is_never_sent() {
    let broker = natsway_testkit::Broker::start().await;
    let mut link = TcpLink::to_port(broker.port()).await;
    let mut session = dialer(&link.url()).dial(None).await;
    let watcher = broker.connect().await;
    let mut seen = watcher.subscribe("orders").await.expect("subscribed");
    watcher.flush().await.expect("flushed");

    let queued = session.client().clone();
    link.cut().await;
    assert_eq!(event(&mut session).await, SessionEvent::Lost);
    // A client that reconnects would accept these and send them later.
    let refused = async || queued.publish("orders", "stale".into()).await.is_err();
    eventually(DEADLINE, refused).await;
    link.resume().await;

    let next = dialer(&link.url()).dial(None).await;
    next.client().publish("orders", "fresh".into()).await.expect("published");
    let first = tokio::time::timeout(DEADLINE, seen.next()).await.expect("a message").expect("one");
    assert_eq!(&first.payload[..], b"fresh");
    assert_eq!(event(&mut session).await, SessionEvent::Lost, "lost stays lost");
}

#[tokio::test]
async fn a_frozen_broker_is_noticed_by_its_silence() {
    let mut broker = natsway_testkit::Broker::start().await;
    let mut session = dialer(&broker.url()).dial(None).await;
    broker.freeze();
    assert_eq!(event(&mut session).await, SessionEvent::Lost);
    broker.thaw();
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_is_left_for_another() {
    let mut cluster = Cluster::start(2).await;
    let first_server = cluster[0].url();
    let mut dialer = dialer(&first_server);
    let mut session = dialer.dial(None).await;
    let leaving = session.server_id().to_owned();
    cluster[0].lame_duck();
    assert_eq!(event(&mut session).await, SessionEvent::LameDuck);
    // The other server was never named to us: the cluster told of it.
    let better = tokio::time::timeout(DEADLINE, dialer.dial(Some(&leaving))).await.expect("the other server");
    assert_ne!(better.server_id(), leaving);
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_a_stranger_is_refused() {
    let port = natsway_testkit::free_port();
    let error =
        dialer(&format!("nats://127.0.0.1:{port}")).dial_once(None).await.expect_err("nobody listens");
    assert_eq!(error.kind(), DialErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");

    let guarded = natsway_testkit::Broker::builder()
        .config_lines("authorization { user: me, password: secret }")
        .start()
        .await;
    let error =
        dialer(&format!("nats://127.0.0.1:{}", guarded.port())).dial_once(None).await.expect_err("refused");
    assert_eq!(error.kind(), DialErrorKind::Refused, "{error}");
}
