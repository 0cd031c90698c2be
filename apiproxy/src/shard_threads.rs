//! The threads of the shards: how each starts, what it looks after, and when it ends.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use natsway_boot::BrokerConfig;
use natsway_caller::tunnels::{PipeConfig, TunnelConfig, Tunnels};
use natsway_caller::unary::{UnaryConfig, UnaryTunnels};
use natsway_routes::watch::ActiveRoutes;
use natsway_tunnel::joins::JoinLimits;
use natsway_tunnel::pipe::{Pace, PipeBroker, PipeMeter, PipeSettings};
use natsway_tunnel::preface::Kind;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::connection;
use crate::drain::DrainStages;
use crate::memory::LOOK_INTERVAL;
use crate::metrics::ShardMetrics;
use crate::results::{ShardResults, SharedResults};
use crate::settings::{PipeLimits, Settings};
use crate::shard::{INBOX_PREFIX, Shard};
use crate::shard_handle::{Accepted, Dialled, ShardHandle};
use crate::tunnel_listener::Offers;

/// Connections that may wait for a shard to take them over; the listener waits when there are more.
const HANDOVER: usize = 256;

/// Tunnels that may wait for a shard to take them over.
const TUNNELS_HANDOVER: usize = 256;

/// The shards of a gateway.
pub(crate) struct ShardThreads(Vec<JoinHandle<()>>);

impl ShardThreads {
    /// Starts them all; gives them as the listener sees them, too. They end when their last
    /// connection does, once nobody can hand them another.
    ///
    /// # Errors
    /// A thread or a runtime cannot be had.
    pub(crate) fn start(
        settings: &Arc<Settings>,
        active_routes: &ActiveRoutes,
        broker: &BrokerConfig,
        leaving: &DrainStages,
        offers: Option<Offers>,
        results: &SharedResults,
    ) -> io::Result<(Self, Vec<ShardHandle>)> {
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for number in 0..settings.shards.get() {
            let (connections, handed_over) = mpsc::channel(HANDOVER);
            let (tunnels, dialled) = mpsc::channel(TUNNELS_HANDOVER);
            let metrics = Arc::<ShardMetrics>::default();
            handles.push(ShardHandle { connections, tunnels, metrics: Arc::clone(&metrics) });
            let shard = ShardThread {
                settings: Arc::clone(settings),
                metrics,
                active_routes: active_routes.clone(),
                broker: broker.clone(),
                leaving: leaving.child(),
                offers: offers.clone(),
                dialled,
                results: results.clone(),
            };
            threads.push(shard.spawn(number, handed_over)?);
        }
        Ok((Self(threads), handles))
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

/// The longest answer by a tunnel: what a broker takes by default.
const UNARY_BYTES: u32 = 1 << 20;

/// Takes the tunnels that workers dial, and those by pipes, as long as the shard lives.
async fn take_tunnels(
    shard: Rc<Shard>,
    number: usize,
    offers: Offers,
    broker: BrokerConfig,
    mut dialled: mpsc::Receiver<Dialled>,
) {
    let settings = shard.settings.tunnels.as_ref();
    let pipes = settings.and_then(|tunnels| tunnels.pipes);
    let limits = JoinLimits::of(settings.map_or(1, |tunnels| tunnels.most.get()));
    let config = TunnelConfig {
        offer: offers.of(number, false),
        acceptor: offers.acceptor(),
        settings: settings.map_or_else(Default::default, |tunnels| tunnels.http2),
        limits,
        pipes: pipes.map(|limits| pipe_config(broker, limits, &shard.metrics.tunnels.pipe_meter)),
    };
    let tunnels = Tunnels::new(config, Arc::clone(&shard.metrics.tunnels));
    shard.dispatcher.offer(Rc::clone(&tunnels));
    let active_routes = shard.dispatcher.routes().active_routes();
    let config = UnaryConfig {
        offer: offers.of(number, true),
        gateway: offers.gateway().to_owned(),
        acceptor: offers.acceptor(),
        limits,
        payload_bytes: UNARY_BYTES,
        lease: Arc::clone(&active_routes.lease),
        clock: active_routes.clock,
    };
    let unary = UnaryTunnels::new(config, Arc::clone(&shard.metrics.tunnels));
    shard.dispatcher.offer_unary(Rc::clone(&unary));
    while let Some(Dialled { kind, stream }) = dialled.recv().await {
        match (kind, TcpStream::from_std(stream)) {
            (Kind::Streams, Ok(stream)) => drop(spawn_local(Rc::clone(&tunnels).accept(stream))),
            (Kind::Unary, Ok(stream)) => drop(spawn_local(Rc::clone(&unary).accept(stream))),
            (_, Err(error)) => warn!(%error, "tunnel not taken"),
        }
    }
}

fn pipe_config(broker: BrokerConfig, limits: PipeLimits, meter: &Arc<PipeMeter>) -> PipeConfig {
    let PipeLimits { most, window_bytes, bytes_per_second } = limits;
    let name = "apiproxy pipes".to_owned();
    PipeConfig {
        broker: Arc::new(PipeBroker::new(broker, name, INBOX_PREFIX, window_bytes)),
        settings: PipeSettings {
            window_bytes,
            pace: bytes_per_second.map(|rate| Arc::new(Pace::new(rate))),
            meter: Arc::clone(meter),
        },
        most,
    }
}

/// What a shard's thread starts from.
struct ShardThread {
    settings: Arc<Settings>,
    metrics: Arc<ShardMetrics>,
    active_routes: ActiveRoutes,
    broker: BrokerConfig,
    leaving: DrainStages,
    /// What the gateway offers of tunnels.
    offers: Option<Offers>,
    /// Connections that workers dialled.
    dialled: mpsc::Receiver<Dialled>,
    results: SharedResults,
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
            .spawn(move || LocalSet::new().block_on(&runtime, self.run(number, handed_over)))
    }

    /// Serves connections until the listener is closed and the last connection has ended.
    async fn run(self, number: usize, mut handed_over: mpsc::Receiver<Accepted>) {
        let closing = self.leaving.closing.clone();
        let shard = Shard::new(
            self.settings,
            Arc::clone(&self.metrics),
            self.active_routes,
            closing,
            ShardResults::new(self.results),
        );
        if let Some(offers) = self.offers {
            let broker = self.broker.clone();
            let taking = take_tunnels(Rc::clone(&shard), number, offers, broker, self.dialled);
            spawn_local(taking);
        }
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
