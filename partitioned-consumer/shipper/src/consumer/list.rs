//! Reads one partition of a list through a durable consumer of its own, strictly in the order of
//! the stream.
//!
//! A message is judged by its place in that order, and redelivery after a crash breaks it: new
//! messages come first. So this never waits for a redelivery. At every start, and whenever
//! something may have been missed, the consumer is made anew behind the last acknowledged message;
//! what was written meanwhile is known from the commits.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull};
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, AckKind};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::durable::consumer_name;
use super::receive::{Receiver, Stored};
use super::unreadable::{Failure, first_unreadable};

/// Never redelivered while a reader lives; see the module.
const ACK_WAIT: Duration = Duration::from_secs(6 * 3600);
/// Messages of one pull.
const PULL: usize = 64;
/// What the readers of a connection may have on its way, together. A broker cuts a connection for
/// which more than 64 MiB wait (its default), and everything would begin anew.
const ON_THE_WAY_BYTES: usize = 32 << 20;
/// What a message has beside its payload: subjects and headers.
const AROUND_PAYLOAD_BYTES: usize = 64 << 10;
const PULL_EXPIRES: Duration = Duration::from_secs(20);
const HEARTBEAT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(250);
const CONNECTED_ANEW: &str = "the connection was made anew";
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
const ACKS_PENDING: i64 = 20_000;
/// Connections in a row that end before a message is read, after which the next message is taken
/// for the reason.
const BARREN: u32 = 3;

/// See the module.
pub(super) struct ListReader {
    pub(super) client: Client,
    pub(super) stream: Stream,
    pub(super) cluster: String,
    pub(super) partition: u32,
    pub(super) filter: String,
    /// How many readers share the connection.
    pub(super) readers: usize,
    pub(super) receiver: Receiver,
}

