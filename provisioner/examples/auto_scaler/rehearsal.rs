//! The run itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use futures_util::{FutureExt, StreamExt};
use natsway_provisioner::backend::tasks::Tasks;
use natsway_provisioner::controller::{Controller, ControllerRules};
use natsway_provisioner::policy::Example;
use natsway_provisioner::scale::ScaleRules;
use natsway_provisioner::signal::TallySignal;
use natsway_provisioner::target::ScaleTarget;
use natsway_provisioner::window::WindowRules;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

type Error = async_nats::Error;

/// How many requests come, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Requests of each batch.
    pub(crate) batch: usize,
    /// Requests a second of the first and of the second batch.
    pub(crate) per_second: [u32; 2],
    /// Between the two.
    pub(crate) pause: Duration,
}

impl Plan {
    /// As the transcript of NATS by Example has it.
    pub(crate) const TRANSCRIPT: Self =
        Self { batch: 10_000, per_second: [2_400, 1_970], pause: Duration::from_secs(3) };
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// How many instances there were, one after the other.
    pub(crate) trajectory: Vec<u32>,
    /// Requests that an instance answered.
    pub(crate) answered: usize,
    /// Messages that an instance processed, each counted once.
    pub(crate) processed: usize,
    /// Messages that were processed more than once.
    pub(crate) twice: usize,
    /// How long each batch took to be sent.
    pub(crate) took: [Duration; 2],
}

/// The header in which a message in a stream carries the inbox of its caller: a reply subject would
/// get the stream's own acknowledgement.
const REPLY: &str = "Nats-Reply";

/// After this without an answer a request is sent again, under the same id and with the same inbox:
/// the stream stores it once, so the answer is to the first.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Longest that all answers may take after the last request.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it; `say` gets a line for each change.
///
/// # Errors
/// The broker's.
pub(crate) async fn rehearse(
    client: Client,
    plan: Plan,
    say: impl Fn(String) + Send + Sync + 'static,
) -> Result<Outcome, Error> {
    let context = jetstream::new(client.clone());
    let consumer = prepare(&context).await?;
    let ledger = Ledger::default();
    let stop = CancellationToken::new();
    let scaling = tokio::spawn(scale(client.clone(), consumer, ledger.clone(), stop.clone(), say));
    // The counting consumer must be there before the first message, or it would not see it.
    while context.get_stream("TEST").await?.consumer_info("PROVISIONER").await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut caller = Caller::new(client, context.clone(), plan.batch).await?;
    let mut took = [Duration::ZERO; 2];
    for (number, per_second) in plan.per_second.into_iter().enumerate() {
        took[number] = caller.send_batch(per_second).await?;
        if number == 0 {
            tokio::time::sleep(plan.pause).await;
        }
    }
    caller.settle().await?;
    ledger.wait_for_nobody().await;
    stop.cancel();
    scaling.await?;
    context.delete_stream("TEST").await?;
    let (trajectory, processed) = ledger.read();
    let twice = processed.values().filter(|times| **times > 1).count();
    Ok(Outcome {
        trajectory,
        answered: caller.answered.len(),
        processed: processed.len(),
        twice,
        took,
    })
}

