//! What one producer sends ends no other host.

use std::time::{SystemTime, UNIX_EPOCH};

use natsway_testkit::{eventually, free_port};

use crate::doubts::{Hand, lines};
use crate::support::{Bench, SOON, numbered, page, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_history_of_the_far_future_is_refused_and_makes_no_line_old() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    let port = free_port();
    let list = bench.consumer("list").env("SHIPPER_METRICS", format!("127.0.0.1:{port}"));
    let mut list = list.start();
    let shared = bench.consumer("shared").env("SHIPPER_READ_PARTITIONS", "auto");
    let _shared = shared.env("SHIPPER_CLUSTER", "shared").start();
    hand.line(0, 0).await;
    bench.expect("list", "web1", &lines(&[0])).await;
    hand.publish("shipper.p0.web1", "1 g=ffffffffffff0badcafe s=0 e=5 f=0", "evil".into()).await;
    let told = list.wait_for_line("a message that can never be written is dropped", SOON).await;
    assert!(told.contains("web1") && told.contains("in the future"), "{told}");
    hand.line(1, 1).await;
    bench.expect("list", "web1", &lines(&[0, 1])).await;
    bench.expect("shared", "web1", &lines(&[0, 1])).await;
    let page = page(port);
    assert!(
        page.contains("shipper_refused_total 1\n") && page.contains("shipper_stale_total 0\n"),
        "{page}"
    );
    hand.publish("shipper.p0.web1", "1 g=ffffffffffff0badcafe s=0 e=5 f=0", "evil".into()).await;
    // A producer that comes now does not take it for its predecessor, and is not older than what
    // was written.
    write(&bench.path("a.log"), &numbered(2..4));
    let _producer = bench.producer("web1", &bench.path("a.log")).start();
    bench.expect("list", "web1", &lines(&[0, 1, 2, 3])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shipped_behind_a_history_of_the_near_future_is_written() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    let _consumer = bench.consumer("list").start();
    // As far ahead as consumers take it, less a minute. The producer that comes now begins behind
    // it, and they take that too.
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let born_ms = now_ms + 86_340_000;
    let head = format!("1 g={born_ms:012x}0badcafe s=0 e=5 f=0");
    hand.publish("shipper.p0.web1", &head, "evil".into()).await;
    bench.expect("list", "web1", &["evil".to_owned()]).await;
    write(&bench.path("a.log"), &numbered(0..2));
    let _producer = bench.producer("web1", &bench.path("a.log")).start();
    let all: Vec<String> = std::iter::once("evil".to_owned()).chain(numbered(0..2)).collect();
    bench.expect("list", "web1", &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_hosts_fill_no_directory() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    let port = free_port();
    let consumer = bench.consumer("out").env("SHIPPER_SOURCES", "3");
    let mut consumer = consumer.env("SHIPPER_METRICS", format!("127.0.0.1:{port}")).start();
    hand.line(0, 0).await;
    bench.expect("out", "web1", &lines(&[0])).await;
    for number in 0..50 {
        let head = "1 g=0000000000070badcafe s=0 e=5 f=0";
        hand.publish(&format!("shipper.p0.host{number}"), head, "line".into()).await;
    }
    let told = consumer.wait_for_line("a message that can never be written is dropped", SOON).await;
    assert!(told.contains("SHIPPER_SOURCES"), "{told}");
    hand.line(1, 1).await;
    bench.expect("out", "web1", &lines(&[0, 1])).await;
    eventually(SOON, async || page(port).contains("shipper_refused_total 48\n")).await;
    assert_eq!(bench.output("out").len(), 3);
    assert!(page(port).contains("shipper_sources 3\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_search_behind_one_host_does_not_hold_up_the_others() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    let port = free_port();
    hand.line(0, 0).await;
    // Line 1 is not there, and nothing of what follows says what became of it.
    for number in 2..1_500 {
        hand.line(number, 0).await;
    }
    let consumer = bench.consumer("out").env("SHIPPER_METRICS", format!("127.0.0.1:{port}"));
    let _consumer = consumer.start();
    bench.expect("out", "web1", &lines(&[0])).await;
    let lookups = || {
        let page = page(port);
        let line = page.lines().find_map(|line| line.strip_prefix("shipper_lookups_total "));
        line.and_then(|value| value.parse::<u64>().ok()).unwrap_or_default()
    };
    for number in 0..10 {
        let head =
            format!("1 g=0000000000070badcafe s={} e={} f={0}", number * 7, (number + 1) * 7);
        hand.publish("shipper.p0.other", &head, format!("line {number}").into()).await;
        bench.expect("out", "other", &numbered(0..number + 1)).await;
    }
    // It goes on from where it was, and is not begun anew.
    eventually(SOON, async || if lookups() >= 1_400 { Ok(()) } else { Err(lookups()) }).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(lookups() < 1_700, "{}", lookups());
    hand.line(1, 1).await;
    for number in 2..5 {
        hand.line(number, number).await;
    }
    bench.expect("out", "web1", &lines(&[0, 1, 2, 3, 4])).await;
}
