//! Both ends of a tunnel: a connection that a worker dials to a gateway, on which streams or whole
//! requests travel.
//!
//! For streams, HTTP/2 runs on it with its roles reversed: the gateway accepted the connection and
//! is the client, the worker dialled it and is the server. So a worker needs no address and no open
//! port.
//!
//! - [`http2`]: the two ends, and the settings that keep one stream from ending or stalling the
//!   others. The defaults of `hyper` and `h2` are for one client and one server that mind their own
//!   business; on a tunnel many strangers share a connection.
//! - [`tls`]: the connection is encrypted, and the worker knows which gateway it is.
//! - [`body`]: what a body goes through before its bytes enter a tunnel, and after they left it.
//! - [`pieces`]: the same for a stream that becomes a connection.
//! - [`unary`]: whole requests in frames, on connections of their own.
//!
//! - [`preface`]: what is said first on a connection, [`dial`]: how a worker gets one, and
//!   [`listen`]: how a gateway does.
//! - [`socket`]: how a peer that vanished is noticed.
//! - [`pipe`]: the broker's way, where there is no other.
//! - [`joins`]: which connections are tunnels, by what was answered through the broker.
//! - [`read_ahead`]: how few system calls reading takes.
//! - [`half_open`]: how many may be on their way to that.

use std::time::Duration;

pub mod body;
pub mod dial;
pub mod half_open;
pub mod http2;
pub mod joins;
pub mod listen;
pub mod pieces;
pub mod pipe;
pub mod preface;
pub mod read_ahead;
mod small_frames;
pub mod socket;
pub mod tls;
pub mod unary;

/// How old a tunnel may become that takes anything new; workers renew each up to a fifth earlier,
/// so that they do not all end at once. A right that was taken away ends with it.
pub const LIFETIME: Duration = Duration::from_secs(300);

/// How much later than its worker should have left it a gateway stops using a tunnel. Longer than
/// what was said of it may take to come.
pub const LIFETIME_GRACE: Duration = Duration::from_secs(15);
