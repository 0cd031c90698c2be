//! Why there is no pipe.

use natsway_boot::DialError;
use natsway_wire::pipe::{CHUNK_BYTES, ResetReason};

/// Why there is no pipe.
#[derive(Debug, thiserror::Error)]
pub enum PipeOpenError {
    /// The broker cannot be had.
    #[error(transparent)]
    Broker(DialError),
    /// The connection to the broker is lost.
    #[error("the connection to the broker is lost")]
    ConnectionLost,
    /// Nobody answered in time.
    #[error("no answer in time")]
    NoAnswer,
    /// The other end does not want one.
    #[error("the other end refuses: {0:?}")]
    Refused(ResetReason),
    /// The other end says something else than hello.
    #[error("what came is no hello of a pipe")]
    NoHello,
    /// The broker takes no messages of a chunk's length.
    #[error("the broker takes no messages of {CHUNK_BYTES} bytes")]
    SmallMessages,
}
