//! One shard of the gateway: a thread with a runtime, a dispatcher and metrics of its own.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use natsway_caller::codec_pools::CodecPools;
use natsway_caller::dispatch::Dispatcher;
use natsway_caller::pool::Role;
use natsway_caller::route_view::Ledger;
use natsway_routes::metrics::Recorder;
use natsway_routes::table::Route;
use natsway_routes::watch::ActiveRoutes;
use tokio_util::sync::CancellationToken;

use crate::listener::Failures;
use crate::memory::MemoryBudget;
use crate::memory::admission_queue::AdmissionQueue;
use crate::metrics::{ShardMetrics, TargetStats};
use crate::results::ShardResults;
use crate::settings::Settings;
use crate::stream::StreamLimit;
use crate::trace::Spans;

/// The inbox prefix of the gateway's role, so that its permissions can be static.
pub const INBOX_PREFIX: &str = "_INBOX_apiproxy";

/// What the requests of one shard share.
pub struct Shard {
    /// The process's settings.
    pub settings: Arc<Settings>,
    /// This shard's metrics.
    pub metrics: Arc<ShardMetrics>,
    /// Replies that could not be passed on.
    pub bad_replies: RefCell<Failures>,
    /// Makes spans, when traces are exported.
    pub spans: Option<Spans>,
    /// The memory that this shard holds for its clients.
    pub memory: Rc<MemoryBudget>,
    /// AdmissionQueue for answers.
    pub admission: AdmissionQueue,
    /// Requests that wait for room to be told that they are refused.
    pub refusing: Cell<usize>,
    /// The streams that there may be at a time.
    pub streams: StreamLimit,
    /// Cancelled when what has no end is to end, because the gateway leaves.
    pub closing: CancellationToken,
    /// The results of stored requests.
    pub results: ShardResults,
    /// Sends requests, by the routes in force.
    pub dispatcher: Dispatcher<CoreLedger>,
}

/// What a shard keeps of a route.
pub struct RouteStats {
    /// A number that stands for its name.
    pub number: u64,
    /// This shard's metrics for its versions, in their order.
    pub versions: Vec<Arc<TargetStats>>,
    /// The same where requests are stored.
    pub durable: Option<Arc<TargetStats>>,
}

/// What stands in metrics where a route has no versions.
const NO_VERSION: &str = "-";

/// Where a shard counts: among its metrics.
pub struct CoreLedger(Arc<ShardMetrics>);

impl Ledger for CoreLedger {
    type Route = RouteStats;

    fn attempts(&self, route: &str, version: &str) -> Arc<Recorder> {
        Arc::clone(&self.0.target(route, version).attempts)
    }

    fn route(&self, route: &Route) -> RouteStats {
        let mut hasher = DefaultHasher::new();
        route.name.hash(&mut hasher);
        let versions = route.split.targets().iter();
        let versions = versions.map(|target| self.0.target(&route.name, &target.version)).collect();
        let durable = route.publish.as_ref().map(|_| self.0.target(&route.name, NO_VERSION));
        RouteStats { number: hasher.finish(), versions, durable }
    }
}

impl Shard {
    /// A shard that is not connected yet.
    pub fn new(
        settings: Arc<Settings>,
        metrics: Arc<ShardMetrics>,
        active_routes: ActiveRoutes,
        closing: CancellationToken,
        results: ShardResults,
    ) -> Rc<Self> {
        let role = Role {
            name: "apiproxy".to_owned(),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            says_reply_subject: settings.across_accounts,
        };
        let (connections, limits) = (settings.connections_per_shard, settings.broker_connection);
        let pools = CodecPools::new(role, connections, limits, &metrics.broker_connections);
        let (ledger, counts) = (CoreLedger(Arc::clone(&metrics)), Arc::clone(&metrics.dispatch));
        let dispatcher = Dispatcher::new(pools, active_routes, ledger, counts);
        let memory = MemoryBudget::new(
            settings.memory.limits(settings.coming_bytes),
            Arc::clone(&metrics.memory),
        );
        Rc::new(Self {
            spans: settings.traced.map(Spans::new),
            streams: StreamLimit::new(
                settings.memory.streams.div_ceil(settings.shards.get()),
                settings.client_streams.div_ceil(settings.shards.get()),
            ),
            closing,
            settings,
            metrics,
            admission: AdmissionQueue::new(Rc::clone(&memory), Instant::now()),
            memory,
            refusing: Cell::new(0),
            bad_replies: RefCell::default(),
            results,
            dispatcher,
        })
    }
}
