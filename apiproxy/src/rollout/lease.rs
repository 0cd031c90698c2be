//! Which gateway drives: whoever holds the lease of the rollouts.
//!
//! Two who drive at once, or one who was frozen and does not know that it has lost the lease, do no
//! harm: each step is one write over the revision that it was decided on.

use async_nats::Client;
use natsway_stores::definitions::rollout_lease;
use natsway_stores::lease::Lease;
use tokio::sync::watch;
use tracing::info;

/// The only key of its bucket.
const KEY: &str = "rollouts";

/// Holds the lease, or tries to, as long as it is wanted; says in `held` whether it does. Its
/// bucket is made with so many copies, so that it outlives a broker as the routes do. Ends when
/// nobody can want it any more.
pub async fn keep(
    client: Client,
    id: String,
    replicas: usize,
    mut wanted: watch::Receiver<bool>,
    held: watch::Sender<bool>,
) {
    let lease = Lease::new(client, rollout_lease(replicas), KEY, id);
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        let mut hold = tokio::select! {
            hold = lease.acquire() => hold,
            end = unwanted(&mut wanted) => match end {
                Unwanted::ForNow => continue,
                Unwanted::ForEver => return,
            },
        };
        held.send_replace(true);
        info!(holds = true, "lease to drive the rollouts");
        let end = tokio::select! {
            () = hold.keep() => Unwanted::ForNow,
            end = unwanted(&mut wanted) => {
                // Lets the next one in at once; otherwise it waits for the lifetime.
                hold.release().await;
                end
            }
        };
        held.send_replace(false);
        info!(holds = false, "lease to drive the rollouts");
        if let Unwanted::ForEver = end {
            return;
        }
    }
}

/// For how long nobody wants the lease.
enum Unwanted {
    ForNow,
    /// Whoever could want it is gone.
    ForEver,
}

async fn unwanted(wanted: &mut watch::Receiver<bool>) -> Unwanted {
    match wanted.wait_for(|wanted| !wanted).await {
        Ok(_) => Unwanted::ForNow,
        Err(_) => Unwanted::ForEver,
    }
}
