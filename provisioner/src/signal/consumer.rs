//! A JetStream consumer, by the API over the broker connection: no monitoring port, and the leader
//! answers.

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::response::Response;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use natsway_boot::Clock;
use serde::Deserialize;

use super::{ANSWER_WITHIN, Deliveries, Position, Signal, now_ms};
use crate::sample::{Fault, Sample};

/// Polls one consumer.
///
/// What came is what was delivered for the first time and what is pending, so it is right with a
/// filter too; what was finished is what was delivered and is not in hand. A consumer that does not
/// exist, that is paused, or that has no leader is missing: nothing is scaled on that.
pub struct ConsumerSignal {
    context: jetstream::Context,
    stream: String,
    consumer: String,
    clock: Clock,
    created: String,
    deliveries: Deliveries,
}

/// What the broker says of a consumer; the rest is skipped.
#[derive(Deserialize)]
struct Info {
    created: String,
    delivered: Sequences,
    num_ack_pending: u64,
    num_redelivered: u64,
    num_waiting: u64,
    num_pending: u64,
    #[serde(default)]
    paused: bool,
}

#[derive(Deserialize)]
struct Sequences {
    consumer_seq: u64,
    stream_seq: u64,
}

impl ConsumerSignal {
    /// A signal of `consumer` on `stream`, which need not exist yet.
    pub fn new(client: Client, stream: impl Into<String>, consumer: impl Into<String>) -> Self {
        let mut context = jetstream::new(client);
        context.set_timeout(ANSWER_WITHIN);
        Self {
            context,
            stream: stream.into(),
            consumer: consumer.into(),
            clock: Clock::start(),
            created: String::new(),
            deliveries: Deliveries::default(),
        }
    }

    async fn ask(&mut self) -> Result<Sample, Fault> {
        let Self { stream, consumer, .. } = self;
        let missing =
            |why: String| Fault::Missing(format!("consumer {consumer} of stream {stream}: {why}"));
        let subject = format!("CONSUMER.INFO.{stream}.{consumer}");
        // What the context waits for itself is not all that can take time: a connection that is
        // away also queues. The broker takes an empty object for a request without a body, and
        // nothing else.
        let nothing = serde_json::json!({});
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.context.request(subject, &nothing));
        let info: Info = match asked.await {
            Ok(Ok(Response::Ok(info))) => info,
            Ok(Ok(Response::Err { error })) => return Err(missing(error.to_string())),
            Ok(Err(error)) => return Err(missing(error.to_string())),
            Err(_) => return Err(missing("the broker does not answer".to_owned())),
        };
        if info.paused {
            return Err(missing("it is paused".to_owned()));
        }
        let source = format!("{stream}/{consumer} of {}", info.created);
        if self.created != info.created {
            self.created = info.created;
            self.deliveries = Deliveries::default();
        }
        let Sequences { consumer_seq, stream_seq } = info.delivered;
        let delivered = self.deliveries.advance(Position { consumer_seq, stream_seq });
        Ok(Sample {
            at_ms: now_ms(&self.clock),
            source,
            arrived: delivered + info.num_pending,
            completed: delivered.saturating_sub(info.num_ack_pending),
            waiting: Some(info.num_pending),
            in_hand: Some(info.num_ack_pending),
            redelivered: Some(info.num_redelivered),
            waiting_pulls: Some(info.num_waiting),
            ..Sample::default()
        })
    }
}

impl Signal for ConsumerSignal {
    fn poll(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
        self.ask().boxed()
    }
}
