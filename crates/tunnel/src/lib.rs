//! Both ends of a tunnel: a connection that a worker dials to a gateway, on which streams travel.
//!
//! HTTP/2 runs on it with its roles reversed: the gateway accepted the connection and is the
//! client, the worker dialled it and is the server. So a worker needs no address and no open port.
//!
//! - [`http2`]: the two ends, and the settings that keep one stream from ending or stalling the
//!   others. The defaults of `hyper` and `h2` are for one client and one server that mind their own
//!   business; on a tunnel many strangers share a connection.
//! - [`tls`]: the connection is encrypted, and the worker knows which gateway it is.
//! - [`body`]: what a body goes through before its bytes enter a tunnel, and after they left it.
//!
//! Who may open a tunnel, and what may travel on it, is not decided here.

pub mod body;
pub mod http2;
pub mod tls;
