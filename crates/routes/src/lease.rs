//! How long a gateway may use tunnels without having heard of its routes.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use async_nats::{Client, SubscribeError};
use futures_util::StreamExt;
use natsway_boot::Clock;
use natsway_wire::frame::LEASE;
use tokio::time::MissedTickBehavior;

/// How often a lease is confirmed: a few times while it lasts.
pub(crate) const CONFIRM_INTERVAL: Duration = Duration::from_millis(2_500);

/// Until when the threads of a gateway may use tunnels. Times are in milliseconds of one clock that
/// counts suspension.
#[derive(Debug, Default)]
pub struct Lease {
    /// 0 when it was never confirmed.
    until_ms: AtomicU64,
}

impl Lease {
    /// Takes note that the routes in force were the newest at `asked_ms`, when they were asked for.
    pub fn confirm(&self, asked_ms: u64) {
        let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(asked_ms.saturating_add(lease_ms), Release);
    }

    /// Whether tunnels may be used now. To be asked at every write: a thread that stood still may
    /// have what was fit to be sent before.
    pub fn holds(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms.load(Acquire)
    }

    /// Confirms it for ever, as long as the broker brings back what is said to oneself: for routes
    /// that do not change, which no leader of a bucket could confirm. A gateway that is cut off
    /// uses no tunnels then, as one whose routes may have changed does not.
    ///
    /// Who may not publish to its own inbox has no lease.
    ///
    /// # Errors
    /// The connection is closed for good.
    ///
    /// # Cancel safety
    /// Dropping the future ends the confirmations, and the lease some seconds later.
    pub async fn follow_connection(
        &self,
        client: &Client,
        clock: Clock,
    ) -> Result<(), SubscribeError> {
        let inbox = client.new_inbox();
        let mut echoes = client.subscribe(inbox.clone()).await?;
        let mut ticks = tokio::time::interval(CONFIRM_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asked_ms = clock.unix_ms_at(Instant::now());
            let echo = async {
                client.publish(inbox.clone(), asked_ms.to_string().into()).await.ok()?;
                loop {
                    // An echo of before is no answer to this one.
                    let echo = echoes.next().await?;
                    if echo.payload == asked_ms.to_string() {
                        return Some(());
                    }
                }
            };
            if let Ok(Some(())) = tokio::time::timeout(LEASE / 2, echo).await {
                self.confirm(asked_ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    #[test]
    fn a_lease_holds_from_when_it_was_asked_for() {
        let lease = Lease::default();
        assert!(!lease.holds(0));
        let lease_ms = LEASE.as_millis() as u64;
        lease.confirm(NOW_MS);
        assert!(lease.holds(NOW_MS + lease_ms - 1) && !lease.holds(NOW_MS + lease_ms));
        // An answer that was under way for long takes nothing back.
        lease.confirm(NOW_MS - 1_000);
        assert!(lease.holds(NOW_MS + lease_ms - 1));
    }
}
