//! What a gateway is told at its start, checked.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use natsway_boot::trace::HeadSampler;
use natsway_caller::connection::ConnectionLimits;
use natsway_routes::peers::PeerLimits;

use crate::client_address::TrustedProxies;
use crate::linger::LingerLimits;
use crate::memory::plan::MemoryPlan;
use crate::stall::SendRate;

/// The settings of one gateway process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators and probes connect.
    pub admin_listen: SocketAddr,
    /// Threads that serve requests.
    pub shards: NonZeroUsize,
    /// Connections to the broker for each of them.
    pub connections_per_shard: NonZeroUsize,
    /// Proxies that are believed who the client is, how it came, and of which trace its request is
    /// part.
    pub trusted_proxies: TrustedProxies,
    /// One log line for each request.
    pub access_log: bool,
    /// Which requests have spans, if any; they go to OpenTelemetry's global tracer provider.
    pub traced: Option<HeadSampler>,
    /// Bounds of what clients may send.
    pub client: ClientLimits,
    /// Bounds of what may be out on one broker connection.
    pub broker_connection: ConnectionLimits,
    /// Bounds of the memory.
    pub memory: MemoryPlan,
    /// Bytes of answers that each thread may have out at the broker.
    pub coming_bytes: usize,
    /// Services live in other accounts of the broker: requests say where they are answered, and who
    /// stands in for workers has to be in their account.
    pub across_accounts: bool,
    /// Bounds of what is kept of those who report that they send requests.
    pub peers: PeerLimits,
    /// Streams that one client may have at a time, of those of the memory's plan.
    pub client_streams: usize,
    /// Where workers dial tunnels, if they may.
    pub tunnels: Option<TunnelSettings>,
    /// How to stop.
    pub drain: Drain,
}

/// Where workers dial tunnels.
#[derive(Clone, Debug)]
pub struct TunnelSettings {
    /// The address to listen on; none where workers come by pipes alone.
    pub listen: Option<SocketAddr>,
    /// What offers say in its place, `host:port` or `host`; empty for what follows from it.
    pub addresses: Vec<String>,
    /// TLS's end, or none for tunnels in the clear.
    pub certificate: TunnelCertificate,
    /// How HTTP/2 runs on them.
    pub http2: natsway_tunnel::http2::Settings,
    /// Tunnels of each thread: so many for streams, and so many for whole requests.
    pub most: NonZeroUsize,
    /// Bounds of pipes on the broker, if workers may come by them.
    pub pipes: Option<PipeLimits>,
}

/// Bounds of pipes on the broker.
#[derive(Clone, Copy, Debug)]
pub struct PipeLimits {
    /// Pipes of each thread.
    pub most: usize,
    /// What a worker may be ahead of the gateway's reader on one, and the other way round, in
    /// bytes.
    pub window_bytes: u32,
    /// How fast all pipes of a thread may be together, both ways; without a bound if it is none.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// What a gateway shows to workers that dial.
#[derive(Clone, Debug)]
pub enum TunnelCertificate {
    /// One that is made at the start.
    Generated,
    /// An operator's.
    Given(natsway_tunnel::tls::Acceptor),
    /// None: tunnels are not encrypted.
    Cleartext,
}

/// Bounds of what clients may send and hold.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Bytes of a path with its query: 414 above it.
    pub path_bytes: usize,
    /// Bytes of all header names and values: 431 above it.
    pub header_bytes: usize,
    /// Header fields: 431 above it.
    pub header_fields: usize,
    /// Time for a request's head to arrive, and for an idle connection to stay open.
    pub head_timeout: Duration,
    /// Time for a request's body to arrive: 408 after it.
    pub body_timeout: Duration,
    /// How fast a client must take what it is sent: its connection is closed if it does not.
    pub send: SendRate,
    /// Time after which an HTTP/2 connection without a request is asked to close.
    pub http2_idle_timeout: Duration,
    /// Whether an HTTP/1 client that has ended its side of the connection still waits for its
    /// answer. If not, it is taken to have left, as one that closed its connection looks the same;
    /// then its work is cancelled.
    pub half_close: bool,
    /// How a connection ends whose client still sends what was refused.
    pub linger: LingerLimits,
    /// Whether a query must be percent-encoded as a path must.
    pub strict_queries: bool,
    /// Requests at a time on one HTTP/2 connection.
    pub http2_streams: u32,
}

impl Drain {
    /// The most by which streams without an end are ended later than the gateway begins to close,
    /// so that their clients do not all connect again at once.
    pub fn spread(&self) -> Duration {
        self.timeout.saturating_sub(self.grace).mul_f64(0.5)
    }
}

/// How a gateway leaves.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long it goes on accepting after it has said that it is not ready, asking clients to
    /// close.
    pub grace: Duration,
    /// How long it may take in all.
    pub timeout: Duration,
}