/// The stream and the consumer that does the work. While nobody counts, an interest stream would
/// grow until its limits: they are set, and whoever publishes beyond them is told.
async fn prepare(context: &Context) -> Result<PullConsumer, Error> {
    let config = StreamConfig {
        name: "TEST".to_owned(),
        subjects: vec!["test.*".to_owned()],
        retention: RetentionPolicy::Interest,
        max_messages: 100_000,
        max_age: Duration::from_secs(600),
        discard: DiscardPolicy::New,
        ..StreamConfig::default()
    };
    let stream = context.create_stream(config).await?;
    let processor = pull::Config {
        durable_name: Some("PROCESSOR".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    Ok(stream.create_consumer(processor).await?)
}

/// Looks once a second, by the rule of the example, and starts and stops instances.
async fn scale(
    client: Client,
    consumer: PullConsumer,
    ledger: Ledger,
    stop: CancellationToken,
    say: impl Fn(String) + Send + Sync,
) {
    let signal = TallySignal::new(client.clone(), "TEST", "PROVISIONER");
    let noted = ledger.clone();
    let tasks = Tasks::new(move |id, stop| {
        process(id, client.clone(), consumer.clone(), noted.clone(), stop)
    });
    let controller = Controller::new("TEST", rules(), vec![Box::new(Example::default())]);
    let mut target = ScaleTarget::new(controller, Box::new(signal), Box::new(tasks));
    let mut pace = tokio::time::interval(Duration::from_secs(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        let decision = target.step().await;
        if decision.to != decision.from {
            say(format!("{} -> {}: {}", decision.from, decision.to, decision.reason()));
        }
        ledger.note_instances(decision.to);
    }
}

/// The rule alone, between 0 and 10.
fn rules() -> ControllerRules {
    ControllerRules {
        window: WindowRules { span_ms: 5_000, stale_after_ms: 5_000 },
        lead_s: 0.0,
        service_rate: None,
        concurrency: 1.0,
        slots: None,
        prefetch: 5,
        tolerance: 0.0,
        scale: ScaleRules::between(0, 10),
    }
}

/// One instance: takes five messages at a time, answers each, and finishes what it took when it is
/// told to stop.
async fn process(
    id: String,
    client: Client,
    consumer: PullConsumer,
    ledger: Ledger,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let pulled =
            consumer.batch().max_messages(5).expires(Duration::from_millis(500)).messages().await;
        let Ok(mut messages) = pulled else { continue };
        while let Some(Ok(message)) = messages.next().await {
            let header = |name: &str| Some(message.headers.as_ref()?.get(name)?.to_string());
            let (Some(inbox), Some(message_id)) = (header(REPLY), header("Nats-Msg-Id")) else {
                continue;
            };
            ledger.note_processed(message_id);
            let answered = client.publish(inbox, id.clone().into()).await;
            // Acknowledged only after the answer: otherwise nobody would answer it again.
            if answered.is_ok() && message.ack().await.is_err() {
                return;
            }
        }
    }
}

/// What was done, as all instances write it down.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<Notes>>);

/// How many instances there were, and how often each message was processed.
type Notes = (Vec<u32>, HashMap<String, u32>);

impl Ledger {
    fn with<T>(&self, act: impl FnOnce(&mut Notes) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note_processed(&self, message_id: String) {
        self.with(|(_, processed)| *processed.entry(message_id).or_default() += 1);
    }

    fn note_instances(&self, instances: u32) {
        self.with(|(trajectory, _)| {
            if trajectory.last() != Some(&instances) {
                trajectory.push(instances);
            }
        });
    }

    fn read(&self) -> Notes {
        self.with(|ledger| ledger.clone())
    }

    /// Waits until the last instance has gone.
    async fn wait_for_nobody(&self) {
        while self.with(|(trajectory, _)| trajectory.last() != Some(&0)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Sends requests into the stream and hears the instances' answers on one inbox.
struct Caller {
    client: Client,
    context: Context,
    batch: usize,
    inbox: String,
    answers: async_nats::Subscriber,
    sent: usize,
    answered: HashSet<usize>,
}

impl Caller {
    async fn new(client: Client, context: Context, batch: usize) -> Result<Self, Error> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await?;
        client.flush().await?;
        Ok(Self { client, context, batch, inbox, answers, sent: 0, answered: HashSet::new() })
    }

    /// Sends a batch at its pace, and says how long that took.
    async fn send_batch(&mut self, per_second: u32) -> Result<Duration, Error> {
        let began = Instant::now();
        let first = self.sent;
        for place in 0..self.batch {
            tokio::time::sleep_until(began + Duration::from_secs(1) * place as u32 / per_second)
                .await;
            self.send(first + place).await?;
            self.sent += 1;
            self.hear();
        }
        Ok(began.elapsed())
    }

    /// The stream's acknowledgement is not waited for: the answer says more, and what is not
    /// answered is sent again.
    async fn send(&self, number: usize) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{}-{number}", self.inbox));
        headers.insert(REPLY, format!("{}.{number}", self.inbox));
        drop(self.context.publish_with_headers("test.foo", headers, "".into()).await?);
        Ok(())
    }

    fn hear(&mut self) {
        while let Some(Some(answer)) = self.answers.next().now_or_never() {
            self.note(&answer);
        }
    }

    fn note(&mut self, answer: &async_nats::Message) {
        self.answered.extend(
            answer.subject.rsplit('.').next().and_then(|number| number.parse::<usize>().ok()),
        );
    }

    /// Waits for all answers, and sends again what has none.
    async fn settle(&mut self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        while self.answered.len() < self.sent && Instant::now() < until {
            let again_at = Instant::now() + RETRY_AFTER;
            while self.answered.len() < self.sent
                && let Ok(Some(answer)) =
                    tokio::time::timeout_at(again_at, self.answers.next()).await
            {
                self.note(&answer);
            }
            for number in
                (0..self.sent).filter(|number| !self.answered.contains(number)).collect::<Vec<_>>()
            {
                self.send(number).await?;
            }
            self.client.flush().await?;
        }
        Ok(())
    }
}
