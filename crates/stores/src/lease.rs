//! Who of several acts: whoever holds a key of a bucket whose entries do not last.
//!
//! A lease saves duplicate work and nothing else. One that was frozen does not know that it has
//! lost the lease, so whatever is done under it must do no harm when two do it.

use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::kv::{self, CreateErrorKind, UpdateErrorKind};
use async_nats::jetstream::stream;
use tracing::{debug, info, warn};

use crate::open_or_make;

/// A lease that can be had.
#[derive(Clone, Debug)]
pub struct Lease {
    client: Client,
    bucket: stream::Config,
    key: String,
    holder: String,
}

/// Why it is not ours yet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LeaseRefusal {
    Taken,
    Failed(String),
}

/// A lease that is held.
#[derive(Debug)]
pub struct HeldLease {
    store: kv::Store,
    key: String,
    holder: String,
    times: LeaseTimes,
    revision: u64,
    renewed: Instant,
}

/// The times of a lease, all of them from how long an entry of its bucket lasts.
#[derive(Clone, Copy, Debug)]
struct LeaseTimes {
    lasts: Duration,
    /// Between two renewals, and between two attempts of others to get it.
    pace: Duration,
    /// For one attempt to have or renew it.
    attempt: Duration,
    /// For one request to the broker, so that what it says is here within the attempt.
    request: Duration,
}

impl LeaseTimes {
    fn of(lasts: Duration) -> Self {
        Self { lasts, pace: lasts / 4, attempt: lasts / 2, request: lasts * 3 / 8 }
    }
}

impl Lease {
    /// The lease `key` in `bucket`, for whoever is called `holder`. The bucket is made if it is
    /// not there; its `max_age` is how long the lease lasts that is not renewed.
    pub fn new(
        client: Client,
        bucket: stream::Config,
        key: impl Into<String>,
        holder: impl Into<String>,
    ) -> Self {
        Self { client, bucket, key: key.into(), holder: holder.into() }
    }

    /// The key, by which those that stand in for each other are known.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Waits until it is ours, and logs why it is not whenever that changes.
    ///
    /// # Cancel safety
    /// Cancelling may leave it with us until it lapses; nothing else.
    pub async fn acquire(&self) -> HeldLease {
        let times = LeaseTimes::of(self.bucket.max_age);
        let mut logged = None;
        loop {
            match self.try_acquire(times).await {
                Ok(held) => return held,
                Err(refusal) if logged.as_ref() == Some(&refusal) => {}
                Err(refusal) => {
                    match &refusal {
                        LeaseRefusal::Taken => {
                            info!(lease = %self.key, "another one leads, standing by")
                        }
                        LeaseRefusal::Failed(error) => {
                            warn!(lease = %self.key, %error, "no lease, trying again")
                        }
                    }
                    logged = Some(refusal);
                }
            }
            tokio::time::sleep(times.pace).await;
        }
    }

    async fn try_acquire(&self, times: LeaseTimes) -> Result<HeldLease, LeaseRefusal> {
        let began = Instant::now();
        let acquired = async {
            let mut context = jetstream::new(self.client.clone());
            context.set_timeout(times.request);
            let store = open_or_make(&context, self.bucket.clone()).await;
            let store = store.map_err(|error| LeaseRefusal::Failed(error.to_string()))?;
            let created = store.create(&self.key, self.holder.clone().into()).await;
            let revision = created.map_err(|error| match error.kind() {
                CreateErrorKind::AlreadyExists => LeaseRefusal::Taken,
                _ => LeaseRefusal::Failed(error.to_string()),
            })?;
            let (key, holder) = (self.key.clone(), self.holder.clone());
            Ok(HeldLease { store, key, holder, times, revision, renewed: began })
        };
        let acquired = tokio::time::timeout(times.attempt, acquired).await;
        acquired
            .unwrap_or_else(|_| Err(LeaseRefusal::Failed("the broker does not answer".to_owned())))
    }
}

impl HeldLease {
    /// Renews it for as long as it lasts; returns when it is lost. A renewal that fails is tried
    /// again until the last one that was made has lapsed, or somebody wrote the key: that may be
    /// our own renewal, when it reached the broker and its answer did not reach us.
    ///
    /// # Cancel safety
    /// Cancelling may leave a renewal under way, after which the lease lapses by itself.
    pub async fn keep(&mut self) {
        loop {
            tokio::time::sleep(self.times.pace).await;
            let began = Instant::now();
            let renewed = self.store.update(&self.key, self.holder.clone().into(), self.revision);
            match tokio::time::timeout(self.times.attempt, renewed).await {
                Ok(Ok(revision)) => {
                    self.revision = revision;
                    self.renewed = began;
                }
                Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => return,
                Ok(Err(error)) => debug!(%error, "lease not renewed"),
                Err(_) => debug!("lease not renewed: the broker does not answer"),
            }
            if self.renewed.elapsed() >= self.times.lasts {
                return;
            }
        }
    }

    /// Gives it back, so that another one need not wait.
    pub async fn release(self) {
        let released = self.store.delete_expect_revision(&self.key, Some(self.revision));
        if !matches!(tokio::time::timeout(self.times.attempt, released).await, Ok(Ok(()))) {
            debug!("lease not given back; it lapses by itself");
        }
    }
}
