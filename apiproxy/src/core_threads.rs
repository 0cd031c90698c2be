//! The threads of the cores: how each starts, what it looks after, and when it ends.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use natsway_boot::Broker;
use natsway_routes::watch::InForce;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::connection::{self, Leaving};
use crate::core::Core;
use crate::listener::{Accepted, Seat};
use crate::memory::LOOK_INTERVAL;
use crate::metrics::CoreMetrics;
use crate::settings::Settings;

/// Connections that may wait for a core to take them over; the listener waits when there are more.
const HANDOVER: usize = 256;

/// The cores of a gateway.
pub(crate) struct CoreThreads(Vec<JoinHandle<()>>);

impl CoreThreads {
    /// Starts them all; gives them as the listener sees them, too. They end when their last connection does, once
    /// nobody can hand them another.
    ///
    /// # Errors
    /// A thread or a runtime cannot be had.
    pub(crate) fn start(
        settings: &Arc<Settings>,
        in_force: &InForce,
        broker: &Broker,
        leaving: &Leaving,
    ) -> io::Result<(CoreThreads, Vec<Seat>)> {
        let (mut seats, mut threads) = (Vec::new(), Vec::new());
        for number in 0..settings.cores.get() {
            let (connections, handed_over) = mpsc::channel(HANDOVER);
            let metrics = Arc::<CoreMetrics>::default();
            seats.push(Seat { connections, metrics: Arc::clone(&metrics) });
            let core = CoreThread {
                settings: Arc::clone(settings),
                metrics,
                in_force: in_force.clone(),
                broker: broker.clone(),
                leaving: leaving.child(),
            };
            threads.push(core.spawn(number, handed_over)?);
        }
        Ok((CoreThreads(threads), seats))
    }

    /// How many of the threads failed, once all have ended. They are joined on a thread of their own rather than on the
    /// runtime's: that would not end before they do, and the drain limit would be none.
    pub(crate) async fn join(self) -> Option<usize> {
        let (ended, all_ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let failed = self.0.into_iter().filter_map(|core| core.join().err()).count();
            // Nobody listens any more once the limit has passed.
            ended.send(failed).ok();
        });
        all_ended.await.ok()
    }
}

/// What a core's thread starts from.
struct CoreThread {
    settings: Arc<Settings>,
    metrics: Arc<CoreMetrics>,
    in_force: InForce,
    broker: Broker,
    leaving: Leaving,
}

impl CoreThread {
    fn spawn(self, number: usize, handed_over: mpsc::Receiver<Accepted>) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name(format!("core-{number}"))
            .spawn(move || LocalSet::new().block_on(&runtime, self.run(handed_over)))
    }

    /// Serves connections until the listener is closed and the last connection has ended.
    async fn run(self, mut handed_over: mpsc::Receiver<Accepted>) {
        let core = Core::new(self.settings, Arc::clone(&self.metrics), self.in_force);
        core.dispatcher.pools().keep_connected(&self.broker);
        let waiting = Rc::clone(&core);
        spawn_local(async move { waiting.room.look_after().await });
        let memory = Rc::clone(&core.memory);
        spawn_local(async move {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                memory.look();
            }
        });
        let following = Rc::clone(&core);
        spawn_local(async move {
            let goes_by = |revision| following.metrics.goes_by(revision);
            following.dispatcher.routes().follow(goes_by).await;
        });
        let connections = TaskTracker::new();
        while let Some(Accepted { stream, peer, permit }) = handed_over.recv().await {
            let (core, leaving, metrics) =
                (Rc::clone(&core), self.leaving.clone(), Arc::clone(&self.metrics));
            connections.spawn_local(async move {
                match TcpStream::from_std(stream) {
                    Ok(stream) => connection::serve(core, stream, peer, leaving).await,
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
