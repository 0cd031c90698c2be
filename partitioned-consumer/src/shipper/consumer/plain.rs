//! Reads subjects directly: core mode, and what a push consumer of the published set-up delivers.

use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::intake::{Intake, Refused};

/// See the module.
pub(super) struct PlainReader {
    pub(super) client: Client,
    pub(super) subscription: Subscriber,
    pub(super) intake: Intake,
}

impl PlainReader {
    /// Reads until `stop`, and has written what was read. Messages of a push consumer are acknowledged when they are.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let context = jetstream::new(self.client.clone());
        let mut receipts = FuturesUnordered::new();
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                Some(written) = receipts.next(), if !receipts.is_empty() => acknowledge(written).await,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    // What is here already is still written; unsubscribing ends the subscription behind it.
                    if self.subscription.unsubscribe().await.is_err() {
                        break;
                    }
                }
                message = self.subscription.next() => {
                    let Some(message) = message else { break };
                    let message = jetstream::Message { message, context: context.clone() };
                    let sequence = message.info().map_or(0, |info| info.stream_sequence);
                    let payload = message.payload.clone();
                    let offered = self.intake.offer(&message.subject, message.headers.as_ref(), payload, sequence);
                    match offered.await {
                        Ok(receipt) if sequence > 0 => receipts.push(async move {
                            let written = receipt.await.is_ok();
                            written.then_some(message)
                        }),
                        Ok(_) => {}
                        Err(Refused) => give_up(&message).await,
                    }
                }
            }
        }
        while let Some(written) = receipts.next().await {
            acknowledge(written).await;
        }
    }
}

async fn acknowledge(written: Option<jetstream::Message>) {
    let Some(message) = written else { return };
    if let Err(error) = message.ack().await {
        warn!(%error, "an acknowledgement could not be sent; the message is known when it comes again");
    }
}

async fn give_up(message: &jetstream::Message) {
    if message.reply.is_some()
        && let Err(error) = message.ack_with(AckKind::Term).await
    {
        warn!(%error, "a message that can never be written could not be given up");
    }
}
