//! Which gateway drives: whoever holds the one key of a bucket that forgets it after some seconds.
//!
//! The lease only saves duplicate work. Two who drive at once, or one who was frozen and does not
//! know that it has lost the lease, do no harm: each step is one write over the revision that it
//! was decided on.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, kv};
use natsway_stores::definitions::{ROLLOUT_LEASE_LASTS, rollout_lease};
use natsway_stores::open_or_make;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// Its only key.
const KEY: &str = "rollouts";

/// How long one request to the broker may take, so that what it says is here within [`TRY`].
const REQUEST: Duration = Duration::from_millis(1_000);

/// How long one try to have or renew the lease may take.
const TRY: Duration = ROLLOUT_LEASE_LASTS.checked_div(2).expect("two is not zero");

/// How often it is renewed, and asked for by the others.
const PACE: Duration = Duration::from_millis(750);

/// Holds the lease, or tries to, as long as it is wanted; says in `held` whether it does. Its
/// bucket is made with so many copies, so that it outlives a broker as the routes do.
pub async fn keep(
    client: Client,
    id: String,
    replicas: usize,
    mut wanted: watch::Receiver<bool>,
    held: watch::Sender<bool>,
) {
    let (mut lease, mut complained) = (None, false);
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
        lease = match tokio::time::timeout(TRY, renew(&client, &id, replicas, lease)).await {
            Ok(Ok(lease)) => {
                complained = false;
                Some(lease)
            }
            Ok(Err(error)) if error.is::<natsway_stores::StoreError>() => {
                if !std::mem::replace(&mut complained, true) {
                    warn!(%error, "no lease, so no rollout is driven from here; trying again");
                }
                None
            }
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
    let mut context = jetstream::new(client.clone());
    context.set_timeout(REQUEST);
    let bucket = open_or_make(&context, rollout_lease(replicas)).await?;
    let revision = bucket.create(KEY, id.to_owned().into()).await?;
    Ok(Lease { bucket, revision })
}
