//! QueueWatch's six links, each firing by both signals, with real workers, a real consumer and real
//! traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::Client;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::Config as StreamConfig;
use async_nats::jetstream::{self};
use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_provisioner::controller::{Controller, ControllerRules};
use natsway_provisioner::policy::{Analysers, Policy, Thresholds};
use natsway_provisioner::sample::Fleet;
use natsway_provisioner::scale::ScaleRules;
use natsway_provisioner::signal::{ConsumerSignal, ServicesSignal, Signal};
use natsway_provisioner::window::WindowRules;
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::envelope::RequestEncoder;
use natsway_worker::{Options, serve};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

/// Between two messages' ticks: a fiftieth of a second.
const TICK: Duration = Duration::from_millis(20);

/// Looks every tenth of a second and compares every second, on behalf of an autoscaler.
struct Watch<S> {
    signal: S,
    controller: Controller,
}

impl<S: Signal> Watch<S> {
    fn new(signal: S) -> Self {
        let rules = ControllerRules {
            window: WindowRules { span_ms: 1_000, stale_after_ms: 10_000 },
            lead_s: 0.0,
            service_rate: None,
            concurrency: 1.0,
            slots: None,
            prefetch: 0,
            tolerance: 0.0,
            scale: ScaleRules::between(1, 10),
        };
        let thresholds = Thresholds { every_ms: 1_000, ..Thresholds::default() };
        let policies: Vec<Box<dyn Policy>> = vec![Box::new(Analysers::new(thresholds))];
        Self { signal, controller: Controller::new("watched", rules, policies) }
    }

    /// Looks until this analyser has fired.
    async fn sees(&mut self, analyser: &str) {
        let watching = async {
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut seen = Vec::new();
            loop {
                pace.tick().await;
                let poll = self.signal.poll().await;
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                let now_ms = u64::try_from(since_epoch.as_millis()).unwrap();
                let fleet = Fleet { ready: 1, ..Fleet::default() };
                let decision = self.controller.decide(now_ms, fleet, poll);
                let fired = decision.answers.first().map(|answer| answer.because.clone());
                if fired.as_deref() == Some(analyser) {
                    return;
                }
                seen.push(decision.to_string());
                if seen.len() > 300 {
                    panic!("{analyser} did not fire; last:\n{}", seen.last().unwrap());
                }
            }
        };
        tokio::time::timeout(DEADLINE, watching)
            .await
            .unwrap_or_else(|_| panic!("{analyser} did not fire"));
    }

    /// The chain from its end to its beginning, as a load grows, falls, and meets instances that
    /// hang.
    async fn sees_all(&mut self, rate: &AtomicU64, hang: impl Fn(), leave: impl Fn()) {
        rate.store(100, Ordering::Relaxed);
        self.sees("Stable").await;
        rate.store(300, Ordering::Relaxed);
        self.sees("ConsumptionRateIncreased").await;
        self.sees("Stable").await;
        rate.store(100, Ordering::Relaxed);
        self.sees("ConsumptionRateDecreased").await;
        rate.store(300, Ordering::Relaxed);
        self.sees("Stable").await;
        hang();
        self.sees("DispatchRateDecreased").await;
        self.sees("QueueLengthIncreased").await;
        leave();
        self.sees("ConsumerUtilisationTooLow").await;
    }
}

/// Sends so many a second for as long as it lives.
fn traffic(
    client: Client,
    subject: &'static str,
    reply: bool,
    message: Bytes,
) -> (Arc<AtomicU64>, JoinHandle<()>) {
    let rate = Arc::<AtomicU64>::default();
    let of_task = Arc::clone(&rate);
    let sending = tokio::spawn(async move {
        let mut pace = tokio::time::interval(TICK);
        let mut due = 0.0;
        loop {
            pace.tick().await;
            due += of_task.load(Ordering::Relaxed) as f64 * TICK.as_secs_f64();
            while due >= 1.0 {
                due -= 1.0;
                let sent = match reply {
                    true => {
                        client
                            .publish_with_reply(subject, client.new_inbox(), message.clone())
                            .await
                    }
                    false => client.publish(subject, message.clone()).await,
                };
                sent.unwrap();
            }
        }
    });
    (rate, sending)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_six_links_fire_by_what_workers_tell() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let work_ms = Arc::new(AtomicU64::new(1));
    let takes_ms = Arc::clone(&work_ms);
    let router = Router::new().route(
        "/",
        get(async move || {
            tokio::time::sleep(Duration::from_millis(takes_ms.load(Ordering::Relaxed))).await;
            "ok"
        }),
    );
    let options = Options::new("svc.links.blue")
        .broker(natsway_worker::BrokerConfig::new(&broker.url()).unwrap())
        .max_in_flight(2_000)
        .drain_timeout(Duration::from_millis(100));
    let stop = CancellationToken::new();
    let worker = tokio::spawn(serve(options, router, stop.clone().cancelled_owned()));
    let mut watch = Watch::new(ServicesSignal::new(broker.connect().await, "links", None));
    eventually(DEADLINE, async || watch.signal.poll().await).await;
    let message = RequestEncoder::new(60_000, 0, "GET", "/", 64).unwrap().finish(b"");
    let (rate, sending) = traffic(client, "svc.links.blue", true, message);
    let hang = || work_ms.store(60_000, Ordering::Relaxed);
    // They are full in a moment: what comes then is turned away.
    watch.sees_all(&rate, hang, || rate.store(3_000, Ordering::Relaxed)).await;
    sending.abort();
    stop.cancel();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_six_links_fire_by_what_a_consumer_tells() {
    let broker = TestBroker::builder().jetstream().start().await;
    let client = broker.connect().await;
    let context = jetstream::new(client.clone());
    let config = StreamConfig {
        name: "LINKS".to_owned(),
        subjects: vec!["links.x".to_owned()],
        ..StreamConfig::default()
    };
    let stream = context.create_stream(config).await.unwrap();
    let config = pull::Config {
        durable_name: Some("links".to_owned()),
        max_ack_pending: 100_000,
        ack_wait: 2 * DEADLINE,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let hangs = CancellationToken::new();
    let of_task = hangs.clone();
    let taking = tokio::spawn(async move {
        let mut messages = consumer.messages().await.unwrap();
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            if !of_task.is_cancelled() {
                message.ack().await.unwrap();
            }
        }
    });
    let mut watch = Watch::new(ConsumerSignal::new(broker.connect().await, "LINKS", "links"));
    let (rate, sending) = traffic(client, "links.x", false, Bytes::new());
    watch.sees_all(&rate, || hangs.cancel(), || taking.abort()).await;
    sending.abort();
}
