//! Why a gateway did not start.

use std::io;
use std::net::SocketAddr;

use natsway_tunnel::tls::AcceptorError;

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}; is another process using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no certificate for tunnels.
    #[error("no certificate for tunnels")]
    Certificate(#[source] AcceptorError),
    /// A thread or a runtime cannot be had.
    #[error("cannot start a shard")]
    Shard(#[source] io::Error),
    /// What keeps the broker out of reach for ever.
    #[error("cannot reach the broker, now or later")]
    Broker(#[source] async_nats::ConnectError),
}
