//! Messages that cannot be judged by the mark alone. What a producer sends is written here by hand,
//! so that the stream holds what only crashes at the wrong moment bring about.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use natsway_testkit::eventually;

use crate::support::{Bench, SOON, numbered};

/// Bytes of a line `line N` with its line feed.
const LINE: u64 = 7;

/// A stream that is written to by hand.
pub(crate) struct Hand {
    pub(crate) context: jetstream::Context,
    pub(crate) stream: stream::Stream,
}

impl Hand {
    pub(crate) async fn on(bench: &Bench) -> Self {
        let context = jetstream::new(bench.broker.connect().await);
        let subjects = vec!["shipper.>".into()];
        let config = stream::Config { name: "SHIPPER".into(), subjects, ..Default::default() };
        let stream = context.create_stream(config).await.unwrap();
        Self { context, stream }
    }

    /// Line `number`, sent when everything below line `floor` was acknowledged.
    pub(crate) async fn line(&self, number: u64, floor: u64) {
        let text = format!("line {number}");
        self.message(0, (number * LINE, (number + 1) * LINE), floor * LINE, "", text).await;
    }

    async fn message(
        &self,
        partition: u32,
        bytes: (u64, u64),
        floor: u64,
        rest: &str,
        payload: String,
    ) {
        let (start, end) = bytes;
        let head = format!("1 g=0000000000070badcafe s={start} e={end} f={floor}{rest}");
        self.publish(&format!("shipper.p{partition}.web1"), &head, payload.into()).await;
    }

    /// A message with any head.
    pub(crate) async fn publish(&self, subject: &str, head: &str, payload: bytes::Bytes) {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Natsway-Shipper", head);
        let sent =
            self.context.publish_with_headers(subject.to_owned(), headers, payload).await.unwrap();
        sent.await.unwrap();
    }
}

pub(crate) fn lines(numbers: &[u32]) -> Vec<String> {
    numbers.iter().flat_map(|number| numbered(*number..*number + 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_with_headers_that_nobody_can_read_holds_up_nothing() {
    use std::io::{Read, Write};

    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    let _list = bench.consumer("list").start();
    hand.line(0, 0).await;
    // By hand, since the client library sends no such headers; it ends the connection on which they
    // come.
    let mut foreign = std::net::TcpStream::connect(("127.0.0.1", bench.broker.port())).unwrap();
    let headers = b"NATS/1.0\r\nX-Place: Gen\xe8ve\r\n\r\n";
    let verbs = format!(
        "CONNECT {{\"headers\":true,\"verbose\":false}}\r\nHPUB shipper.p0.web1 {0} {0}\r\n",
        headers.len()
    );
    foreign.write_all(&[verbs.as_bytes(), headers, b"\r\nPING\r\n"].concat()).unwrap();
    let mut heard = String::new();
    while !heard.contains("PONG") {
        let mut some = [0; 1_024];
        let count = foreign.read(&mut some).unwrap();
        heard.push_str(std::str::from_utf8(&some[..count]).unwrap());
    }
    hand.line(1, 1).await;
    bench.expect("list", "web1", &lines(&[0, 1])).await;
    // It is there already when these start, and comes while they do.
    for name in ["second", "third", "fourth"] {
        let _late = bench.consumer(name).env("SHIPPER_CLUSTER", name).start();
        bench.expect(name, "web1", &lines(&[0, 1])).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_comes_late_gets_all_that_the_stream_still_has() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    for (number, floor) in [(0, 0), (1, 0), (2, 0), (3, 3)] {
        hand.line(number, floor).await;
    }
    // What is stored longest ages first.
    hand.stream.purge().sequence(2).await.unwrap();
    let _list = bench.consumer("list").start();
    let shared = bench.consumer("shared").env("SHIPPER_READ_PARTITIONS", "auto");
    let _shared = shared.env("SHIPPER_CLUSTER", "shared").start();
    bench.expect("list", "web1", &lines(&[1, 2, 3])).await;
    bench.expect("shared", "web1", &lines(&[1, 2, 3])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_stored_is_waited_for_and_what_follows_it_is_kept_until_then() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    hand.line(0, 0).await;
    // Line 1 got lost on its way, and the producer has not noticed yet.
    hand.line(2, 0).await;
    hand.line(3, 0).await;
    let _list = bench.consumer("list").start();
    let shared = bench.consumer("shared").env("SHIPPER_READ_PARTITIONS", "auto");
    let _shared = shared.env("SHIPPER_CLUSTER", "shared").start();
    bench.expect("list", "web1", &lines(&[0])).await;
    bench.expect("shared", "web1", &lines(&[0])).await;
    eventually(SOON, async || {
        let info = hand.stream.consumer_info("default-p0").await.unwrap();
        (info.num_pending, info.num_ack_pending, info.ack_floor.stream_sequence) == (0, 2, 1)
    })
    .await;
    for number in [1, 2, 3] {
        hand.line(number, number).await;
    }
    bench.expect("list", "web1", &lines(&[0, 1, 2, 3])).await;
    bench.expect("shared", "web1", &lines(&[0, 1, 2, 3])).await;
    eventually(SOON, async || {
        let info = hand.stream.consumer_info("default-p0").await.unwrap();
        info.num_ack_pending == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_behind_bytes_that_can_never_come_are_written_and_the_bytes_counted() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    hand.line(0, 0).await;
    // Line 1 was not stored; then the producer died, and its file with it.
    hand.line(2, 0).await;
    hand.message(0, (LINE, 900), LINE, " x=vanished:14", String::new()).await;
    hand.message(0, (900, 907), 900, "", "line 3".into()).await;
    // A message that nobody can unpack must not take others with it.
    hand.message(0, (907, 914), 907, " z=6", "no zstd".into()).await;
    hand.message(0, (914, 921), 907, "", "line 5".into()).await;
    hand.message(0, (921, 928), 921, "", "line 6".into()).await;
    let _consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &lines(&[0, 2, 3, 5, 6])).await;
    let mut status = bench.consumer("out").args(["status", "--json"]).start();
    assert!(status.wait_exit(SOON).await.success());
    let report: serde_json::Value = serde_json::from_str(&status.stdout()).unwrap();
    // Lines 1 and 5 by the offsets. The producer missed line 2 as well, which had arrived.
    assert_eq!(report["sources"][0]["missing_bytes"], 7 + 7, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_wait_for_another_partition_do_not_take_the_memory_that_it_needs() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    hand.line(0, 0).await;
    let text = |number: u64| format!("{number:>1023}");
    let start = |number: u64| 2 * LINE + number * 1024;
    for number in 0..100 {
        let bytes = (start(number), start(number + 1));
        hand.message(1, bytes, start(number), " o=14", text(number)).await;
    }
    for directory in ["list", "shared"] {
        let consumer = bench
            .consumer(directory)
            .env("SHIPPER_WINDOW", "16KiB")
            .env("SHIPPER_CLUSTER", directory);
        let shared = directory == "shared";
        let consumer = consumer.env("SHIPPER_READ_PARTITIONS", if shared { "auto" } else { "0,1" });
        let _consumer = consumer.start();
        if directory == "list" {
            bench.expect(directory, "web1", &lines(&[0])).await;
            // As much of the new partition as may wait does.
            eventually(SOON, async || {
                let info = hand.stream.consumer_info("list-p1").await.unwrap();
                info.num_ack_pending > 8
            })
            .await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            hand.line(1, 1).await;
        }
        let expected: Vec<String> = lines(&[0, 1]).into_iter().chain((0..100).map(text)).collect();
        bench.expect(directory, "web1", &expected).await;
    }
}
