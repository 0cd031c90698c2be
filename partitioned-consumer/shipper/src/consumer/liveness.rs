//! Who takes part in a shared cluster: each consumer says that it lives, and drops those that have
//! not for long.
//!
//! Being dropped by mistake costs a moment: a consumer that finds itself outside comes back.
//! Commits keep a dropped one that still writes from doing harm.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv};
use futures_util::TryStreamExt;
use natsway_stores::definitions::shipper_members;
use natsway_stores::open_or_make;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use natsway_partitioned_consumer::ElasticGroup;

/// See the module.
pub(super) struct Liveness {
    pub(super) context: jetstream::Context,
    pub(super) group: ElasticGroup,
    pub(super) member: String,
    pub(super) timeout: Duration,
    pub(super) replicas: usize,
}

/// Since when members have been silent, as seen by one that could look all the time: pure.
#[derive(Debug, Default)]
struct Silence(BTreeMap<String, Instant>);

impl Silence {
    /// Takes a look into account, and gives the members to drop.
    fn observe(
        &mut self,
        members: &[String],
        alive: &[String],
        now: Instant,
        timeout: Duration,
    ) -> Vec<String> {
        self.0.retain(|member, _| members.contains(member) && !alive.contains(member));
        let silent = members.iter().filter(|member| !alive.contains(member));
        silent
            .filter(|member| now - *self.0.entry((*member).clone()).or_insert(now) >= timeout)
            .cloned()
            .collect()
    }

    /// Nothing could be seen: what was silent before has to be silent anew.
    fn blind(&mut self) {
        self.0.clear();
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Liveness {
    /// Lives until `stop`, then leaves the membership.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut silence = Silence::default();
        let mut beat = tokio::time::interval(self.timeout / 4);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = false;
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = stop.cancelled() => break,
            }
            let beaten = tokio::select! {
                beaten = tokio::time::timeout(self.timeout, self.beat(&mut silence)) => {
                    beaten.unwrap_or_else(|_| Err("the broker does not answer".into()))
                }
                () = stop.cancelled() => break,
            };
            match beaten {
                Ok(()) => trouble = false,
                Err(error) => {
                    silence.blind();
                    if !std::mem::replace(&mut trouble, true) {
                        warn!(%error, "the members of the cluster cannot be seen");
                    }
                }
            }
        }
        let left = tokio::time::timeout(self.timeout / 2, self.leave()).await;
        if !matches!(left, Ok(Ok(()))) {
            warn!("could not leave the group; the others take over in a while");
        }
    }

    async fn beat(&self, silence: &mut Silence) -> Result<(), Failure> {
        let store = self.store().await?;
        store.put(self.key(&self.member), "".into()).await?;
        let members = self.group.config().await?.membership.names();
        if !members.contains(&self.member) {
            info!(member = self.member, "joining the group");
            self.group.add_members([self.member.as_str()]).await?;
        }
        let prefix = self.key("");
        let keys: Vec<String> = store.keys().await?.try_collect().await?;
        let alive: Vec<String> =
            keys.iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect();
        let dead = silence.observe(&members, &alive, Instant::now(), self.timeout);
        if !dead.is_empty() {
            warn!(members = ?dead, "dropping silent members, their partitions go to the others");
            self.group.drop_members(dead).await?;
        }
        Ok(())
    }

    async fn leave(&self) -> Result<(), Failure> {
        self.group.drop_members([self.member.as_str()]).await?;
        self.store().await?.delete(self.key(&self.member)).await?;
        Ok(())
    }

    async fn store(&self) -> Result<kv::Store, Failure> {
        Ok(open_or_make(&self.context, shipper_members(self.timeout, self.replicas)).await?)
    }

    fn key(&self, member: &str) -> String {
        format!("{}.{member}", self.group.name().key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_and_watched_silence_drops_a_member() {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (begin, timeout) = (Instant::now(), Duration::from_secs(10));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (members, alive) = (names(&["a", "b"]), names(&["a"]));
        let mut silence = Silence::default();
        assert!(silence.observe(&members, &alive, at(0), timeout).is_empty());
        assert!(silence.observe(&members, &members, at(8), timeout).is_empty());
        assert!(
            silence.observe(&members, &alive, at(12), timeout).is_empty(),
            "it spoke in between"
        );
        silence.blind();
        assert!(silence.observe(&members, &alive, at(30), timeout).is_empty(), "nobody watched");
        assert_eq!(silence.observe(&members, &alive, at(41), timeout), ["b"]);
    }
}
