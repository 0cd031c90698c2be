//! The threads of the shards: how each starts, what it looks after, and when it ends.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use natsway_boot::BrokerConfig;
use natsway_routes::watch::ActiveRoutes;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::connection::{self, Leaving};
use crate::listener::{Accepted, ShardHandle};
use crate::memory::LOOK_INTERVAL;
use crate::metrics::ShardMetrics;
use crate::settings::Settings;
use crate::shard::Shard;

/// Connections that may wait for a shard to take them over; the listener waits when there are more.
const HANDOVER: usize = 256;

/// The shards of a gateway.
pub(crate) struct CoreThreads(Vec<JoinHandle<()>>);

impl CoreThreads {
    /// Starts them all; gives them as the listener sees them, too. They end when their last
    /// connection does, once nobody can hand them another.
    ///
    /// # Errors
    /// A thread or a runtime cannot be had.
    pub(crate) fn start(
        settings: &Arc<Settings>,
        active_routes: &ActiveRoutes,
        broker: &BrokerConfig,
        leaving: &Leaving,
    ) -> io::Result<(CoreThreads, Vec<ShardHandle>)> {
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for number in 0..settings.shards.get() {
            let (connections, handed_over) = mpsc::channel(HANDOVER);
            let metrics = Arc::<ShardMetrics>::default();
            handles.push(ShardHandle { connections, metrics: Arc::clone(&metrics) });
            let shard = ShardThread {
                settings: Arc::clone(settings),
                metrics,
                active_routes: active_routes.clone(),
                broker: broker.clone(),
                leaving: leaving.child(),
            };
            threads.push(shard.spawn(number, handed_over)?);
        }
        Ok((CoreThreads(threads), handles))
    }

    /// How many of the threads failed, once all have ended. They are joined on a thread of their
    /// own rather than on the runtime's: that would not end before they do, and the drain timeout
    /// would be none.
    pub(crate) async fn join(self) -> Option<usize> {
        let (ended, all_ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let failed = self.0.into_iter().filter_map(|shard| shard.join().err()).count();
            // Nobody listens any more once the limit has passed.
            ended.send(failed).ok();
        });
        all_ended.await.ok()
    }
}

/// What a shard's thread starts from.
struct ShardThread {
    settings: Arc<Settings>,
    metrics: Arc<ShardMetrics>,
    active_routes: ActiveRoutes,
    broker: BrokerConfig,
    leaving: Leaving,
}

impl ShardThread {
    fn spawn(
        self,
        number: usize,
        handed_over: mpsc::Receiver<Accepted>,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name(format!("shard-{number}"))
            .spawn(move || LocalSet::new().block_on(&runtime, self.run(handed_over)))
    }

    /// Serves connections until the listener is closed and the last connection has ended.
    async fn run(self, mut handed_over: mpsc::Receiver<Accepted>) {
        let shard = Shard::new(self.settings, Arc::clone(&self.metrics), self.active_routes);
        shard.dispatcher.pools().keep_connected(&self.broker);
        let waiting = Rc::clone(&shard);
        spawn_local(async move { waiting.admission.look_after().await });
        let memory = Rc::clone(&shard.memory);
        spawn_local(async move {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                memory.tick();
            }
        });
        let following = Rc::clone(&shard);
        spawn_local(async move {
            let goes_by = |revision| following.metrics.goes_by(revision);
            following.dispatcher.routes().follow(goes_by).await;
        });
        let connections = TaskTracker::new();
        while let Some(Accepted { stream, peer, permit }) = handed_over.recv().await {
            let (shard, leaving, metrics) =
                (Rc::clone(&shard), self.leaving.clone(), Arc::clone(&self.metrics));
            connections.spawn_local(async move {
                match TcpStream::from_std(stream) {
                    Ok(stream) => connection::serve(shard, stream, peer, leaving).await,
                    Err(error) => warn!(%error, "accepted connection not served"),
                }
                metrics.connections.add(-1);
                drop(permit);
            });
        }
        connections.close();
        connections.wait().await;
    }
}
