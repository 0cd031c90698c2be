//! HTTP/2 on a tunnel, with its roles reversed: the gateway is the client, the worker the server.

mod gateway;
mod settings;
mod worker;

use http::HeaderName;

pub use gateway::{OpenError, StreamPermit, StreamSender, Streams, connect};
pub use settings::Settings;
pub use worker::{HeldByUpgrade, serve};

/// On a stream that was to become a connection: the status of the answer that says no, since one of
/// success would say yes. The stream's own is 400.
pub const REFUSED_WITH: HeaderName = HeaderName::from_static("natsway-status");
