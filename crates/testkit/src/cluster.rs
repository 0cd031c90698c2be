//! Several brokers, routed to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::future::join_all;

use crate::broker::{BrokerBuilder, Membership, POOLED_ROUTES, TestBroker};
use crate::eventually::eventually;
use crate::ports::free_port;

/// Routes are dialled once a second, and a JetStream cluster elects its leader after that.
const READY: Duration = Duration::from_secs(60);

/// One more carries the system account.
const ROUTES_BETWEEN_TWO: usize = POOLED_ROUTES + 1;

/// How long the same routes are seen that stay: both brokers dial each other at the start, and
/// close what is there twice.
const SETTLED: Duration = Duration::from_millis(100);

/// A cluster of brokers, used like a slice of them: `cluster[0].kill9()`.
#[derive(Debug)]
pub struct Cluster(Vec<TestBroker>);

impl BrokerBuilder {
    /// Starts `size` brokers with these settings as one cluster; see [`Cluster`].
    ///
    /// # Panics
    /// As [`start`](Self::start), and when a port was set or the size is 0.
    pub async fn start_cluster(self, size: usize) -> Cluster {
        Cluster::launch(self, size).await
    }
}

impl Cluster {
    /// Starts `size` brokers without JetStream; all routes are up when this returns. With other
    /// settings: `TestBroker::builder().jetstream().start_cluster(3)`, and JetStream has its leader
    /// then.
    ///
    /// # Panics
    /// As [`BrokerBuilder::start`], and when the size is 0.
    pub async fn start(size: usize) -> Self {
        TestBroker::builder().start_cluster(size).await
    }

    async fn launch(settings: BrokerBuilder, size: usize) -> Self {
        assert!(size > 0, "a cluster has at least one broker");
        let all: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let brokers = all
            .iter()
            .map(|&port| settings.clone().member(Membership { port, all: all.clone() }).start());
        let cluster = Self(join_all(brokers).await);
        cluster.ready().await;
        cluster
    }

    /// The addresses of all brokers, with commas between them, as `NATS_URL` takes them.
    pub fn url(&self) -> String {
        self.iter().map(TestBroker::url).collect::<Vec<_>>().join(",")
    }

    /// Waits until every broker has all its routes to every other and is healthy: after the start,
    /// or when all members that were stopped have been started again. Before that, a message
    /// between two of them can be lost.
    ///
    /// # Panics
    /// When that takes longer than 60 s.
    pub async fn ready(&self) {
        let others = self.len() - 1;
        for broker in self.iter() {
            eventually(READY, async || {
                let routes = routes(broker).await.map_err(|error| error.to_string())?;
                if routes.len() != others
                    || routes.values().any(|ids| ids.len() != ROUTES_BETWEEN_TWO)
                {
                    return Err(format!(
                        "{} has routes to {routes:?}, expected {others} others",
                        broker.name()
                    ));
                }
                tokio::time::sleep(SETTLED).await;
                let later = self::routes(broker).await.map_err(|error| error.to_string())?;
                if later != routes {
                    return Err(format!("{} had routes {routes:?}, then {later:?}", broker.name()));
                }
                broker.monitor("/healthz").await.map_err(|error| error.to_string())
            })
            .await;
        }
    }
}

impl Deref for Cluster {
    type Target = [TestBroker];

    fn deref(&self) -> &[TestBroker] {
        &self.0
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut [TestBroker] {
        &mut self.0
    }
}

/// The ids of the routes that a broker has to each other one, by its name.
async fn routes(broker: &TestBroker) -> io::Result<BTreeMap<String, BTreeSet<u64>>> {
    let page = broker.monitor("/routez").await?;
    let mut ids: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for route in page["routes"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let remote = route["remote_name"].as_str().unwrap_or("?").to_owned();
        ids.entry(remote).or_default().insert(route["rid"].as_u64().unwrap_or_default());
    }
    Ok(ids)
}
