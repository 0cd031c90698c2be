//! Signals against a real broker.

use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::{Config as StreamConfig, RetentionPolicy};
use async_nats::jetstream::{self, AckKind, Context};
use axum::Router;
use axum::routing::get;
use futures_util::StreamExt;
use natsway_provisioner::sample::{Fault, Sample};
use natsway_provisioner::signal::discover::{self, Pattern};
use natsway_provisioner::signal::{
    ConsumerSignal, MonitoringSignal, ServicesSignal, Signal, TallySignal, Via,
};
use natsway_routes::metrics::AttemptMetrics;
use natsway_routes::report::{Report, VersionMetrics};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::{CALLER_SOURCE, GATEWAY_SOURCE, metrics_subject, report_subject};
use natsway_worker::{Options, serve};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

async fn stream(broker: &TestBroker, retention: RetentionPolicy) -> Context {
    let context = jetstream::new(broker.connect().await);
    let config = StreamConfig {
        name: "WORK".to_owned(),
        subjects: vec!["work.>".to_owned()],
        retention,
        ..StreamConfig::default()
    };
    context.create_stream(config).await.unwrap();
    context
}

async fn consumer(context: &Context, config: pull::Config) -> PullConsumer {
    let stream = context.get_stream("WORK").await.unwrap();
    stream.create_consumer(config).await.unwrap()
}

async fn publish(context: &Context, subject: &'static str, count: usize) {
    for _ in 0..count {
        context.publish(subject, "x".into()).await.unwrap().await.unwrap();
    }
}

async fn take(consumer: &PullConsumer, count: usize, then: Option<AckKind>) {
    let mut messages =
        consumer.batch().max_messages(count).expires(DEADLINE).messages().await.unwrap();
    let mut taken = 0;
    while let Some(message) = messages.next().await {
        taken += 1;
        if let Some(then) = then {
            let message = message.unwrap();
            match then {
                AckKind::Ack => message.double_ack().await.unwrap(),
                then => message.ack_with(then).await.unwrap(),
            }
        }
    }
    assert_eq!(taken, count);
}

fn durable(name: &str) -> pull::Config {
    pull::Config { durable_name: Some(name.to_owned()), ..pull::Config::default() }
}

fn counts(sample: &Sample) -> (u64, u64, Option<u64>, Option<u64>) {
    (sample.arrived, sample.completed, sample.waiting, sample.in_hand)
}

#[tokio::test]
async fn a_consumer_is_counted_with_a_filter_and_without_its_redeliveries() {
    let broker = TestBroker::builder().jetstream().start().await;
    let context = stream(&broker, RetentionPolicy::Limits).await;
    let filtered = pull::Config { filter_subject: "work.a".to_owned(), ..durable("a") };
    let consumer = consumer(&context, filtered).await;
    let mut signal = ConsumerSignal::new(broker.connect().await, "WORK", "a");
    publish(&context, "work.a", 10).await;
    publish(&context, "work.b", 100).await;
    assert_eq!(counts(&signal.poll().await.unwrap()), (10, 0, Some(10), Some(0)));
    take(&consumer, 6, Some(AckKind::Ack)).await;
    take(&consumer, 2, None).await;
    assert_eq!(counts(&signal.poll().await.unwrap()), (10, 6, Some(2), Some(2)));
    // A message that fails again and again is no traffic.
    take(&consumer, 1, Some(AckKind::Nak(None))).await;
    for _ in 0..20 {
        take(&consumer, 1, Some(AckKind::Nak(None))).await;
    }
    let sample = signal.poll().await.unwrap();
    assert!(sample.arrived <= 11, "{sample:?}");
    publish(&context, "work.a", 5).await;
    assert_eq!(signal.poll().await.unwrap().arrived, sample.arrived + 5);
}

#[tokio::test]
async fn what_is_not_there_is_missing_and_says_so() {
    let mut broker = TestBroker::builder().jetstream().start().await;
    let context = stream(&broker, RetentionPolicy::Limits).await;
    let mut signal = ConsumerSignal::new(broker.connect().await, "WORK", "late");
    let missing = |poll: Result<Sample, Fault>| match poll {
        Err(Fault::Missing(why)) => why,
        other => panic!("expected nothing, got {other:?}"),
    };
    let why = missing(signal.poll().await);
    assert!(why.contains("consumer late of stream WORK"), "{why}");
    consumer(&context, durable("late")).await;
    let first = signal.poll().await.unwrap();
    context.get_stream("WORK").await.unwrap().delete_consumer("late").await.unwrap();
    consumer(&context, durable("late")).await;
    assert_ne!(signal.poll().await.unwrap().source, first.source, "another one of the same name");
    broker.kill9();
    missing(signal.poll().await);
    broker.start_again().await;
    eventually(DEADLINE, async || signal.poll().await).await;
}

#[tokio::test]
async fn the_tally_counts_what_comes_and_leaves_nothing_behind() {
    let broker = TestBroker::builder().jetstream().start().await;
    let context = stream(&broker, RetentionPolicy::Interest).await;
    let mut signal = TallySignal::new(broker.connect().await, "WORK", "PROVISIONER");
    eventually(DEADLINE, async || signal.poll().await).await;
    publish(&context, "work.a", 700).await;
    let sample = eventually(DEADLINE, async || {
        let sample = signal.poll().await.unwrap();
        (sample.arrived == 700).then_some(sample)
    })
    .await;
    assert!(sample.last_arrival_ms.is_some());
    eventually(DEADLINE, async || {
        context.get_stream("WORK").await.unwrap().cached_info().state.messages == 0
    })
    .await;
    let mut stream = context.get_stream("WORK").await.unwrap();
    let config = stream.consumer_info("PROVISIONER").await.unwrap().config;
    assert!(config.headers_only && !config.inactive_threshold.is_zero(), "{config:?}");
    stream.info().await.unwrap();
}

