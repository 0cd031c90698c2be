//! The producer's memory is bounded, whatever waits on the disk: it reads no further than the
//! stream takes.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use natsway_testkit::Process;

use crate::doubts::Hand;
use crate::support::{Bench, SOON, numbered, page};

const MIB: usize = 1 << 20;
/// What a producer may take beside its window: the program itself, read buffers, what the allocator
/// keeps.
const BESIDE: usize = 64 * MIB;
/// `SHIPPER_WINDOW`, twice: for a moment, what was given up may still wait in the connection.
const WINDOW: usize = 2 * 8 * MIB;
/// Longer than reading all of the backlog takes.
const WATCH: Duration = Duration::from_secs(4);

async fn stays_bounded(process: &Process) {
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        let peak = process.memory().expect("it runs").peak;
        assert!(peak < WINDOW + BESIDE, "{} MiB", peak / MIB);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn lines(path: &Path, mebibytes: usize) -> u64 {
    let mut text = String::with_capacity(mebibytes * MIB + 64);
    let mut lines = 0;
    while text.len() < mebibytes * MIB {
        lines += 1;
        text +=
            &format!("line {lines} of a log that was written while nobody took any of it away\n");
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_many_files_stays_on_the_disk_while_the_stream_is_full_or_the_broker_away() {
    let mut bench = Bench::jetstream().await;
    let written: u64 = (0..40).map(|n| lines(&bench.path(&format!("logs/app{n}.log")), 6)).sum();
    let producer = bench.producer("web1", &bench.path("logs/*.log"));
    let producer = producer.env("SHIPPER_WINDOW", "8MiB").env("SHIPPER_STREAM_MAX_BYTES", "4MiB");
    let mut producer = producer.start();
    producer.wait_for_line("the stream is full", SOON).await;
    stays_bounded(&producer).await;
    bench.broker.freeze();
    stays_bounded(&producer).await;
    bench.broker.thaw();
    bench.broker.kill9();
    stays_bounded(&producer).await;
    bench.broker.start_again().await;
    // With room again, all of it gets through the same bound.
    let context = async_nats::jetstream::new(bench.broker.connect().await);
    let stream = context.get_stream("SHIPPER").await.unwrap();
    let config = async_nats::jetstream::stream::Config {
        max_bytes: -1,
        ..stream.cached_info().config.clone()
    };
    context.update_stream(config).await.unwrap();
    let mut consumer = bench.consumer("out").env("SHIPPER_OUTPUT", "{file}").start();
    consumer.wait_for_line("Waiting for messages", SOON).await;
    natsway_testkit::eventually(SOON * 3, async || {
        let count = |entry: fs::DirEntry| {
            fs::read(entry.path()).unwrap().iter().filter(|b| **b == b'\n').count()
        };
        let Ok(files) = fs::read_dir(bench.path("out/web1")) else {
            return Err("nothing".to_owned());
        };
        let arrived = files.map(|entry| count(entry.unwrap()) as u64).sum::<u64>();
        if arrived == written { Ok(()) } else { Err(format!("{arrived} of {written} lines")) }
    })
    .await;
    stays_bounded(&producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_unpack_to_very_much_are_refused_and_take_no_memory() {
    let bench = Bench::jetstream().await;
    let hand = Hand::on(&bench).await;
    let huge =
        |bytes: usize| bytes::Bytes::from(zstd::bulk::compress(&vec![b'x'; bytes], 19).unwrap());
    let (of_256, of_8) = (huge(256 * MIB), huge(8 * MIB));
    let port = natsway_testkit::free_port();
    let consumer = bench.consumer("out").env("SHIPPER_WINDOW", "8MiB");
    let mut consumer = consumer.env("SHIPPER_METRICS", format!("127.0.0.1:{port}")).start();
    consumer.wait_for_line("Waiting for messages", SOON).await;
    // Partitions are read side by side.
    for partition in 0..4 {
        let head = format!("1 g=0000000000070badcafe s=0 e={} f=0 z={}", 256 * MIB, 256 * MIB);
        hand.publish(&format!("shipper.p{partition}.bad{partition}"), &head, of_256.clone()).await;
        // One that says less than it has.
        let head = "1 g=0000000000070badcafe s=0 e=100 f=0 z=99";
        hand.publish(&format!("shipper.p{partition}.worse{partition}"), head, of_256.clone()).await;
    }
    let told = consumer.wait_for_line("a message that can never be written is dropped", SOON).await;
    assert!(told.contains("bad") || told.contains("worse"), "{told}");
    natsway_testkit::eventually(SOON, async || page(port).contains("shipper_refused_total 8\n"))
        .await;
    // What is within the bound is written, in turn: it has to fit into the memory before it is
    // unpacked.
    for partition in 0..4 {
        let head = format!("1 g=0000000000070badcafe s=0 e={} f=0 z={}", 8 * MIB + 1, 8 * MIB);
        hand.publish(&format!("shipper.p{partition}.good{partition}"), &head, of_8.clone()).await;
    }
    natsway_testkit::eventually(SOON, async || {
        let lines =
            bench.output("out").into_iter().map(|(host, lines)| (host, lines.concat().len()));
        let expected = (0..4).map(|n| (format!("good{n}"), 8 * MIB));
        lines.eq(expected)
    })
    .await;
    let peak = consumer.memory().expect("it runs").peak;
    assert!(peak < 4 * 8 * MIB + BESIDE, "{} MiB", peak / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_a_long_line_hold_no_more_than_they_count_for() {
    let bench = Bench::jetstream().await;
    let file = bench.path("a.log");
    fs::write(&file, "x".repeat(64 * MIB)).unwrap();
    let producer = bench.producer("web1", &file).env("SHIPPER_LINE_LIMIT", "1KiB");
    let producer = producer.env("SHIPPER_WINDOW", "8MiB").env("SHIPPER_STREAM_MAX_BYTES", "1MiB");
    let mut producer = producer.start();
    producer.wait_for_line("the stream is full", SOON).await;
    stays_bounded(&producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_what_was_read_from_standard_input() {
    let bench = Bench::jetstream().await;
    let pipe = bench.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open for reading too, so that opening it waits for nobody.
    let mut input = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let (port, producer) = (natsway_testkit::free_port(), env!("CARGO_BIN_EXE_producer"));
    let script = format!("exec {producer} < {}", pipe.display());
    let producer = Process::builder("/bin/sh").name("producer").args(["-c", &script]);
    let producer =
        bench.settings(producer, "web1").env("SHIPPER_FILE", "-").env("SHIPPER_LINGER", "10m");
    let mut producer = producer.env("SHIPPER_METRICS", format!("127.0.0.1:{port}")).start();
    producer.wait_for_line("Publishing", SOON).await;
    let lines = numbered(0..100);
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    input.write_all(text.as_bytes()).unwrap();
    let taken = format!("\nshipper_unread_bytes {}\n", text.len());
    natsway_testkit::eventually(SOON, async || page(port).contains(&taken)).await;
    producer.terminate();
    assert!(producer.wait_exit(SOON).await.success());
    let _consumer = bench.consumer("out").start();
    bench.expect("out", "web1", &lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_several_partitions_does_not_get_the_connection_cut() {
    const EACH: usize = 24;
    let bench = Bench::jetstream().await;
    // Each of its own partition: together more than the broker holds for a connection.
    let hosts = ["web0", "web1", "web2", "web3", "web4", "web5"];
    let written: Vec<u64> =
        hosts.iter().map(|host| lines(&bench.path(&format!("{host}.log")), EACH)).collect();
    let files = hosts.iter().map(|host| bench.path(&format!("{host}.log")));
    let _producers: Vec<Process> =
        hosts.iter().zip(files).map(|(host, file)| bench.producer(host, &file).start()).collect();
    let context = async_nats::jetstream::new(bench.broker.connect().await);
    natsway_testkit::eventually(SOON * 3, async || {
        let stream = context.get_stream("SHIPPER").await.map_err(|error| error.to_string())?;
        let stored = stream.cached_info().state.bytes as usize;
        if stored >= hosts.len() * EACH * MIB { Ok(()) } else { Err(format!("{stored} bytes")) }
    })
    .await;
    let _consumer = bench.consumer("out").start();
    // The last lines may be on their way: what is stored counts what describes a message as well.
    natsway_testkit::eventually(SOON * 3, async || {
        let count = |host: &str| {
            let files = fs::read_dir(bench.path("out").join(host)).into_iter().flatten().flatten();
            let lines = |entry: fs::DirEntry| {
                fs::read(entry.path()).unwrap().iter().filter(|b| **b == b'\n').count() as u64
            };
            files.map(lines).sum::<u64>()
        };
        let arrived: Vec<u64> = hosts.iter().map(|host| count(host)).collect();
        if arrived == written { Ok(()) } else { Err(format!("{arrived:?} of {written:?} lines")) }
    })
    .await;
    let metrics = bench.broker.monitor("/varz").await.unwrap();
    assert_eq!(metrics["slow_consumers"], 0, "{}", bench.broker.log());
}
