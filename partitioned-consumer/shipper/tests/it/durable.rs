//! What is on the disk counts: acknowledged only when it is there, and never taken away again by
//! mistake.

use std::fs;
use std::time::Duration;

use async_nats::jetstream;
use natsway_testkit::eventually;

use crate::support::{Bench, SOON, numbered, write};

/// One fixed file for a host, without any date.
const FIXED: &str = "%%log";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_or_acknowledged_that_could_not_be_synced() {
    let bench = Bench::jetstream().await;
    // A file that takes everything, and cannot be synced.
    let output = bench.path("out/web1/%log");
    fs::create_dir_all(output.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/null", &output).unwrap();
    write(&bench.path("a.log"), &numbered(0..10));
    let _producer = bench.producer("web1", &bench.path("a.log")).start();
    let mut consumer = bench.consumer("out").env("SHIPPER_OUTPUT", FIXED).start();
    consumer.wait_for_line("acknowledging nothing until it can be", SOON).await;
    let context = jetstream::new(bench.broker.connect().await);
    let stream = context.get_stream("SHIPPER").await.unwrap();
    let commits = context.get_key_value("natsway-shipper").await.unwrap();
    let fixed = || async {
        let info = stream.consumer_info("default-p0").await.unwrap();
        (
            info.ack_floor.stream_sequence,
            commits.get("default.SHIPPER.web1").await.unwrap().is_some(),
        )
    };
    // Over a few attempts.
    for _ in 0..10 {
        assert_eq!(
            fixed().await,
            (0, false),
            "acknowledged, or committed, without being on the disk"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    fs::remove_file(&output).unwrap();
    bench.expect("out", "web1", &numbered(0..10)).await;
    eventually(SOON, async || match fixed().await {
        (1, true) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_that_is_not_committed() {
    let bench = Bench::jetstream().await;
    let context = jetstream::new(bench.broker.connect().await);
    // A bucket that takes no commit.
    let config = jetstream::kv::Config {
        bucket: "natsway-shipper".into(),
        max_value_size: 1,
        ..Default::default()
    };
    context.create_key_value(config).await.unwrap();
    write(&bench.path("a.log"), &numbered(0..10));
    let _producer = bench.producer("web1", &bench.path("a.log")).start();
    let mut consumer = bench.consumer("out").start();
    consumer.wait_for_line("commits have to wait", SOON).await;
    let stream = context.get_stream("SHIPPER").await.unwrap();
    // None: a busy broker did not say.
    let floor = async || {
        let consumer = stream.consumer_info("default-p0").await.ok()?;
        Some(consumer.ack_floor.stream_sequence)
    };
    eventually(SOON, async || floor().await == Some(0)).await;
    for _ in 0..10 {
        assert!(matches!(floor().await, None | Some(0)), "acknowledged without a commit");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A crash now: what is on the disk is not committed, and is cut and written again.
    consumer.kill9();
    let _consumer = bench.consumer("out").start();
    let bucket = context.get_stream("KV_natsway-shipper").await.unwrap();
    let roomy =
        jetstream::stream::Config { max_message_size: -1, ..bucket.cached_info().config.clone() };
    context.update_stream(roomy).await.unwrap();
    eventually(SOON, async || floor().await == Some(1)).await;
    bench.expect("out", "web1", &numbered(0..10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_moves_only_past_what_the_stream_has() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    write(&file, &numbered(0..50_000));
    let producer = || {
        let producer = bench.producer("web1", &file).env("SHIPPER_STREAM_MAX_BYTES", "100KiB");
        producer.env("SHIPPER_BATCH", "16KiB").env("SHIPPER_LINE_LIMIT", "4KiB").start()
    };
    let mut sending = producer();
    sending.wait_for_line("the stream is full", SOON).await;
    let context = jetstream::new(bench.broker.connect().await);
    let stream = context.get_stream("SHIPPER").await.unwrap();
    let last = stream.get_last_raw_message_by_subject("shipper.p0.web1").await.unwrap();
    let head = last.headers.get("Natsway-Shipper").unwrap().as_str();
    let stored: u64 =
        head.split(' ').find_map(|part| part.strip_prefix("e=")).unwrap().parse().unwrap();
    // Longer than a checkpoint takes to follow.
    for _ in 0..15 {
        let json = fs::read(bench.path("state/shipper/web1.json")).unwrap();
        let checkpoint: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let offset = checkpoint["tail"]["offset"].as_u64().unwrap();
        assert!(offset <= stored, "{offset} is saved, {stored} is stored");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    sending.kill9();
    let roomy = jetstream::stream::Config { max_bytes: -1, ..stream.cached_info().config.clone() };
    context.update_stream(roomy).await.unwrap();
    let _sending = producer();
    let _consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..50_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_commits_take_no_lines_from_the_disk() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    write(&file, &numbered(0..100));
    let mut producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..100)).await;
    producer.terminate();
    producer.wait_exit(SOON).await;
    consumer.terminate();
    consumer.wait_exit(SOON).await;
    let context = jetstream::new(bench.broker.connect().await);
    context.delete_key_value("natsway-shipper").await.unwrap();
    write(&file, &numbered(100..200));
    let _producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    consumer.wait_for_line("files stay as they are", SOON).await;
    bench.expect("out", "web1", &numbered(0..200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_forgets_commits_costs_no_line() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    let _producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    write(&file, &numbered(0..100));
    bench.expect("out", "web1", &numbered(0..100)).await;
    let context = jetstream::new(bench.broker.connect().await);
    let commits = context.get_key_value("natsway-shipper").await.unwrap();
    let key = "default.SHIPPER.web1";
    let early = eventually(SOON, async || commits.get(key).await.unwrap().ok_or("no commit")).await;
    write(&file, &numbered(100..200));
    bench.expect("out", "web1", &numbered(0..200)).await;
    eventually(SOON, async || commits.get(key).await.unwrap() != Some(early.clone())).await;
    // As after a power cut: an earlier commit is the newest.
    commits.put(key, early).await.unwrap();
    write(&file, &numbered(200..300));
    consumer.wait_for_line("the broker forgot", SOON).await;
    bench.expect("out", "web1", &numbered(0..300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_removes_takes_no_further_line_with_it() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    let _producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    write(&file, &numbered(0..100));
    bench.expect("out", "web1", &numbered(0..100)).await;
    for entry in fs::read_dir(bench.path("out/web1")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    write(&file, &numbered(100..200));
    consumer.wait_for_line("somebody removed or replaced the file", SOON).await;
    bench.expect("out", "web1", &numbered(100..200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_what_was_written_without_jetstream() {
    let bench = Bench::core().await;
    let client = bench.broker.connect().await;
    let mut last = 0;
    for restart in 1..4 {
        let mut consumer = bench.consumer("out").start();
        consumer.wait_for_line("shipper.p4.>", SOON).await;
        eventually(SOON, async || {
            // Nobody says when a subscription is known to the broker.
            client.publish("shipper.p4.probe", "there".into()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            bench.output("out").get("probe").is_some_and(|lines| lines.len() > last)
        })
        .await;
        last = bench.output("out")["probe"].len();
        for line in numbered((restart - 1) * 10..restart * 10) {
            client.publish("shipper.p2.web1", line.into()).await.unwrap();
        }
        bench.expect("out", "web1", &numbered(0..restart * 10)).await;
        // Of the same day, and so of the same file.
        if restart % 2 == 0 {
            consumer.kill9();
        } else {
            consumer.terminate();
            assert!(consumer.wait_exit(SOON).await.success());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_and_removed_commits_take_no_lines_from_the_disk() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    write(&file, &numbered(0..100));
    let mut producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..100)).await;
    producer.terminate();
    producer.wait_exit(SOON).await;
    consumer.terminate();
    consumer.wait_exit(SOON).await;
    let whole = fs::read_dir(bench.path("out/web1")).unwrap().next().unwrap().unwrap().path();
    let before = fs::read(&whole).unwrap();
    let context = jetstream::new(bench.broker.connect().await);
    context
        .get_key_value("natsway-shipper")
        .await
        .unwrap()
        .delete("default.SHIPPER.web1")
        .await
        .unwrap();
    let mut consumer = bench.consumer("out").start();
    consumer.wait_for_line("the commits of this source were removed", SOON).await;
    consumer.wait_for_line("Waiting for messages", SOON).await;
    assert_eq!(fs::read(&whole).unwrap(), before);
    consumer.terminate();
    consumer.wait_exit(SOON).await;
    let mut consumer = bench.consumer("out").env("SHIPPER_CLUSTER", "other").start();
    consumer.wait_for_line("files stay as they are", SOON).await;
    consumer.wait_for_line("Waiting for messages", SOON).await;
    assert_eq!(fs::read(&whole).unwrap(), before);
}
