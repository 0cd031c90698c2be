//! Through a stream: every line once, over restarts, rotations and moves.

use std::fs;
use std::process::Command;

use natsway_testkit::{TestBroker, eventually};

use crate::support::{Bench, SOON, numbered, write};

#[tokio::test(flavor = "multi_thread")]
async fn lines_arrive_once_over_kills_of_everything() {
    let mut bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    let mut producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    let mut written = 0;
    for round in 0..8 {
        write(&file, &numbered(written..written + 500));
        written += 500;
        match round {
            1 | 5 => {
                producer.kill9();
                producer = bench.producer("web1", &file).start();
            }
            2 | 6 => {
                consumer.kill9();
                consumer = bench.consumer("out").start();
            }
            3 => {
                bench.broker.kill9();
                bench.broker.start_again().await;
            }
            4 => {
                fs::rename(&file, bench.path("a.log.1")).unwrap();
            }
            _ => bench.expect("out", "web1", &numbered(0..written)).await,
        }
    }
    bench.expect("out", "web1", &numbered(0..written)).await;
    producer.terminate();
    consumer.terminate();
    assert!(producer.wait_exit(SOON).await.success());
    assert!(consumer.wait_exit(SOON).await.success());
    bench.expect("out", "web1", &numbered(0..written)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_cluster_hands_sources_over_and_another_cluster_gets_everything() {
    let bench = Bench::jetstream().await;
    let shared = |directory: &str| {
        let consumer = bench.consumer(directory).env("SHIPPER_READ_PARTITIONS", "auto");
        consumer.env("SHIPPER_CLUSTER", "shared").env("SHIPPER_MEMBER_TIMEOUT", "4s")
    };
    let hosts = ["web1", "web2", "web3", "web4", "web5", "web6"];
    let _producers: Vec<_> = hosts
        .iter()
        .map(|host| bench.producer(host, &bench.path(&format!("{host}.log"))).start())
        .collect();
    let _other = bench.consumer("other").start();
    let mut first = shared("first").start();
    let all = |bench: &Bench, directories: &[&str], host: &str| {
        let mut lines: Vec<String> = directories
            .iter()
            .flat_map(|directory| bench.output(directory).remove(host).unwrap_or_default())
            .collect();
        lines.sort_by_key(|line| line.trim_start_matches("line ").parse::<u32>().unwrap());
        lines
    };
    let write_all = |range: std::ops::Range<u32>| {
        hosts
            .iter()
            .for_each(|host| write(&bench.path(&format!("{host}.log")), &numbered(range.clone())));
    };
    let arrived = async |count: u32| {
        for host in hosts {
            eventually(SOON, async || {
                let lines = all(&bench, &["first", "second"], host);
                if lines == numbered(0..count) {
                    Ok(())
                } else {
                    Err(format!("{host}: {} lines", lines.len()))
                }
            })
            .await;
        }
    };
    write_all(0..200);
    arrived(200).await;
    let mut second = shared("second").start();
    second.wait_for_line("joining the group", SOON).await;
    write_all(200..400);
    arrived(400).await;
    // A crash: the other one takes over without anybody's help.
    first.kill9();
    write_all(400..600);
    arrived(600).await;
    second.terminate();
    assert!(second.wait_exit(SOON).await.success());
    write_all(600..800);
    first = shared("first").start();
    arrived(800).await;
    for host in hosts {
        bench.expect("other", host, &numbered(0..800)).await;
    }
    first.terminate();
    assert!(first.wait_exit(SOON).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_when_the_number_of_partitions_changes() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    // web3.example.net: partition 2 of 5, 7 of 10.
    write(&file, &numbered(0..300));
    let mut producer = bench.producer("web3.example.net", &file).start();
    producer.wait_for_line("shipper.p2.web3.example.net", SOON).await;
    let states = bench.path("state/shipper/web3.example.net.json");
    eventually(SOON, async || {
        let state = fs::read_to_string(&states).unwrap_or_default();
        if state.contains("\"offset\":2590") { Ok(()) } else { Err(state) }
    })
    .await;
    producer.terminate();
    producer.wait_exit(SOON).await;
    write(&file, &numbered(300..600));
    let mut producer =
        bench.producer("web3.example.net", &file).env("SHIPPER_PARTITIONS", "10").start();
    producer.wait_for_line("shipper.p7.web3.example.net", SOON).await;
    // The new partition is read first; its lines have to wait for those of the old one.
    let mut ahead = bench.consumer("out").env("SHIPPER_READ_PARTITIONS", "7").start();
    ahead.wait_for_line("shipper.p7.>", SOON).await;
    let metrics = natsway_testkit::free_port();
    ahead.terminate();
    ahead.wait_exit(SOON).await;
    assert_eq!(bench.output("out").remove("web3.example.net"), None, "nothing may overtake");
    let all = bench.consumer("out").env("SHIPPER_READ_PARTITIONS", "0,1,2,3,4,5,6,7,8,9");
    let _all = all.env("SHIPPER_METRICS", format!("127.0.0.1:{metrics}")).start();
    bench.expect("out", "web3.example.net", &numbered(0..600)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_is_waited_for_and_said() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    let lines = numbered(0..20_000);
    write(&file, &lines);
    let mut producer = bench.producer("web1", &file);
    producer = producer
        .env("SHIPPER_STREAM_MAX_BYTES", "100KiB")
        .env("SHIPPER_BATCH", "16KiB")
        .env("SHIPPER_LINE_LIMIT", "4KiB");
    let mut producer = producer.start();
    producer.wait_for_line("the stream is full", SOON).await;
    let context = async_nats::jetstream::new(bench.broker.connect().await);
    let mut stream = context.get_stream("SHIPPER").await.unwrap();
    let _consumer = bench.consumer("out").start();
    eventually(SOON, async || {
        // What is written makes room when it is purged.
        let written = stream
            .consumer_info("default-p0")
            .await
            .map_or(0, |info| info.ack_floor.stream_sequence);
        if written > 0 {
            stream.purge().sequence(written + 1).await.unwrap();
        }
        let info = stream.info().await.unwrap();
        let got = bench.output("out").remove("web1").unwrap_or_default().len();
        if got == lines.len() { Ok(()) } else { Err(format!("{got} lines, {:?}", info.state)) }
    })
    .await;
    bench.expect("out", "web1", &lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_messages_long_lines_events_and_several_files() {
    let bench = Bench::jetstream().await;
    let first = bench.path("logs/app.log");
    let second = bench.path("logs/other.log");
    write(&first, &["2024 begin".into(), "  at here".into(), "x".repeat(30), "2024 next".into()]);
    write(&second, &numbered(0..5));
    let producer = bench.producer("web1", &bench.path("logs/*.log"));
    let producer = producer
        .env("SHIPPER_COMPRESS", "zstd")
        .env("SHIPPER_LINE_LIMIT", "20")
        .env("SHIPPER_MULTILINE", "^2024");
    let _producer = producer.start();
    let _consumer = bench.consumer("out").env("SHIPPER_OUTPUT", "{file}").start();
    eventually(SOON, async || {
        let output = bench.output("out").remove("web1").unwrap_or_default();
        let expected = ["2024 begin", "  at here", &"x".repeat(20), &"x".repeat(10), "2024 next"];
        let expected: Vec<String> =
            expected.iter().map(|line| (*line).to_owned()).chain(numbered(0..5)).collect();
        if output == expected { Ok(()) } else { Err(output) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_ends_the_producer_when_it_ends() {
    let bench = Bench::jetstream().await;
    let script = format!("seq -f 'line %g' 0 99 | exec {}", env!("CARGO_BIN_EXE_producer"));
    let status = Command::new("/bin/sh")
        .args(["-c", &script])
        .env("NATS_URL", bench.broker.url())
        .env("SHIPPER_SUBJECT", "shipper")
        .env("SHIPPER_FILE", "-")
        .env("HOSTNAME", "web1")
        .env("SHIPPER_STATE", bench.path("state"))
        .status();
    assert!(tokio::task::block_in_place(|| status).unwrap().success());
    let _consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_offsets_and_lag() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    write(&file, &numbered(0..100));
    let mut producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..100)).await;
    producer.terminate();
    producer.wait_exit(SOON).await;
    write(&file, &numbered(100..101));
    let mut status = bench.producer("web1", &file).args(["status", "--json"]).start();
    assert!(status.wait_exit(SOON).await.success());
    let report: serde_json::Value = serde_json::from_str(&status.stdout()).unwrap();
    assert_eq!(
        (&report[0]["offset"], &report[0]["lag_bytes"]),
        (&790.into(), &9.into()),
        "{report:#}"
    );
    assert_eq!(report[0]["mode"], "jetstream");
    consumer.terminate();
    consumer.wait_exit(SOON).await;
    let mut status = bench.consumer("out").args(["status", "--json"]).start();
    assert!(status.wait_exit(SOON).await.success());
    let report: serde_json::Value = serde_json::from_str(&status.stdout()).unwrap();
    assert_eq!(report["sources"][0]["offset"], 790, "{report:#}");
    assert_eq!(report["partitions"].as_array().unwrap().len(), 5);
    let mut table = bench.consumer("out").args(["status"]).start();
    assert!(table.wait_exit(SOON).await.success());
    assert!(table.stdout().contains("PARTITION"), "{}", table.stdout());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_said_and_waited_for() {
    let mut bench = Bench::with(
        TestBroker::builder().jetstream().port(natsway_testkit::free_port()).start().await,
    );
    bench.broker.kill9();
    let file = bench.path("a.log");
    write(&file, &numbered(0..10));
    let (mut producer, mut consumer) =
        (bench.producer("web1", &file).start(), bench.consumer("out").start());
    producer.wait_for_line("the broker is not reached", SOON).await;
    consumer.wait_for_line("the broker is not reached", SOON).await;
    bench.broker.start_again().await;
    bench.expect("out", "web1", &numbered(0..10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_and_a_source_have_one_owner() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    let mut consumer = bench.consumer("out").start();
    consumer.wait_for_line("Waiting for messages", SOON).await;
    let mut second = bench.consumer("out").start();
    assert!(!second.wait_exit(SOON).await.success());
    assert!(
        second.stderr().contains("another consumer writes to this directory"),
        "{}",
        second.stderr()
    );
    let mut producer = bench.producer("web1", &file).start();
    producer.wait_for_line("Publishing", SOON).await;
    let mut second = bench.producer("web1", &file).start();
    assert!(!second.wait_exit(SOON).await.success());
    assert!(second.stderr().contains("another producer"), "{}", second.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn jetstream_that_is_away_is_waited_for_and_never_replaced_by_core() {
    let port = natsway_testkit::free_port();
    let bench = Bench::with(TestBroker::builder().jetstream().port(port).start().await);
    let file = bench.path("a.log");
    write(&file, &numbered(0..10));
    let mut producer = bench.producer("web1", &file).start();
    let mut consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &numbered(0..10)).await;
    for process in [&mut producer, &mut consumer] {
        process.terminate();
        process.wait_exit(SOON).await;
    }
    let Bench { broker, directory } = bench;
    drop(broker);
    let without = Bench { broker: TestBroker::builder().port(port).start().await, directory };
    write(&file, &numbered(10..20));
    let mut heard = without.broker.connect().await.subscribe("shipper.>").await.unwrap();
    let mut producer = without.producer("web1", &file).start();
    producer.wait_for_line("waiting for the stream", SOON).await;
    let message = futures_util::StreamExt::next(&mut heard);
    let heard = tokio::time::timeout(std::time::Duration::from_secs(1), message).await;
    // With core, each line would be a message of its own; a batch that nobody acknowledges is what
    // is tried here.
    if let Ok(Some(message)) = heard {
        assert!(message.headers.is_some(), "a line was published in core mode");
    }
    drop(producer);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_read_are_told_with_the_reason() {
    let bench = Bench::core().await;
    let missing = bench.path("none.creds");
    for program in [bench.producer("web1", &bench.path("a.log")), bench.consumer("out")] {
        let mut program = program.env("NATS_CREDS", &missing).start();
        assert!(!program.wait_exit(SOON).await.success());
        let told = program.stderr();
        assert!(told.contains("none.creds: No such file or directory"), "{told}");
    }
}
