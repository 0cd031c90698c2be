//! Reads subjects directly: core mode, and what a push consumer of the published set-up delivers.

use std::time::Duration;

use async_nats::jetstream::consumer::AckPolicy;
use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::push::PushOrder;
use super::receive::{Receiver, Refused, Stored};

/// How often the broker is asked whether everything that it counts as delivered is here.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// After so many questions without an answer there will be none.
const FAILURES: u32 = 5;

/// See the module.
pub(super) struct PlainReader {
    pub(super) client: Client,
    pub(super) subscription: Subscriber,
    pub(super) receiver: Receiver,
}

/// What a push consumer allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pushed {
    /// Nothing came yet.
    Unknown,
    /// Acknowledged, and the broker tells what is out.
    Exact,
    /// The broker does not tell, as for a consumer in another account, or takes no acknowledgement:
    /// each message is written as it comes.
    AsItComes,
}

struct Reading {
    context: jetstream::Context,
    receiver: Receiver,
    order: PushOrder<jetstream::Message>,
    pushed: Pushed,
    failures: u32,
    receipts: FuturesUnordered<
        std::pin::Pin<Box<dyn Future<Output = Option<jetstream::Message>> + Send>>,
    >,
}

impl PlainReader {
    /// Reads until `stop`, and has written what was read. Messages of a push consumer are
    /// acknowledged when they are.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut reading = Reading {
            context: jetstream::new(self.client.clone()),
            receiver: self.receiver,
            order: PushOrder::new(),
            pushed: Pushed::Unknown,
            failures: 0,
            receipts: FuturesUnordered::new(),
        };
        let mut ask = tokio::time::interval(ASK_EVERY);
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                Some(written) = reading.receipts.next(), if !reading.receipts.is_empty() => acknowledge(written).await,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    // What is here already is still written; unsubscribing ends the subscription
                    // behind it.
                    if self.subscription.unsubscribe().await.is_err() {
                        break;
                    }
                }
                message = self.subscription.next() => {
                    let Some(message) = message else { break };
                    reading.arrived(message).await;
                }
                _ = ask.tick(), if reading.order.has_to_ask() => reading.ask().await,
            }
        }
        // What is held is not acknowledged, and comes again.
        while let Some(written) = reading.receipts.next().await {
            acknowledge(written).await;
        }
    }
}

impl Reading {
    async fn arrived(&mut self, message: async_nats::Message) {
        let message = jetstream::Message { message, context: self.context.clone() };
        let Ok((sequence, delivery)) =
            message.info().map(|info| (info.stream_sequence, info.consumer_sequence))
        else {
            return self.offer(message, 0).await;
        };
        if self.pushed == Pushed::AsItComes {
            return self.offer(message, 0).await;
        }
        if let Some(message) = self.order.arrived(sequence, delivery, message) {
            return self.offer(message, sequence).await;
        }
        self.ask().await;
    }

    /// Asks what is out, and lets go on what may.
    async fn ask(&mut self) {
        let Some(info) = self.order.any().and_then(|message| message.info().ok()) else { return };
        let (stream, consumer) = (info.stream.to_owned(), info.consumer.to_owned());
        let answer = self
            .context
            .get_consumer_from_stream::<jetstream::consumer::push::Config, _, _>(&consumer, &stream)
            .await;
        let unacknowledged = match &answer {
            Ok(told) if told.cached_info().config.ack_policy != AckPolicy::None => {
                if self.pushed != Pushed::Exact {
                    info!(stream, consumer, "reading what a push consumer delivers");
                }
                self.pushed = Pushed::Exact;
                told.cached_info().num_ack_pending
            }
            Err(_) if self.pushed == Pushed::Exact || self.failures < FAILURES => {
                self.failures += 1;
                return;
            }
            Ok(_) => {
                warn!(
                    stream,
                    consumer,
                    "the push consumer takes no acknowledgements: what is lost on its way is lost"
                );
                self.pushed = Pushed::AsItComes;
                0
            }
            Err(error) => {
                warn!(stream, consumer, %error, "the push consumer cannot be asked about: after a \
                                                 crash lines may be repeated, or out of order");
                self.pushed = Pushed::AsItComes;
                0
            }
        };
        let exact = self.pushed == Pushed::Exact;
        for (sequence, message) in self.order.answered(unacknowledged, self.receipts.len()) {
            self.offer(message, if exact { sequence } else { 0 }).await;
        }
    }

    /// Hands a message over; with a `sequence` it is judged by it, and by its head.
    async fn offer(&mut self, message: jetstream::Message, sequence: u64) {
        let payload = message.payload.clone();
        let at_unix_ns = message.info().map_or(0, |info| info.published.unix_timestamp_nanos());
        let stored = Stored { sequence, at_unix_ns };
        let receiver =
            if sequence == 0 { self.receiver.without_heads() } else { self.receiver.clone() };
        let offered =
            receiver.offer(&message.subject, message.headers.as_ref(), payload, stored).await;
        match offered {
            Ok(receipt) if message.info().is_ok() => {
                self.receipts.push(Box::pin(settle(message, receipt)))
            }
            Ok(_) => {}
            Err(Refused) => give_up(&message).await,
        }
    }
}

async fn settle(
    mut message: jetstream::Message,
    receipt: oneshot::Receiver<()>,
) -> Option<jetstream::Message> {
    // The writer has the payload; only the way to acknowledge is needed here.
    message.message.payload = bytes::Bytes::new();
    receipt.await.is_ok().then_some(message)
}

async fn acknowledge(written: Option<jetstream::Message>) {
    let Some(message) = written else { return };
    if let Err(error) = message.ack().await {
        warn!(%error, "an acknowledgement could not be sent; the message is known when it comes \
                       again");
    }
}

async fn give_up(message: &jetstream::Message) {
    if message.reply.is_some()
        && let Err(error) = message.ack_with(AckKind::Term).await
    {
        warn!(%error, "a message that can never be written could not be given up");
    }
}
