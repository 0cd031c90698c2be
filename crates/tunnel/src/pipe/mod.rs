//! A pipe: bytes both ways between a worker and a gateway, by the broker, where the worker cannot
//! reach the gateway's address.
//!
//! What runs on a pipe is what runs on a connection: the [preface](crate::preface), TLS whose
//! certificate the offer names, HTTP/2. So who hears its messages reads nothing of them.
//!
//! - [`PipeState`]: what one end has sent, heard and may send. Pure.
//! - [`PipeStream`]: the bytes, for who reads and writes; a [`PipeDriver`] moves them.
//! - [`PipeBroker`]: a connection to the broker for pipes alone, so that no request waits behind
//!   them. It never reconnects: what was lost is not sent again, and the pipe is broken.
//! - [`answer`] and [`call`]: how the two ends meet.
//! - [`Pace`]: how fast the pipes of a gateway's thread may be.

mod broker;
mod driver;
mod error;
mod open;
mod pace;
mod state;
mod stream;

pub use self::broker::{PipeBroker, PipeConnection};
pub use self::driver::PipeDriver;
pub use self::error::PipeOpenError;
pub use self::open::{Ear, answer, call, refuse};
pub use self::pace::Pace;
pub use self::state::{PipeError, PipeState};
pub use self::stream::{PipeLeaving, PipeMeter, PipeSettings, PipeStream};
