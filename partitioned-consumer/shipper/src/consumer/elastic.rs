//! Reads the partitions that an elastic group gives to this consumer.
//!
//! The group's own copy of the stream is split by the whole subject, so a source stays in one
//! partition, and the member hands out a subject's messages one at a time, in order, also over
//! changes of the membership.

use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::receive::{Receiver, Stored};
use natsway_partitioned_consumer::{
    ElasticConfig, ElasticGroup, Error, MemberHandle, Message, OrderBy,
};

/// How long a crashed consumer keeps its partitions to itself, once it is dropped or comes back.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// Messages in hand; with those of the largest size they are some 64 MiB.
const BUFFER: usize = 128;
/// Sources that may have a message in one group of the writer.
const AT_ONCE: usize = 1024;
const RETRY: Duration = Duration::from_secs(1);
/// How long after a look at what was lost that had no answer the next one comes.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct ElasticReader {
    pub(super) context: jetstream::Context,
    pub(super) stream: String,
    pub(super) cluster: String,
    pub(super) member: String,
    pub(super) filter: String,
    pub(super) partitions: u32,
    pub(super) receiver: Receiver,
    pub(super) drain_timeout: Duration,
}

impl ElasticReader {
    /// The group, made by whoever comes first.
    pub(super) async fn group(&self) -> Result<ElasticGroup, Error> {
        let group = ElasticGroup::new(self.context.clone(), &self.stream, &self.cluster)?;
        // Made by another with other partitions, it is as good.
        if group.config().await.is_err() {
            group.create(&ElasticConfig::new(self.partitions).filter(&self.filter, [])).await?;
        }
        Ok(group)
    }

    /// Takes part until `stop`. Whoever watches over the membership adds and drops this member.
    pub(super) async fn run(self, group: ElasticGroup, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let mut member = match self.join(&group).await {
                Ok(member) => member,
                Err(error) => {
                    self.receiver.metrics().failed(error.to_string());
                    warn!(%error, "cannot take part in the group, trying again");
                    pause(&stop).await;
                    continue;
                }
            };
            info!(member = self.member, group = %group.name(), "Waiting for messages of the group");
            let mut is_shown = self.show_source_loss(&group).await;
            let mut loss = member.source_loss();
            loop {
                tokio::select! {
                    ended = member.done() => {
                        if let Err(error) = ended {
                            warn!(%error, "left the group, coming back");
                        }
                        pause(&stop).await;
                        break;
                    }
                    // The first value is of before any look; that another consumer has the pin is
                    // no news either.
                    Ok(()) = loss.changed() => self.receiver.metrics().source_loss(loss.borrow_and_update().messages),
                    () = tokio::time::sleep(LOOK_AGAIN), if !is_shown => {
                        is_shown = self.show_source_loss(&group).await;
                    }
                    () = stop.cancelled() => {
                        member.stop();
                        if let Err(error) = member.done().await {
                            warn!(%error, "left the group with an error");
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Shows what the group lost so far, for the pinned member alone looks again. What cannot be
    /// asked is not shown. Returns whether it is.
    async fn show_source_loss(&self, group: &ElasticGroup) -> bool {
        let Ok(Some(loss)) = group.source_loss().await else { return false };
        self.receiver.metrics().source_loss(loss.messages);
        true
    }

    async fn join(&self, group: &ElasticGroup) -> Result<MemberHandle, Error> {
        let template = pull::Config {
            ack_wait: ACK_WAIT,
            max_ack_pending: BUFFER as i64,
            ..Default::default()
        };
        let receiver = self.receiver.clone();
        let member =
            group.consume(&self.member).template(template).buffer(BUFFER).concurrency(AT_ONCE);
        let member =
            member.order_by(OrderBy::Subject).retry_delay(RETRY).drain_timeout(self.drain_timeout);
        member.handle(move |message| handle(receiver.clone(), message)).await
    }
}

/// Writes one message. `Ok` acknowledges it.
async fn handle(receiver: Receiver, message: Message) -> Result<(), &'static str> {
    let stored = Stored {
        sequence: source_sequence(&message),
        // When the group's copy took it, which is later than the stream did.
        at_unix_ns: message.stored_at_unix_ns().into(),
    };
    let offered = receiver
        .offer(message.subject(), message.headers(), message.payload().clone(), stored)
        .await;
    let Ok(receipt) = offered else {
        // It can never be written: out of the way with it.
        drop(message.term_with_reason("it cannot be written").await);
        return Ok(());
    };
    receipt.await.map_err(|_| "it was not written")
}

/// The sequence in the stream that the group copies from, which stays the same when the group is
/// made anew.
fn source_sequence(message: &Message) -> u64 {
    let header = message.headers().and_then(|headers| headers.get("Nats-Stream-Source"));
    let original = header.and_then(|header| header.as_str().split(' ').nth(1)?.parse().ok());
    original.unwrap_or_else(|| message.stream_sequence())
}

async fn pause(stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(RETRY) => {}
        () = stop.cancelled() => {}
    }
}
