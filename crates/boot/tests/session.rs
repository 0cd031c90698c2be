//! A session against a real broker: it is there or it is lost, and nothing of it comes back.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use natsway_boot::{BrokerConfig, Dial, DialErrorKind, Dialer, SessionEvent};
use natsway_testkit::{Cluster, TcpLink, eventually};

const DEADLINE: Duration = Duration::from_secs(20);

fn dialer(url: &str) -> Dialer {
    let dial = Dial {
        name: "test".to_owned(),
        inbox_prefix: "_INBOX_test".to_owned(),
        subscription_messages: 1_024,
        publish_messages: 256,
    };
    Dialer::new(BrokerConfig::new(url).expect("a broker's url"), dial)
}

async fn event(session: &mut natsway_boot::Session) -> SessionEvent {
    tokio::time::timeout(DEADLINE, session.next_event())
        .await
        .expect("something happens to the session")
}

#[tokio::test]
async fn what_was_queued_when_the_connection_broke_is_never_sent() {
    let broker = natsway_testkit::TestBroker::start().await;
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

/// Waits until the session has heard its own echo: before that, silence means nothing.
async fn heard(session: &mut natsway_boot::Session) {
    // An event would end this early, and be missed later.
    let quiet = tokio::time::timeout(Duration::from_secs(2), session.next_event()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_frozen_broker_is_noticed_by_its_silence_and_given_up_later() {
    let mut broker = natsway_testkit::TestBroker::start().await;
    let mut session = dialer(&broker.url()).dial(None).await;
    heard(&mut session).await;
    broker.freeze();
    assert_eq!(event(&mut session).await, SessionEvent::Silent);
    assert_eq!(event(&mut session).await, SessionEvent::Lost);
    broker.thaw();
}

#[tokio::test]
async fn a_broker_that_pauses_answers_again() {
    let mut broker = natsway_testkit::TestBroker::start().await;
    let mut session = dialer(&broker.url()).dial(None).await;
    heard(&mut session).await;
    broker.freeze();
    assert_eq!(event(&mut session).await, SessionEvent::Silent);
    broker.thaw();
    assert_eq!(event(&mut session).await, SessionEvent::Answers);
}

#[tokio::test]
async fn a_frozen_server_does_not_keep_others_from_being_reached() {
    let mut frozen = natsway_testkit::TestBroker::start().await;
    let living = natsway_testkit::TestBroker::start().await;
    frozen.freeze();
    // It accepts connections and says nothing. Sixteen times, for the order is drawn by lot.
    for _ in 0..16 {
        let began = std::time::Instant::now();
        let mut dialer = dialer(&format!("{},{}", frozen.url(), living.url()));
        let session = dialer.dial_once(None).await.expect("the other one is there");
        assert_eq!(session.client().server_info().server_name, living.name());
        // One attempt at the frozen one takes three seconds, before it is given up.
        assert!(began.elapsed() < Duration::from_millis(2_500), "{:?}", began.elapsed());
    }
    frozen.thaw();
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
    let better = tokio::time::timeout(DEADLINE, dialer.dial(Some(&leaving)))
        .await
        .expect("the other server");
    assert_ne!(better.server_id(), leaving);
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_a_stranger_is_refused() {
    let port = natsway_testkit::free_port();
    let error = dialer(&format!("nats://127.0.0.1:{port}"))
        .dial_once(None)
        .await
        .expect_err("nobody listens");
    assert_eq!(error.kind(), DialErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");

    let guarded = natsway_testkit::TestBroker::builder()
        .config_lines("authorization { user: me, password: secret }")
        .start()
        .await;
    let error = dialer(&format!("nats://127.0.0.1:{}", guarded.port()))
        .dial_once(None)
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), DialErrorKind::Refused, "{error}");
}

#[tokio::test]
async fn the_user_of_an_address_is_told_to_the_broker() {
    let guarded = natsway_testkit::TestBroker::builder()
        .config_lines("authorization { user: me, password: \"s/cret\" }")
        .start()
        .await;
    let address = format!("127.0.0.1:{}", guarded.port());
    let session =
        dialer(&format!("nats://me:s%2Fcret@{address}")).dial_once(None).await.expect("permitted");
    assert_eq!(session.address(), address);
    let error =
        dialer(&format!("nats://me:wrong@{address}")).dial_once(None).await.expect_err("refused");
    assert_eq!(error.kind(), DialErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("user \"me\""), "{error}");
}

#[tokio::test]
async fn a_broker_that_lets_guests_in_still_hears_who_we_are() {
    let broker = natsway_testkit::TestBroker::builder()
        .config_lines(
            "accounts { A { users: [ { user: guest, password: g, permissions: { subscribe: \
             [\"_INBOX_test.>\"] } }, { user: me, password: secret } ] } }\nno_auth_user: guest",
        )
        .start()
        .await;
    let may_hear = async |user: &str| {
        let mut session = dialer(&format!("nats://{user}127.0.0.1:{}", broker.port()))
            .dial_once(None)
            .await
            .unwrap();
        let client = session.client().clone();
        let mut heard = client.subscribe("svc.demo.blue").await.unwrap();
        let inbox = client.new_inbox();
        let mut own = client.subscribe(inbox.clone()).await.unwrap();
        client.publish("svc.demo.blue", "".into()).await.unwrap();
        client.publish(inbox, "".into()).await.unwrap();
        tokio::time::timeout(DEADLINE, own.next()).await.expect("an echo");
        let refused = session.denied_subscriptions().find(|_| true);
        if refused.is_some() {
            assert_eq!(refused.as_deref(), Some("svc.demo.blue"));
            let event =
                tokio::time::timeout(DEADLINE, session.next_event()).await.expect("it is told");
            assert_eq!(event, SessionEvent::NotPermitted);
        }
        heard.next().now_or_never().flatten().is_some()
    };
    assert!(!may_hear("").await);
    assert!(may_hear("me:secret@").await);
}
