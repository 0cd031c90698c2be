//! Which gateway drives: whoever holds the one key of a bucket that forgets it after some seconds.
//!
//! The lease only saves duplicate work. Two who drive at once, or one who was frozen and does not know that it has lost
//! the lease, do no harm: each step is one write over the revision that it was decided on.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, kv, stream::StorageType};
use tokio::sync::watch;
use tracing::{debug, info};

/// The bucket.
const BUCKET: &str = "natsway-lease";

/// Its only key.
const KEY: &str = "rollouts";

/// How long a lease lives that is not renewed.
const LIFETIME: Duration = Duration::from_secs(3);

/// How often it is renewed, and asked for by the others.
const PACE: Duration = Duration::from_millis(750);

/// Holds the lease, or tries to, as long as it is wanted; says in `held` whether it does. Its bucket is made with so
/// many copies, so that it outlives a broker as the routes do.
pub async fn keep(
    client: Client,
    id: String,
    replicas: usize,
    mut wanted: watch::Receiver<bool>,
    held: watch::Sender<bool>,
) {
    let mut lease = None;
    loop {
        if !*wanted.borrow_and_update() {
            if let Some(Lease { bucket, revision }) = lease.take() {
                // Lets the next one in at once; otherwise it waits for the lifetime.
                bucket.delete_expect_revision(KEY, Some(revision)).await.ok();
            }
            held.send_if_modified(std::mem::take);
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        }
        lease = match tokio::time::timeout(LIFETIME / 2, renew(&client, &id, replicas, lease)).await {
            Ok(Ok(lease)) => Some(lease),
            Ok(Err(error)) => {
                debug!(%error, "another gateway drives the rollouts");
                None
            }
            Err(_) => None,
        };
        let holds = lease.is_some();
        if held.send_replace(holds) != holds {
            info!(holds, "lease to drive the rollouts");
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

struct Lease {
    bucket: kv::Store,
    revision: u64,
}

async fn renew(
    client: &Client,
    id: &str,
    replicas: usize,
    lease: Option<Lease>,
) -> Result<Lease, async_nats::Error> {
    if let Some(Lease { bucket, revision }) = lease {
        let revision = bucket.update(KEY, id.to_owned().into(), revision).await?;
        return Ok(Lease { bucket, revision });
    }
    let context = jetstream::new(client.clone());
    let bucket = match context.get_key_value(BUCKET).await {
        Ok(bucket) => bucket,
        Err(_) => context.create_key_value(config(replicas)).await?,
    };
    let revision = bucket.create(KEY, id.to_owned().into()).await?;
    Ok(Lease { bucket, revision })
}

fn config(replicas: usize) -> kv::Config {
    kv::Config {
        bucket: BUCKET.to_owned(),
        description: "natsway: which gateway drives the rollouts".to_owned(),
        max_age: LIFETIME,
        history: 1,
        num_replicas: replicas,
        storage: StorageType::Memory,
        ..kv::Config::default()
    }
}
