//! What the fence relies on and no document promises: that the broker unsubscribes at once when
//! asked to do so after more messages than nine digits can say, while our client keeps the
//! subscription.

use std::time::Duration;

use futures_util::StreamExt;
use natsway_testkit::TestBroker;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A bare connection that sends lines and collects the subjects of what comes back before a PONG.
struct Bare(BufReader<TcpStream>);

impl Bare {
    async fn connect(broker: &TestBroker) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", broker.port())).await.unwrap();
        let mut bare = Self(BufReader::new(socket));
        bare.tell("CONNECT {\"verbose\":false}").await;
        bare
    }

    async fn tell(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    async fn subjects_until_pong(&mut self) -> Vec<String> {
        self.tell("PING").await;
        let mut subjects = Vec::new();
        loop {
            let mut line = String::new();
            let read =
                tokio::time::timeout(Duration::from_secs(30), self.0.read_line(&mut line)).await;
            assert!(
                read.expect("a line within 30 s").unwrap() > 0,
                "the broker closed the connection"
            );
            match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                ["PONG"] => return subjects,
                ["MSG", subject, ..] => subjects.push(subject.to_owned()),
                ["-ERR", ..] => panic!("{line}"),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn the_broker_unsubscribes_at_once_when_the_maximum_has_more_than_nine_digits() {
    let broker = TestBroker::start().await;
    for (maximum, still_subscribed) in
        [(u64::MAX.to_string(), false), ("999999999".to_owned(), true)]
    {
        let mut bare = Bare::connect(&broker).await;
        for line in ["SUB a q 1", "SUB echo 2", "PUB a 0\r\n"] {
            bare.tell(line).await;
        }
        assert_eq!(bare.subjects_until_pong().await, ["a"]);
        bare.tell(&format!("UNSUB 1 {maximum}")).await;
        bare.tell("PUB a 0\r\n").await;
        bare.tell("PUB echo 0\r\n").await;
        let expected: &[&str] = if still_subscribed { &["a", "echo"] } else { &["echo"] };
        assert_eq!(bare.subjects_until_pong().await, expected, "UNSUB 1 {maximum}");
    }
}

#[tokio::test]
async fn the_client_keeps_what_arrives_after_it_asked() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let mut requests = client.queue_subscribe("a", "q".to_owned()).await.unwrap();
    let mut echo = client.subscribe("echo").await.unwrap();
    // On one connection the broker handles these in order: two deliveries, the end of the
    // subscription, one to nobody.
    for _ in 0..2 {
        client.publish("a", "".into()).await.unwrap();
    }
    requests.unsubscribe_after(u64::MAX).await.unwrap();
    client.publish("a", "".into()).await.unwrap();
    client.publish("echo", "".into()).await.unwrap();
    assert!(echo.next().await.is_some());
    for _ in 0..2 {
        assert!(
            tokio::time::timeout(Duration::from_secs(30), requests.next()).await.unwrap().is_some()
        );
    }
    let third = tokio::time::timeout(Duration::from_millis(200), requests.next()).await;
    assert!(third.is_err(), "neither a message nor the end of the subscription: {third:?}");
}
