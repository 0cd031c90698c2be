//! The headers-only, ack-all consumer of the NATS example, which counts what comes by receiving it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use natsway_boot::Clock;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{Signal, now_ms};
use crate::sample::{Fault, Sample};

/// Messages of one pull. Their bodies stay in the stream.
const BATCH: usize = 500;

/// A pull without a message ends after this, which shows that nothing comes and that the broker is
/// there.
const PULL_EXPIRES: Duration = Duration::from_millis(500);

/// After a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// An interest stream keeps each message until every consumer has it. So that it does not grow
/// while no provisioner runs, the broker drops a consumer that nobody pulls from for this long.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(60);

/// Counts the messages of a stream.
pub struct TallySignal {
    clock: Clock,
    source: String,
    seen: Arc<Seen>,
    _counting: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    count: AtomicU64,
    last_arrival_ms: AtomicU64,
    /// When a pull last ended as it should.
    checked_ms: AtomicU64,
}

/// The consumer that the tally is taken with: pull, ack-all, headers only, and gone when it is not
/// used for a minute.
pub fn tally_config(name: &str) -> pull::Config {
    pull::Config {
        durable_name: Some(name.to_owned()),
        ack_policy: AckPolicy::All,
        deliver_policy: DeliverPolicy::New,
        headers_only: true,
        inactive_threshold: INACTIVE_THRESHOLD,
        ..pull::Config::default()
    }
}

impl TallySignal {
    /// Counts with `consumer` on `stream`; the consumer is made when it is not there.
    pub fn new(client: Client, stream: impl Into<String>, consumer: impl Into<String>) -> Self {
        let (stream, consumer) = (stream.into(), consumer.into());
        let source = format!("{stream}/{consumer} as counted by {}", natsway_boot::random_id());
        let (clock, seen) = (Clock::start(), Arc::<Seen>::default());
        let counting = tokio::spawn(count(client, stream, consumer, clock, Arc::clone(&seen)));
        Self { clock, source, seen, _counting: AbortOnDropHandle::new(counting) }
    }
}

impl Signal for TallySignal {
    fn poll(&mut self) -> BoxFuture<'_, Result<Sample, Fault>> {
        let read = |figure: &AtomicU64| figure.load(Ordering::Acquire);
        let checked_ms = read(&self.seen.checked_ms);
        let poll = if checked_ms == 0 {
            Err(Fault::Missing("nothing was counted yet".to_owned()))
        } else {
            Ok(Sample {
                // While pulls end as they should the count is as old as the last of them, and true
                // until now.
                at_ms: checked_ms.min(now_ms(&self.clock)),
                source: self.source.clone(),
                arrived: read(&self.seen.count),
                last_arrival_ms: Some(read(&self.seen.last_arrival_ms)).filter(|ms| *ms > 0),
                ..Sample::default()
            })
        };
        Box::pin(std::future::ready(poll))
    }
}

async fn count(client: Client, stream: String, consumer: String, clock: Clock, seen: Arc<Seen>) {
    let context = jetstream::new(client);
    let mut complained = false;
    loop {
        match count_on(&context, &stream, &consumer, &clock, &seen).await {
            Ok(()) => complained = false,
            Err(error) if complained => {
                tracing::debug!(%error, %stream, %consumer, "still nothing to count")
            }
            Err(error) => {
                warn!(%error, %stream, %consumer, "cannot count, trying again");
                complained = true;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn count_on(
    context: &jetstream::Context,
    stream: &str,
    consumer: &str,
    clock: &Clock,
    seen: &Seen,
) -> Result<(), async_nats::Error> {
    let stream = context.get_stream_no_info(stream).await?;
    let consumer: PullConsumer =
        stream.get_or_create_consumer(consumer, tally_config(consumer)).await?;
    loop {
        let mut batch =
            consumer.fetch().max_messages(BATCH).expires(PULL_EXPIRES).messages().await?;
        let mut last = None;
        while let Some(message) = batch.next().await {
            last = Some(message?);
            seen.count.fetch_add(1, Ordering::AcqRel);
            seen.last_arrival_ms.store(now_ms(clock), Ordering::Release);
            seen.checked_ms.store(now_ms(clock), Ordering::Release);
        }
        if let Some(last) = last {
            // Of all before it too.
            last.ack_with(AckKind::Ack).await?;
        }
        seen.checked_ms.store(now_ms(clock), Ordering::Release);
    }
}
