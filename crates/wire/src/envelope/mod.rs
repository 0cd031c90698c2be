//! The `http` codec: one MessagePack array per message, positional, version first, raw body last.
//!
//! ```text
//! request  [1, flags, deadline_ms, sent_ms, method, path_and_query, headers, body]
//! response [1, flags, status, headers, trailers, body | stream-ref]
//! signal   [1, flags | 1, kind, detail]
//! ```
//!
//! Headers are `[[name, value], ...]`, order and repeats kept. Elements behind the known ones are skipped, missing
//! ones take their default, so that old and new read each other. Flags 0 to 7 must be understood by the reader, the
//! others may be ignored.

mod fields;
mod reply;
mod request;

pub use reply::{NotRun, Reply, Response, Signal, decode_reply, encode_response, encode_signal};
pub use request::{Request, RequestEncoder, decode_request, restamp_request};

use crate::msgpack::Reader;
use crate::{Error, ErrorKind, WIRE_VERSION};

/// Flag of a reply that is a [`Signal`], not a response.
pub const FLAG_SIGNAL: u64 = 1;

/// Flags that a reader must understand or refuse the message.
const CRITICAL_FLAGS: u64 = 0xff;

/// Reads what every message begins with and gives its flags and how many elements follow them.
fn read_preamble(reader: &mut Reader<'_>, understood: u64) -> Result<(u64, usize), Error> {
    let count = reader.array("envelope")?;
    let elements = count.checked_sub(2).ok_or(Error::malformed("envelope"))?;
    if reader.unsigned("version")? != u64::from(WIRE_VERSION) {
        return Err(Error::new(ErrorKind::Unsupported, "version"));
    }
    let flags = reader.unsigned("flags")?;
    if flags & CRITICAL_FLAGS & !understood != 0 {
        return Err(Error::new(ErrorKind::Unsupported, "flag"));
    }
    Ok((flags, elements))
}

/// Reads the elements of one array in order: absent ones give `None`, and those left over are skipped.
struct Elements<'r, 'a> {
    reader: &'r mut Reader<'a>,
    left: usize,
}

impl<'a> Elements<'_, 'a> {
    /// The next element, read by `read`; `None` when the writer was older and did not send it.
    fn next<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        match self.left.checked_sub(1) {
            None => Ok(None),
            Some(left) => {
                self.left = left;
                read(self.reader).map(Some)
            }
        }
    }

    /// Passes over what a newer writer added, and refuses bytes behind the array.
    fn finish(self) -> Result<(), Error> {
        self.reader.skip(self.left)?;
        match self.reader.rest() {
            [] => Ok(()),
            _ => Err(Error::malformed("envelope: bytes behind its end")),
        }
    }
}
