//! Connections to the broker: a [`Session`], which never reconnects, for the request path, and the
//! client of a control plane, which always does.

mod backoff;
mod client;
mod denied;
mod dial_error;
mod dial_hints;
mod heartbeat;
mod server_errors;
mod session;

pub use self::denied::DeniedSubscriptions;
pub use self::dial_error::{DialError, DialErrorKind};
pub use self::session::{Dial, Dialer, Session, SessionEvent};
