//! What every Natsway binary does first and last: reach the broker, say what happens, stop when told to.
//!
//! - [`Broker`]: where the broker is and how to prove who we are; made from [`BrokerArgs`] in a binary.
//! - [`Dialer`] and [`Session`]: one connection that never reconnects, for the request path.
//! - [`Clock`]: Unix time that never steps.
//! - [`shutdown`]: SIGTERM and SIGINT as a token.

#[cfg(feature = "cli")]
mod args;
mod broker;
mod clock;
#[cfg(feature = "cli")]
pub mod logs;
mod session;
pub mod shutdown;

#[cfg(feature = "cli")]
pub use args::BrokerArgs;
pub use broker::{Broker, BrokerError, Credentials, Tls};
pub use clock::Clock;
pub use session::{Dial, DialError, DialErrorKind, Dialer, Session, SessionEvent};

/// A short random id, fit for a token of a subject: 16 characters out of 62, about 95 bits.
pub fn random_id() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(16).collect()
}
