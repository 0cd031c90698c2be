//! What a Natsway gateway and its workers say to each other, and nothing that says it.
//!
//! This crate is pure: bytes in, values out. It knows no client, no runtime and no clock.
//!
//! - [`envelope`]: the default `http` codec, one MessagePack array per message with the raw body
//!   last.
//! - [`native`]: the codec for backends that were not written for Natsway (raw body, NATS headers).
//! - [`control`]: what a gateway tells one worker instance (cancel), and what draining members and
//!   gateways tell each other.
//! - [`frame`]: how messages go over a tunnel, a connection between a gateway and one worker.
//! - [`offer`]: what is said so that a worker can dial a tunnel, and that opens it.
//! - [`pipe`]: what a tunnel's bytes are carried in where there is no other way than the broker.
//! - [`content_type`]: which messages are calls by gRPC.
//! - [`problem`]: how errors are told to clients (RFC 9457).
//! - [`Subject`] and [`QueueGroup`]: names that were checked once and may be published to.
//!
//! Decoding is bounded before anything is allocated, and never panics on any input: see [`Limits`].
//! `docs/wire.md` of the repository says the same byte by byte, for a worker in another language.

pub mod content_type;
pub mod control;
mod elements;
pub mod envelope;
mod error;
pub mod frame;
mod msgpack;
pub mod native;
pub mod offer;
pub mod pipe;
pub mod problem;
mod subject;

pub use error::{Error, ErrorKind};
pub use subject::{CONTROL_PREFIX, QueueGroup, Subject, SubjectError};

/// The version of the envelope that this crate writes, and the newest that it reads.
pub const WIRE_VERSION: u8 = 1;

/// Bounds of what a decoder accepts; checked before memory is taken for the thing that they bound.
///
/// The body needs no bound here: it is a slice of the message, which the broker bounds
/// (`max_payload`). Nor does the nesting of what a reader skips: it costs no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Header fields in one message, trailers counted apart.
    pub header_fields: usize,
    /// Bytes of one header name or value, of the method, or of the path and query.
    pub field_bytes: usize,
}

impl Limits {
    /// Wide enough for what the gateway lets in (64 KiB of head), far below what would hurt a
    /// reader.
    pub const DEFAULT: Self = Self { header_fields: 512, field_bytes: 64 * 1024 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