#[tokio::test]
async fn services_are_counted_through_restarts_and_with_what_gateways_have_out() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let mut signal = ServicesSignal::new(client.clone(), "counted", None);
    assert!(matches!(signal.poll().await, Err(Fault::Missing(_))), "nobody serves");
    let via = Via { route: "shop".to_owned(), version: "blue".to_owned() };
    let mut with_gateways = ServicesSignal::new(client.clone(), "counted", Some(via));
    let mut total = 0;
    for round in 1..=2 {
        let stop = CancellationToken::new();
        let options = Options::new("svc.counted.blue")
            .broker(natsway_worker::BrokerConfig::new(&broker.url()).unwrap());
        let router = Router::new().route("/", get(async || "ok"));
        let worker = tokio::spawn(serve(options, router, stop.clone().cancelled_owned()));
        let before = eventually(DEADLINE, async || signal.poll().await).await;
        for _ in 0..5 {
            let encoder = natsway_wire::envelope::RequestEncoder::new(5_000, 0, "GET", "/", 64)
                .unwrap()
                .finish(b"");
            client.request("svc.counted.blue", encoder).await.unwrap();
            total += 1;
        }
        let sample = eventually(DEADLINE, async || {
            let sample = signal.poll().await.unwrap();
            (sample.completed == total).then_some(sample)
        })
        .await;
        assert!(sample.busy_ms >= before.busy_ms, "round {round}");
        assert!(
            matches!(with_gateways.poll().await, Err(Fault::Missing(_))),
            "no gateway tells anything"
        );
        stop.cancel();
        worker.await.unwrap().unwrap();
    }

    let options = Options::new("svc.counted.blue")
        .broker(natsway_worker::BrokerConfig::new(&broker.url()).unwrap());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(serve(options, Router::new(), stop.clone().cancelled_owned()));
    let mut asked = client.subscribe(report_subject()).await.unwrap();
    let answering = tokio::spawn({
        let client = client.clone();
        async move {
            let mut age_ms = 0;
            while asked.next().await.is_some() {
                age_ms += 1;
                let metrics = AttemptMetrics { in_flight: 40, ..AttemptMetrics::default() };
                let (route, version) = ("shop".to_owned(), "blue".to_owned());
                let versions = vec![VersionMetrics { route, version, metrics }];
                let id = "gateway".to_owned();
                let report = Report { id, age_ms, whole: true, versions, ..Report::default() };
                for message in report.messages() {
                    let forged = metrics_subject(CALLER_SOURCE, &report.id);
                    client.publish(forged, message.clone()).await.unwrap();
                    client
                        .publish(metrics_subject(GATEWAY_SOURCE, &report.id), message)
                        .await
                        .unwrap();
                }
            }
        }
    });
    let sample = eventually(DEADLINE, async || with_gateways.poll().await).await;
    assert_eq!((sample.in_hand, sample.arrived), (Some(40), 40));
    answering.abort();
    stop.cancel();
    worker.await.unwrap().unwrap();
}

#[tokio::test]
async fn monitoring_counts_what_a_queue_group_was_sent() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let mut member = client.queue_subscribe("svc.x.y", "q".to_owned()).await.unwrap();
    let mut signal =
        MonitoringSignal::new(vec![broker.monitor_url().parse().unwrap()], "svc.x.y", "q");
    for _ in 0..7 {
        client.publish("svc.x.y", "".into()).await.unwrap();
        member.next().await.unwrap();
    }
    eventually(DEADLINE, async || {
        let sample = signal.poll().await.unwrap();
        if sample.arrived == 7 { Ok(()) } else { Err(sample) }
    })
    .await;
    let mut nowhere =
        MonitoringSignal::new(vec!["http://127.0.0.1:1".parse().unwrap()], "svc.x.y", "q");
    assert!(matches!(nowhere.poll().await, Err(Fault::Missing(_))));
}

#[tokio::test]
async fn names_that_match_are_found() {
    let broker = TestBroker::builder().jetstream().start().await;
    let context = stream(&broker, RetentionPolicy::Limits).await;
    for name in ["work-eu", "work-us", "audit"] {
        consumer(&context, durable(name)).await;
    }
    let client = broker.connect().await;
    let found = discover::consumers(&client, "WORK", &Pattern::new("work-*")).await.unwrap();
    assert_eq!(found, ["work-eu", "work-us"]);
    let error = discover::consumers(&client, "NONE", &Pattern::new("*")).await.unwrap_err();
    assert!(error.contains("NONE"), "{error}");
    let stop = CancellationToken::new();
    let options = Options::new("svc.math.blue")
        .broker(natsway_worker::BrokerConfig::new(&broker.url()).unwrap());
    let worker = tokio::spawn(serve(options, Router::new(), stop.clone().cancelled_owned()));
    eventually(DEADLINE, async || {
        let found = discover::services(&client, &Pattern::new("ma*")).await.unwrap();
        if found == ["math"] { Ok(()) } else { Err(found) }
    })
    .await;
    stop.cancel();
    worker.await.unwrap().unwrap();
}
