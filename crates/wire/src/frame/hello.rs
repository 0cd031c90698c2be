//! What each side of a tunnel says first.

use bytes::Bytes;

use crate::elements::Elements;
use crate::msgpack::{Reader, put_array, put_str, put_u16, put_u32, put_u64};
use crate::{Error, Limits, WIRE_VERSION};

/// The payload of a [`Hello`](super::FrameKind::Hello) frame.
///
/// Nothing of it is believed where it matters: which requests a tunnel may carry is known by the
/// answers that its secret came in.
///
/// ```
/// use natsway_wire::frame::Hello;
///
/// let hello = Hello {
///     name: "k3v9".to_owned(),
///     requests: 64,
///     payload_bytes: 1 << 20,
///     heard_ms: 0,
/// };
/// assert_eq!(Hello::decode(&hello.encode())?, hello);
/// # Ok::<(), natsway_wire::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The worker's instance, or the gateway's name in its offers. 1 to 64 characters of
    /// `A-Z a-z 0-9 - _`, each part behind a dot as well.
    pub name: String,
    /// How many requests the worker takes at a time, of all senders; of a gateway 0.
    pub requests: u32,
    /// The longest payload that the sender of this takes.
    pub payload_bytes: u32,
    /// The key of the worker's hello, in the gateway's answer to it; 0 in the worker's.
    pub heard_ms: u64,
}

impl Hello {
    /// Writes it.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(24 + self.name.len());
        put_array(&mut out, 5);
        put_u16(&mut out, u16::from(WIRE_VERSION));
        put_str(&mut out, &self.name);
        put_u32(&mut out, self.requests);
        put_u32(&mut out, self.payload_bytes);
        put_u64(&mut out, self.heard_ms);
        out.into()
    }

    /// Reads one.
    ///
    /// # Errors
    /// Any [`ErrorKind`](crate::ErrorKind); nothing larger than a name was allocated.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut elements = Elements::begin(bytes, Limits::DEFAULT, "hello")?;
        elements.version()?;
        let name = elements.required("name", Reader::field)?;
        let name = crate::control::instance_id(name)?;
        let requests = elements.required("requests", unsigned_32)?;
        let payload_bytes = elements.required("payload bytes", unsigned_32)?;
        let heard_ms = elements.optional("heard", Reader::unsigned)?;
        elements.finish()?;
        Ok(Self { name, requests, payload_bytes, heard_ms })
    }
}

fn unsigned_32(reader: &mut Reader<'_>, what: &'static str) -> Result<u32, Error> {
    u32::try_from(reader.unsigned(what)?).map_err(|_| Error::too_large(what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_newer_peer_adds_is_passed_over() {
        let hello = Hello { name: "a".to_owned(), requests: 1, payload_bytes: 2, heard_ms: 3 };
        let mut longer = hello.encode().to_vec();
        longer[0] += 1;
        longer.push(0xc0);
        assert_eq!(Hello::decode(&longer), Ok(hello));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_hello_or_none(bytes: Vec<u8>) {
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            }
        }
    }
}
