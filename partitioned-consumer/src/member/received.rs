//! A message as it came from the consumer, and what its acknowledgement subject says of it.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

/// A message as it came from the consumer, before anybody may handle it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) subject: Subject,
    pub(crate) payload: Bytes,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) reply: Subject,
    pub(crate) meta: Meta,
}

/// Where a message comes from, read from its acknowledgement subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) stream_seq: u64,
    pub(crate) consumer_seq: u64,
    pub(crate) deliveries: u64,
    /// Nanoseconds since 1970, when the stream stored it.
    pub(crate) stored_at_ns: i64,
    pub(crate) pending: u64,
}

impl Meta {
    /// Reads
    /// `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]`.
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        // Every message passes here: one look at each byte, no list of parts.
        let dots = rest.bytes().filter(|byte| *byte == b'.').count();
        let names = match dots {
            6 => 2,
            8.. => 4,
            _ => return None,
        };
        let mut parts = rest.as_bytes().split(|byte| *byte == b'.').skip(names);
        let mut number = || parts.next().and_then(decimal);
        Some(Self {
            deliveries: number()?,
            stream_seq: number()?,
            consumer_seq: number()?,
            stored_at_ns: number()?.try_into().ok()?,
            pending: number()?,
        })
    }
}

/// A number as the broker writes it: digits only.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_acknowledgement_subject_are_read() {
        let meta =
            Meta { deliveries: 2, stream_seq: 7, consumer_seq: 9, stored_at_ns: 1_700, pending: 3 };
        assert_eq!(Meta::parse("$JS.ACK.S.c.2.7.9.1700.3"), Some(meta));
        assert_eq!(Meta::parse("$JS.ACK.hub.hash.S.c.2.7.9.1700.3.token"), Some(meta));
        assert_eq!(Meta::parse("$JS.ACK.hub.hash.S.c.2.7.9.1700.3"), Some(meta));
        for other in [
            "_INBOX.x",
            "$JS.ACK.S.c.2.7.9.x.3",
            "$JS.ACK.S.c.2.7..1700.3",
            "$JS.ACK.S.c.2.7.9.1700",
        ] {
            assert_eq!(Meta::parse(other), None, "{other}");
        }
        assert_eq!(
            Meta::parse("$JS.ACK.S.c.2.18446744073709551616.9.1700.3"),
            None,
            "too large a number"
        );
    }
}
