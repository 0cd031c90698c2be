//! HTTP/2 on a tunnel, with its roles reversed: the gateway is the client, the worker the server.

mod gateway;
mod handler_end;
mod linger;
mod settings;
mod worker;

use http::HeaderName;

pub use h2::ext::Protocol;

pub use gateway::{
    ConnectionLost, OpenError, RecvBody, StreamPermit, StreamSender, Streams, Upgraded, connect,
};
pub use handler_end::{HandlerEnd, handler_end};
pub use settings::Settings;
pub use worker::{HeldByUpgrade, serve};

/// On a stream that was to become a connection: the status of the answer that says no, since one of
/// success would say yes. The stream's own is 400.
pub const REFUSED_WITH: HeaderName = HeaderName::from_static("natsway-status");

/// Why a worker resets a stream that would go on: it leaves. Beyond the codes of RFC 9113, so who
/// does not know it takes it for a failure.
const LEAVING: u32 = 0x6e77_0001;

/// Returns the error that has a body's stream be reset because its worker leaves.
pub fn leaving() -> h2::Error {
    h2::Reason::from(LEAVING).into()
}

/// Whether a body broke off because its worker leaves, as that said with [`leaving`].
pub fn is_leaving(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut said = causes.filter_map(|cause| cause.downcast_ref::<h2::Error>());
    said.any(|said| said.reason().map(u32::from) == Some(LEAVING))
}
