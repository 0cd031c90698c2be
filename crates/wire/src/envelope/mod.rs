//! The `http` codec: one MessagePack array per message, positional, version first, raw body last.
//!
//! ```text
//! request   [1, flags, deadline_ms, sent_ms, method, path_and_query, headers, body,
//!            reply subject, offer]
//! response  [1, flags, status, headers, trailers, body | reference]
//! signal    [1, flags | 1, kind, detail, token, secret]
//! reference [token, first bytes, secret]
//! ```
//!
//! Headers are `[[name, value], ...]`, the order of one name's values kept. Elements behind the
//! known ones are skipped and missing headers, trailers, body or detail are empty, so that old and
//! new read each other. Flags 0 to 7 must be understood by the reader, the others may be ignored.

mod fields;
mod join;
mod reference;
mod reply;
mod request;

pub use join::with_join;
pub use reference::Reference;
pub use reply::{
    NotRun, Reply, Response, Signal, decode_reply, encode_reference, encode_response, encode_signal,
};
pub use request::{
    REPLY_SUBJECT_OVERHEAD_BYTES, Request, RequestEncoder, decode_request, restamp_request,
    with_reply_subject,
};

use crate::elements::Elements;
use crate::msgpack::Reader;
use crate::{Error, ErrorKind, Limits};

/// Flag of a reply that is a [`Signal`], not a response.
pub const FLAG_SIGNAL: u64 = 1;

/// Flag of a request whose body follows on a stream, once the worker is ready for it.
pub const FLAG_STREAM: u64 = 2;

/// Flags that a reader must understand or refuse the message.
const CRITICAL_FLAGS: u64 = 0xff;

/// Reads what every message begins with; gives its flags and the elements behind them.
fn read_preamble<'a>(
    message: &'a [u8],
    limits: Limits,
    understood: u64,
) -> Result<(u64, Elements<'a>), Error> {
    let mut elements = Elements::begin(message, limits, "envelope")?;
    elements.version()?;
    let flags = elements.required("flags", Reader::unsigned)?;
    if flags & CRITICAL_FLAGS & !understood != 0 {
        return Err(Error::new(ErrorKind::Unsupported, "flag"));
    }
    Ok((flags, elements))
}
