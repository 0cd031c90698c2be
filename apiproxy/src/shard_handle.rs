//! What listeners hand to a shard, and where.

use std::net::SocketAddr;
use std::sync::Arc;

use natsway_tunnel::preface::Kind;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::metrics::ShardMetrics;

/// A shard as listeners see it.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    /// Where its connections go.
    pub connections: mpsc::Sender<Accepted>,
    /// Where its tunnels go.
    pub tunnels: mpsc::Sender<Dialled>,
    /// Its metrics; the number of its connections is added to here, and taken from by the shard.
    pub metrics: Arc<ShardMetrics>,
}

/// A client's connection on its way to its shard.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, non-blocking.
    pub stream: std::net::TcpStream,
    /// The client.
    pub peer: SocketAddr,
    /// Its share of the limit on connections.
    pub permit: OwnedSemaphorePermit,
}

/// A worker's connection whose preface was read.
#[derive(Debug)]
pub struct Dialled {
    /// What runs on it.
    pub kind: Kind,
    /// Itself.
    pub stream: std::net::TcpStream,
}
