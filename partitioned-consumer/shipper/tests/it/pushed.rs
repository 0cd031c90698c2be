//! `SHIPPER_STREAM_TARGET`: the published set-up, with a push consumer that somebody made by hand.

use std::time::Duration;

use async_nats::jetstream::{self, consumer::AckPolicy, consumer::push, stream};
use futures_util::StreamExt;

use crate::support::{Bench, SOON, numbered, write};

/// Shorter than anybody would set it, so that what is delivered again does not take long.
const ACK_WAIT: Duration = Duration::from_secs(2);

async fn pushing(bench: &Bench, ack_policy: AckPolicy) -> jetstream::Context {
    let context = jetstream::new(bench.broker.connect().await);
    let config = stream::Config {
        name: "LOGS".into(),
        subjects: vec!["shipper.>".into()],
        ..Default::default()
    };
    let stream = context.create_stream(config).await.unwrap();
    for partition in 0..5 {
        let config = push::Config {
            durable_name: Some(format!("P{partition}")),
            deliver_subject: format!("target.p{partition}"),
            filter_subject: format!("shipper.p{partition}.>"),
            ack_policy,
            ack_wait: if ack_policy == AckPolicy::None { Duration::ZERO } else { ACK_WAIT },
            ..Default::default()
        };
        stream.create_consumer(config).await.unwrap();
    }
    context
}

fn consumer(bench: &Bench, directory: &str) -> natsway_testkit::ProcessBuilder {
    bench.consumer(directory).env("SHIPPER_STREAM_TARGET", "target")
}

async fn publish(context: &jetstream::Context, lines: &[String]) {
    for line in lines {
        context.publish("shipper.p4.web1", line.clone().into()).await.unwrap().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_set_up_works_without_acknowledgements() {
    let bench = Bench::jetstream().await;
    let context = pushing(&bench, AckPolicy::None).await;
    let mut consumer = consumer(&bench, "out").start();
    consumer.wait_for_line("Waiting for messages on subject target.p4", SOON).await;
    publish(&context, &numbered(0..100)).await;
    bench.expect("out", "web1", &numbered(0..100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_in_flight_comes_first_and_once() {
    let bench = Bench::jetstream().await;
    let context = pushing(&bench, AckPolicy::Explicit).await;
    publish(&context, &numbered(0..20)).await;
    let client = bench.broker.connect().await;
    // Somebody took ten of them, and died before it said so.
    let mut taken = client.subscribe("target.p4").await.unwrap();
    for _ in 0..10 {
        tokio::time::timeout(SOON, taken.next()).await.unwrap().unwrap();
    }
    drop(taken);
    client.flush().await.unwrap();
    publish(&context, &numbered(20..40)).await;
    let mut first = consumer(&bench, "out").start();
    first.wait_for_line("reading what a push consumer delivers", SOON).await;
    bench.expect("out", "web1", &numbered(0..40)).await;
    for round in 2..6 {
        publish(&context, &numbered(round * 20..round * 20 + 10)).await;
        first.kill9();
        publish(&context, &numbered(round * 20 + 10..round * 20 + 20)).await;
        first = consumer(&bench, "out").start();
    }
    bench.expect("out", "web1", &numbered(0..120)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_our_producer_come_once_over_kills_through_a_push_consumer() {
    let bench = Bench::jetstream().await;
    let _context = pushing(&bench, AckPolicy::Explicit).await;
    let file = bench.path("a.log");
    let producer = || {
        let producer = bench.producer("web1", &file).env("SHIPPER_STREAM", "LOGS");
        producer.env("SHIPPER_BATCH", "2KiB").env("SHIPPER_LINE_LIMIT", "1KiB").start()
    };
    let consumer = || consumer(&bench, "out").env("SHIPPER_STREAM", "LOGS").start();
    let (mut sending, mut writing) = (producer(), consumer());
    for round in 0..6 {
        write(&file, &numbered(round * 2_000..(round + 1) * 2_000));
        tokio::time::sleep(Duration::from_millis(300)).await;
        match round % 2 {
            0 => {
                writing.kill9();
                writing = consumer();
            }
            _ => {
                sending.kill9();
                sending = producer();
            }
        }
    }
    bench.expect("out", "web1", &numbered(0..12_000)).await;
}
