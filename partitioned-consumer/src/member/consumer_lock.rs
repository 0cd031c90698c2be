//! One instance of a member at a time creates or deletes the member's consumer.
//!
//! A broker that stands alone (2.15.1 and before; see nats-server's pull request 8491) mishandles
//! two such requests at the same time: the loser of two creations tears down the winner's files and
//! registration, and a creation while a deletion is being finished begins from the files of the
//! deleted. What is left delivers to one instance and is invisible to everybody else. So instances
//! lock it, by a key in a bucket of our own whose entries expire by themselves. Whoever may not use
//! the bucket goes on without.

use std::time::Duration;

use async_nats::jetstream::{self, consumer, kv};
use natsway_stores::definitions::{CONSUMER_LOCKS, consumer_locks};
use tokio::time::{Instant, sleep};

use super::plan::ConsumerPlan;
use crate::api::{self, ApiError};

/// How long others wait for the lock; it is held for milliseconds, unless its holder is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// The lock of a member's consumer; to be released.
struct ConsumerLock {
    store: kv::Store,
    key: String,
}

impl ConsumerLock {
    /// Waits for the lock; `None` when it cannot be had, and the work goes on without.
    async fn acquire(context: &jetstream::Context, plan: &ConsumerPlan) -> Option<Self> {
        let store = bucket(context, &plan.stream).await?;
        let key = format!("{}.{}", plan.stream, plan.consumer);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match store.create(&key, "".into()).await {
                Ok(_) => return Some(Self { store, key }),
                Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
                    sleep(Duration::from_millis(fastrand::u64(5..25))).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the consumer could not be locked");
                    return None;
                }
            }
        }
        None
    }

    async fn release(self) {
        if let Err(error) = self.store.purge(&self.key).await {
            tracing::debug!(%error, "a lock was not released; it will expire");
        }
    }
}

/// The bucket, as safe as the stream of which a consumer is made.
async fn bucket(context: &jetstream::Context, stream: &str) -> Option<kv::Store> {
    if let Ok(store) = context.get_key_value(CONSUMER_LOCKS).await {
        return Some(store);
    }
    let replicas = api::replicas_of(context, stream).await;
    natsway_stores::open_or_make(context, consumer_locks(replicas)).await.ok()
}

/// Creates the consumer, or finds it with the very same settings.
pub(crate) async fn create(
    context: &jetstream::Context,
    plan: &ConsumerPlan,
) -> Result<consumer::Info, ApiError> {
    let lock = ConsumerLock::acquire(context, plan).await;
    let created = api::create_consumer(context, &plan.stream, &plan.consumer, &plan.config).await;
    if let Some(lock) = lock {
        lock.release().await;
    }
    created
}

/// Deletes the consumer; says whether it was there.
pub(crate) async fn delete(
    context: &jetstream::Context,
    plan: &ConsumerPlan,
) -> Result<bool, ApiError> {
    let lock = ConsumerLock::acquire(context, plan).await;
    let deleted = api::delete_consumer(context, &plan.stream, &plan.consumer).await;
    if let Some(lock) = lock {
        lock.release().await;
    }
    deleted
}
