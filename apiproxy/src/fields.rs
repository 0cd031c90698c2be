//! What a request's header fields are to the gateway: told by their names, in one walk over them.
//! Pure.

use http::HeaderMap;

/// What a field is to whoever passes a request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// The client's word to the worker.
    EndToEnd,
    /// The client's too, and to be one field.
    Cookie,
    /// It concerns one connection only (RFC 9110 section 7.6.1).
    HopByHop,
    /// The gateway says it itself, in place of the client's.
    Own,
    /// A proxy's to say: a stranger's own are lies or mistakes, and workers believe them.
    Proxys,
    /// It becomes one of those that are not the client's where `-`, `_` and `.` are taken for one
    /// another, as CGI and WSGI do: `X_Forwarded_For` would stand beside the gateway's own, or in
    /// its place.
    LooksLikeOurs,
}

/// Beginnings of the names by which proxies say who a client is and what it asked for.
const PROXYS_PREFIXES: [&[u8]; 4] = [b"x-forwarded", b"x-real-ip", b"x-original-", b"x-rewrite-"];

impl FieldKind {
    /// Returns the kind of a field by its name, which is in lower case.
    pub fn of(name: &str) -> Self {
        match name.as_bytes() {
            // What nearly every request has is told at once.
            b"accept" | b"accept-encoding" | b"accept-language" | b"authorization"
            | b"cache-control" | b"content-type" | b"origin" | b"referer" | b"user-agent" => {
                Self::EndToEnd
            }
            b"cookie" => Self::Cookie,
            b"connection"
            | b"http2-settings"
            | b"keep-alive"
            | b"proxy-authenticate"
            | b"proxy-authorization"
            | b"proxy-connection"
            | b"te"
            | b"trailer"
            | b"transfer-encoding"
            | b"upgrade" => Self::HopByHop,
            b"content-length" | b"expect" | b"forwarded" | b"host" | b"x-forwarded-for"
            | b"x-forwarded-host" | b"x-forwarded-proto" | b"x-request-id" => Self::Own,
            b"traceparent" | b"tracestate" => Self::Proxys,
            bytes if bytes.iter().any(|byte| matches!(byte, b'_' | b'.')) => {
                match Self::of(&name.replace(['_', '.'], "-")) {
                    Self::EndToEnd | Self::Cookie => Self::EndToEnd,
                    _ => Self::LooksLikeOurs,
                }
            }
            bytes if PROXYS_PREFIXES.iter().any(|prefix| bytes.starts_with(prefix)) => Self::Proxys,
            _ => Self::EndToEnd,
        }
    }
}

/// Which of the fields that mean something here a request has: most have few, and what is not there
/// need not be looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The bytes of all names and values.
    pub text_bytes: usize,
    /// How often `Host` is there.
    pub hosts: usize,
    /// How often `X-Request-Id` is there.
    pub request_ids: usize,
    /// Whether `Connection` is there.
    pub has_connection: bool,
    /// Whether `Content-Length` is there.
    pub has_content_length: bool,
    /// Whether `Expect` is there.
    pub has_expect: bool,
    /// Whether `Transfer-Encoding` is there.
    pub has_transfer_encoding: bool,
    /// Whether `Upgrade` is there.
    pub has_upgrade: bool,
}

impl Survey {
    /// Looks at all fields.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            seen.text_bytes += name.as_str().len() + value.len();
            match name.as_str().as_bytes() {
                b"host" => seen.hosts += 1,
                b"x-request-id" => seen.request_ids += 1,
                b"connection" => seen.has_connection = true,
                b"content-length" => seen.has_content_length = true,
                b"expect" => seen.has_expect = true,
                b"transfer-encoding" => seen.has_transfer_encoding = true,
                b"upgrade" => seen.has_upgrade = true,
                _ => {}
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use http::header::{self, HeaderName};
    use natsway_boot::trace::{TRACEPARENT, TRACESTATE};
    use proptest::prelude::*;

    use super::*;
    use crate::client_address::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO};
    use crate::headers::REQUEST_ID;

    #[test]
    fn each_name_has_its_kind() {
        use FieldKind::{Cookie, EndToEnd, HopByHop, LooksLikeOurs, Own, Proxys};
        let constants = [
            (header::CONNECTION, HopByHop),
            (header::PROXY_AUTHENTICATE, HopByHop),
            (header::PROXY_AUTHORIZATION, HopByHop),
            (header::TE, HopByHop),
            (header::TRAILER, HopByHop),
            (header::TRANSFER_ENCODING, HopByHop),
            (header::UPGRADE, HopByHop),
            (header::CONTENT_LENGTH, Own),
            (header::EXPECT, Own),
            (header::FORWARDED, Own),
            (header::HOST, Own),
            (FORWARDED_FOR, Own),
            (FORWARDED_HOST, Own),
            (FORWARDED_PROTO, Own),
            (REQUEST_ID, Own),
            (TRACEPARENT, Proxys),
            (TRACESTATE, Proxys),
            (header::COOKIE, Cookie),
            (header::ACCEPT, EndToEnd),
            (header::ETAG, EndToEnd),
        ];
        for (name, kind) in constants {
            assert_eq!(FieldKind::of(name.as_str()), kind, "{name}");
        }
        for (name, kind) in [
            ("x-forwarded-user", Proxys),
            ("x-forwarded_for", LooksLikeOurs),
            ("x.real.ip", LooksLikeOurs),
            ("proxy_connection", LooksLikeOurs),
            ("x_user", EndToEnd),
            ("x-forward", EndToEnd),
        ] {
            assert_eq!(FieldKind::of(name), kind, "{name}");
        }
    }

    fn name() -> impl Strategy<Value = HeaderName> {
        let known = [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::EXPECT,
            header::HOST,
            header::TRANSFER_ENCODING,
            header::UPGRADE,
            REQUEST_ID,
        ];
        prop_oneof![
            proptest::sample::select(known.to_vec()),
            "[a-z]{1,12}".prop_map(|name| HeaderName::try_from(name).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn what_was_not_seen_is_not_there(names in proptest::collection::vec(name(), 0..12)) {
            let headers: HeaderMap =
                names.into_iter().map(|name| (name, "ab".parse().unwrap())).collect();
            let times = |name: HeaderName| headers.get_all(name).iter().count();
            let bytes = headers.iter().map(|(name, _)| name.as_str().len() + 2).sum::<usize>();
            prop_assert_eq!(
                Survey::of(&headers),
                Survey {
                    text_bytes: bytes,
                    hosts: times(header::HOST),
                    request_ids: times(REQUEST_ID),
                    has_connection: times(header::CONNECTION) > 0,
                    has_content_length: times(header::CONTENT_LENGTH) > 0,
                    has_expect: times(header::EXPECT) > 0,
                    has_transfer_encoding: times(header::TRANSFER_ENCODING) > 0,
                    has_upgrade: times(header::UPGRADE) > 0,
                }
            );
        }
    }
}
