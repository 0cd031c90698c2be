//! The transcripts of the article, as they are typed there: a broker without JetStream, and the
//! shell.

use std::fs;

use futures_util::StreamExt;
use natsway_testkit::{Process, eventually};

use crate::support::{Bench, SOON, numbered, write};

/// A shell in which `./consumer` and `./producer` are ours, and the broker and the directories are
/// the test's.
fn shell(bench: &Bench, name: &str, typed: &str) -> natsway_testkit::ProcessBuilder {
    let here = bench.path("here");
    fs::create_dir_all(&here).unwrap();
    for (program, path) in
        [("consumer", env!("CARGO_BIN_EXE_consumer")), ("producer", env!("CARGO_BIN_EXE_producer"))]
    {
        if !here.join(program).exists() {
            std::os::unix::fs::symlink(path, here.join(program)).unwrap();
        }
    }
    let typed = typed
        .replace("localhost:4222", &format!("localhost:{}", bench.broker.port()))
        .replace("/tmp/shipper", &bench.path("shipper").display().to_string())
        .replace("/var/log/system.log", &bench.path("system.log").display().to_string());
    let script = format!("cd {} && exec env {typed}", here.display());
    Process::builder("/bin/sh").name(name).args(["-c", &script]).env("HOME", bench.path("home"))
}

const CONSUMER: &str = "SHIPPER_SUBJECT=shipper SHIPPER_OUTPUT=logfile NATS_URL=localhost:4222 \
                        SHIPPER_READ_PARTITIONS=\"0,1,2,3,4\" SHIPPER_DIRECTORY=/tmp/shipper \
                        ./consumer";
const PRODUCER: &str = "SHIPPER_FILE=/var/log/system.log SHIPPER_SUBJECT=\"shipper\" \
                        NATS_URL=\"localhost:4222\" SHIPPER_PARTITIONS=5 ./producer";

#[tokio::test(flavor = "multi_thread")]
async fn the_transcripts_work_as_typed() {
    let bench = Bench::core().await;
    let mut consumer = shell(&bench, "consumer", CONSUMER).start();
    for partition in 0..5 {
        let line = format!("Waiting for messages on subject shipper.p{partition}.>");
        consumer.wait_for_line(&line, SOON).await;
    }
    let lines = numbered(0..500);
    write(&bench.path("system.log"), &lines);
    let mut producer =
        shell(&bench, "producer", PRODUCER).env("HOSTNAME", "web1.example.net").start();
    let published = producer.wait_for_line("Publishing", SOON).await;
    assert!(published.contains("to shipper.p0.web1.example.net"), "{published}");
    bench.expect("shipper", "web1.example.net", &lines).await;
    let created = consumer.wait_for_line("Creating new log", SOON).await;
    assert!(created.contains("shipper/web1.example.net/logfile-"), "{created}");
    assert!(created.contains("0000\""), "files begin at midnight: {created}");
    for process in [&mut producer, &mut consumer] {
        process.terminate();
        assert!(process.wait_exit(SOON).await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_works_with_the_published_others() {
    let bench = Bench::core().await;
    let client = bench.broker.connect().await;
    // The published consumer: a subscription, a line a message.
    let mut published_consumer = client.subscribe("shipper.p0.>").await.unwrap();
    client.flush().await.unwrap();
    write(&bench.path("a.log"), &numbered(0..3));
    let _producer = bench.producer("web1.example.net", &bench.path("a.log")).start();
    for line in numbered(0..3) {
        let message = tokio::time::timeout(SOON, published_consumer.next()).await.unwrap().unwrap();
        assert_eq!(
            (message.subject.as_str(), &*message.payload),
            ("shipper.p0.web1.example.net", line.as_bytes())
        );
    }
    // The published producer: a publish, a line a message.
    let mut consumer = bench.consumer("out").start();
    consumer.wait_for_line("shipper.p4.>", SOON).await;
    let lines = numbered(0..50);
    eventually(SOON, async || {
        // Nobody says when a subscription is known to the broker.
        client.publish("shipper.p2.probe", "there".into()).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        bench.output("out").contains_key("probe")
    })
    .await;
    for line in &lines {
        client.publish("shipper.p2.web4.example.net", line.clone().into()).await.unwrap();
    }
    bench.expect("out", "web4.example.net", &lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_producer_does_not_begin_again_even_in_core_mode() {
    let bench = Bench::core().await;
    let mut consumer = bench.consumer("out").start();
    consumer.wait_for_line("shipper.p4.>", SOON).await;
    let file = bench.path("a.log");
    write(&file, &numbered(0..100));
    for (begin, end) in [(100, 200), (200, 300)] {
        let mut producer = bench.producer("web1", &file).start();
        bench.expect("out", "web1", &numbered(0..begin)).await;
        producer.terminate();
        assert!(producer.wait_exit(SOON).await.success());
        write(&file, &numbered(begin..end));
    }
    let _producer = bench.producer("web1", &file).start();
    bench.expect("out", "web1", &numbered(0..300)).await;
}
