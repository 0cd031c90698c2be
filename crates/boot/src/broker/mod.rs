//! Where the broker is, and how to prove to it who we are: what a user said becomes a
//! [`BrokerConfig`], which is valid by construction.

mod addresses;
mod config;
mod credentials;
mod error;
mod tls;
mod unchecked;

pub use self::config::BrokerConfig;
pub use self::credentials::Credentials;
pub use self::error::BrokerConfigError;
pub use self::tls::Tls;
#[cfg(feature = "cli")]
pub(crate) use self::unchecked::{DEFAULT_URL, UncheckedBrokerConfig};
