//! A native reply, its headers as `name: value` lines, becomes a response or an error that HTTP can
//! carry.

use bytes::Bytes;
use natsway_wire::native::{NativeReply, canonical_name, decode_reply};

/// See the module.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let fields = || head.lines().filter_map(|line| line.split_once(": "));
    let Ok(reply) = decode_reply(fields(), Bytes::copy_from_slice(body.as_bytes())) else { return };
    match &reply {
        NativeReply::Response(response) => assert!(response.headers.len() <= fields().count()),
        NativeReply::ServiceError { status, .. } => assert!((400..600).contains(&status.as_u16())),
    }
    // The case of a name means nothing to the reader.
    let canonical: Vec<_> = fields().map(|(name, value)| (canonical_name(name), value)).collect();
    let canonical = canonical.iter().map(|(name, value)| (name.as_str(), *value));
    assert_eq!(decode_reply(canonical, Bytes::copy_from_slice(body.as_bytes())), Ok(reply));
}
