//! Why a worker could not serve.

use std::net::SocketAddr;

use natsway_boot::DialError;
use natsway_tunnel::tls::AcceptorError;

/// What ends [`serve`](crate::serve) and [`serve_local`](crate::serve_local) other than being told
/// to stop, and what keeps a client from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Options that cannot be: each with its value and what was expected.
    #[error("options: {}", .0.join("; "))]
    Options(Vec<String>),
    /// The broker refused us, or is older than Natsway needs. One that is merely away is waited
    /// for.
    #[error(transparent)]
    Broker(#[from] DialError),
    /// The broker does not let us hear our own requests, or what comes back to us: at once at the
    /// start, later when that has lasted for half a minute.
    #[error(
        "the broker does not permit this worker to subscribe to {subject}: add it to this user's \
         permissions, or use the user of this role (docs/security.md)"
    )]
    NotPermitted {
        /// What was refused.
        subject: String,
    },
    /// The system gave no thread or no runtime.
    #[error("starting a thread")]
    Thread(#[source] std::io::Error),
    /// A reader panicked: a defect of this crate, or of a service's `Clone` or constructor.
    #[error(
        "a reader thread panicked: the service's clone or constructor, or a defect of \
         natsway-worker"
    )]
    ReaderPanicked,
    /// A client's broker cannot be reached, now or later: its certificates cannot be read, say.
    #[error("the broker cannot be reached, now or later")]
    Unreachable(#[source] async_nats::ConnectError),
    /// A client cannot take tunnels at its address.
    #[error("cannot take tunnels at {address}; is another process using it?")]
    TunnelListen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A client has no certificate for its tunnels.
    #[error("no certificate for tunnels")]
    TunnelCertificate(#[source] AcceptorError),
    /// A client's thread panicked while it started.
    #[error("a client's thread panicked: a defect of natsway-worker")]
    ClientPanicked,
}
