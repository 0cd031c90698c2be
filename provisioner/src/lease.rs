//! Who of several provisioners acts: the one that holds a key of a bucket whose entries do not
//! last.
//!
//! The lease only saves duplicate work. Two that both believe to lead do no harm: the backends' own
//! state is the truth, and a directory of processes is locked besides.

use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::kv::{self, CreateErrorKind, UpdateErrorKind};
use bytes::Bytes;
use natsway_stores::definitions::provisioner_leases;
use natsway_stores::open_or_make;
use tracing::{debug, info, warn};

/// How long a lease lasts that is not renewed.
pub use natsway_stores::definitions::PROVISIONER_LEASE_LASTS as LASTS;

/// How often it is renewed, and how often others try to get it.
const PACE: Duration = Duration::from_secs(1);

/// How long one try to have or renew it may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long the broker may take for one request, so that what it says is here in time.
const REQUEST: Duration = Duration::from_millis(1_500);

/// A lease that can be had.
#[derive(Clone, Debug)]
pub struct Lease {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    replicas: usize,
}

/// Why it is not ours yet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    Taken,
    Failed(String),
}

/// A lease that is held.
#[derive(Debug)]
pub struct HeldLease {
    store: kv::Store,
    key: String,
    id: String,
    revision: u64,
    renewed: Instant,
}

impl Lease {
    /// The lease `key` in `bucket`, for whoever is called `id`.
    pub fn new(
        client: Client,
        bucket: impl Into<String>,
        key: impl Into<String>,
        id: impl Into<String>,
    ) -> Lease {
        Lease { client, bucket: bucket.into(), key: key.into(), id: id.into(), replicas: 1 }
    }

    /// Copies of the bucket when it has to be made, 1 unless said: with 3, the lease outlives a
    /// broker of a cluster.
    pub fn replicas(self, replicas: usize) -> Lease {
        Lease { replicas, ..self }
    }

    /// The key, by which provisioners that stand in for each other are known.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Waits until it is ours.
    ///
    /// # Cancel safety
    /// Cancelling may leave it with us until it lapses; nothing else.
    pub async fn acquire(&self) -> HeldLease {
        let mut told = None;
        loop {
            match self.try_acquire().await {
                Ok(held) => return held,
                Err(refusal) if told.as_ref() == Some(&refusal) => {}
                Err(refusal) => {
                    match &refusal {
                        Refusal::Taken => {
                            info!(lease = %self.key, "another one leads, standing by")
                        }
                        Refusal::Failed(error) => {
                            warn!(lease = %self.key, %error, "no lease, trying again")
                        }
                    }
                    told = Some(refusal);
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn try_acquire(&self) -> Result<HeldLease, Refusal> {
        let began = Instant::now();
        let acquired = async {
            let store = self.store().await.map_err(Refusal::Failed)?;
            let created = store.create(&self.key, Bytes::copy_from_slice(self.id.as_bytes())).await;
            let revision = created.map_err(|error| match error.kind() {
                CreateErrorKind::AlreadyExists => Refusal::Taken,
                _ => Refusal::Failed(error.to_string()),
            })?;
            let (key, id) = (self.key.clone(), self.id.clone());
            Ok(HeldLease { store, key, id, revision, renewed: began })
        };
        let acquired = tokio::time::timeout(TIMEOUT, acquired).await;
        acquired.unwrap_or_else(|_| Err(Refusal::Failed("the broker does not answer".to_owned())))
    }

    async fn store(&self) -> Result<kv::Store, String> {
        let mut context = jetstream::new(self.client.clone());
        context.set_timeout(REQUEST);
        let bucket = provisioner_leases(&self.bucket, self.replicas);
        open_or_make(&context, bucket).await.map_err(|error| error.to_string())
    }
}

impl HeldLease {
    /// Renews it for as long as it lasts; returns when it is lost.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing but the renewal that was due.
    pub async fn keep(&mut self) {
        loop {
            tokio::time::sleep(PACE).await;
            let began = Instant::now();
            let value = Bytes::copy_from_slice(self.id.as_bytes());
            let renewed = self.store.update(&self.key, value, self.revision);
            match tokio::time::timeout(TIMEOUT, renewed).await {
                Ok(Ok(revision)) => {
                    self.revision = revision;
                    self.renewed = began;
                }
                Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => return,
                Ok(Err(error)) => debug!(%error, "lease not renewed"),
                Err(_) => debug!("lease not renewed: the broker does not answer"),
            }
            if self.renewed.elapsed() >= LASTS {
                return;
            }
        }
    }

    /// Gives it back, so that another one need not wait.
    pub async fn release(self) {
        let released = self.store.delete_expect_revision(&self.key, Some(self.revision));
        if !matches!(tokio::time::timeout(TIMEOUT, released).await, Ok(Ok(()))) {
            debug!("lease not given back; it lapses by itself");
        }
    }
}