/// Why a session is over.
enum Over {
    Stopped,
    /// Something may have been missed.
    Doubt(&'static str),
    /// The connection was lost before anything was read.
    Barren,
}

impl ListReader {
    /// Reads until `stop`, and has written what was read.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY.0;
        let (mut told, mut barren) = (false, 0);
        while !stop.is_cancelled() {
            let session = tokio::select! {
                session = self.session(&stop) => session,
                () = stop.cancelled() => return,
            };
            barren = if matches!(session, Ok(Over::Barren)) { barren + 1 } else { 0 };
            match session {
                Ok(Over::Stopped) => return,
                Ok(Over::Barren) if barren >= BARREN => self.look_at_the_next().await,
                Ok(Over::Barren) => {
                    info!(partition = self.partition, "reading on after a lost connection")
                }
                Ok(Over::Doubt(why)) => {
                    info!(
                        partition = self.partition,
                        why, "reading on from the last acknowledged message"
                    );
                    (pause, told) = (RETRY.0, false);
                }
                Err(error) => {
                    self.receiver.metrics().failed(error.to_string());
                    if !std::mem::replace(&mut told, true) {
                        warn!(partition = self.partition, %error, "the partition cannot be read, \
                                                                   trying again");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY.1),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Passes over the next message if it cannot be read. It is none of ours, and all that is
    /// behind it waits.
    async fn look_at_the_next(&self) {
        let (partition, stream) = (self.partition, &self.stream.cached_info().config.name);
        match self.pass_over_unreadable(stream).await {
            Ok(None) => warn!(partition, "the connection ends each time before a message is read"),
            Ok(Some(sequence)) => {
                let error = format!(
                    "message {sequence} of {stream} was passed over: its headers cannot be read"
                );
                error!(partition, error, "a foreign message");
                self.receiver.metrics().failed(error);
            }
            Err(error) => warn!(
                partition,
                stream,
                %error,
                "the connection ends each time before a message is read, and whether that is a \
                 message with headers that are not UTF-8 cannot be looked up: may this program \
                 publish to $JS.API.STREAM.MSG.GET.<stream>"
            ),
        }
    }

    async fn pass_over_unreadable(&self, stream: &str) -> Result<Option<u64>, Failure> {
        let name = consumer_name(&self.cluster, self.partition);
        let written = self.stream.consumer_info(&name).await?.ack_floor.stream_sequence;
        let found = first_unreadable(&self.client, stream, &self.filter, written + 1).await?;
        if let Some(sequence) = found {
            self.stream.delete_consumer(&name).await?;
            self.make_consumer(DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 })
                .await?;
        }
        Ok(found)
    }

    /// The consumer, made anew behind what is acknowledged.
    async fn consumer(&self) -> Result<jetstream::consumer::PullConsumer, Failure> {
        let name = consumer_name(&self.cluster, self.partition);
        let deliver_policy = match self.stream.consumer_info(&name).await {
            Ok(info) => {
                self.stream.delete_consumer(&name).await?;
                // Nothing was ever acknowledged: as at the very first start.
                match info.ack_floor.stream_sequence {
                    0 => info.config.deliver_policy,
                    written => DeliverPolicy::ByStartSequence { start_sequence: written + 1 },
                }
            }
            Err(error) if is_not_found(&error) => DeliverPolicy::All,
            Err(error) => return Err(error.into()),
        };
        self.make_consumer(deliver_policy).await
    }

    async fn make_consumer(
        &self,
        deliver_policy: DeliverPolicy,
    ) -> Result<jetstream::consumer::PullConsumer, Failure> {
        let config = pull::Config {
            durable_name: Some(consumer_name(&self.cluster, self.partition)),
            filter_subject: self.filter.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: ACKS_PENDING,
            replay_policy: ReplayPolicy::Instant,
            deliver_policy,
            ..Default::default()
        };
        Ok(self.stream.create_consumer(config).await?)
    }

    /// The messages behind what is acknowledged.
    async fn messages(&self) -> Result<pull::Stream, Failure> {
        let most_bytes = pull_bytes(self.readers, self.client.server_info().max_payload);
        let consumer = self.consumer().await?;
        let stream = consumer.stream().max_messages_per_batch(PULL).max_bytes_per_batch(most_bytes);
        Ok(stream.expires(PULL_EXPIRES).heartbeat(HEARTBEAT).messages().await?)
    }

    /// Until the client has another connection than now.
    async fn connected_anew(&self) {
        let connects = || self.client.statistics().connects.load(Ordering::Relaxed);
        let before = connects();
        let mut look = tokio::time::interval(LOOK);
        while connects() == before {
            look.tick().await;
        }
    }

    /// Reads until something may have been missed. Cancelling it loses nothing: what is not
    /// acknowledged is read again.
    async fn session(&self, stop: &CancellationToken) -> Result<Over, Failure> {
        let mut connected_anew = pin!(self.connected_anew());
        let begun = tokio::select! {
            begun = self.messages() => begun,
            // What was asked over the old connection is answered by nobody: no need to wait until
            // it times out.
            () = &mut connected_anew => return Ok(Over::Barren),
        };
        let mut messages = begun?;
        let mut next_sequence = 1;
        let mut receipts = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(receipt) = receipts.next(), if !receipts.is_empty() => match receipt {
                    Receipt::Written(message) => message.ack().await?,
                    Receipt::Dropped => return Ok(Over::Doubt("a message was given up")),
                },
                message = messages.next() => {
                    let Some(message) = message else { return Ok(Over::Doubt("the pulls ended")) };
                    let message = message?;
                    let info = message.info()?;
                    if info.consumer_sequence != next_sequence || info.delivered != 1 {
                        return Ok(Over::Doubt("messages are missing"));
                    }
                    next_sequence += 1;
                    let stored = Stored {
                        sequence: info.stream_sequence,
                        at_unix_ns: info.published.unix_timestamp_nanos(),
                    };
                    let offered =
                        self.receiver.offer(
                            &message.subject, message.headers.as_ref(), message.payload.clone(), stored,
                        );
                    match offered.await {
                        Ok(receipt) => receipts.push(settle(message, receipt)),
                        Err(_) => message.ack_with(AckKind::Term).await?,
                    }
                }
                () = &mut connected_anew => {
                    return Ok(if next_sequence > 1 { Over::Doubt(CONNECTED_ANEW) } else { Over::Barren });
                }
                () = stop.cancelled() => break,
            }
        }
        drop(messages);
        while let Some(receipt) = receipts.next().await {
            if let Receipt::Written(message) = receipt {
                message.ack().await?;
            }
        }
        Ok(Over::Stopped)
    }
}

/// The size of a pull of each of so many readers. A reader pulls again when half of a pull is still
/// to come, so it has one and a half on their way. A pull that is smaller than a message would
/// never get it.
fn pull_bytes(readers: usize, max_payload: usize) -> usize {
    let share = ON_THE_WAY_BYTES / readers.max(1) * 2 / 3;
    share.max(max_payload + AROUND_PAYLOAD_BYTES)
}

enum Receipt {
    Written(Box<jetstream::Message>),
    Dropped,
}

async fn settle(mut message: jetstream::Message, receipt: oneshot::Receiver<()>) -> Receipt {
    // The writer has the payload; only the way to acknowledge is needed here.
    message.message.payload = bytes::Bytes::new();
    match receipt.await {
        Ok(()) => Receipt::Written(Box::new(message)),
        Err(_) => Receipt::Dropped,
    }
}

fn is_not_found(error: &jetstream::context::ConsumerInfoError) -> bool {
    match error.kind() {
        jetstream::context::ConsumerInfoErrorKind::NotFound => true,
        jetstream::context::ConsumerInfoErrorKind::JetStream(error) => {
            error.error_code() == jetstream::ErrorCode::CONSUMER_NOT_FOUND
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_to_a_connection_stays_within_the_brokers_bound() {
        for readers in 1..=16 {
            let of_all = readers * pull_bytes(readers, 1 << 20) * 3 / 2;
            assert!(of_all <= ON_THE_WAY_BYTES, "{readers} readers: {of_all}");
        }
        assert!(pull_bytes(64, 1 << 20) > 1 << 20, "the largest message fits into a pull");
    }
}
