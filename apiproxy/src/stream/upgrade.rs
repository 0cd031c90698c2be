//! What asks to become another protocol: an upgrade of HTTP/1.1 (RFC 9110 section 7.8), or an
//! extended CONNECT of HTTP/2 (RFC 8441).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

/// A request to become another protocol.
#[derive(Debug)]
pub struct Upgrade {
    /// Which, in lower case.
    pub protocol: String,
    /// The connection that an HTTP/2 stream becomes.
    pub on: Option<OnUpgrade>,
}

/// Takes the wish to upgrade out of a head. An extended CONNECT becomes the GET that it would be in
/// HTTP/1.1, so that routes and handlers know one form. `has_upgrade` is whether there is an
/// `Upgrade`.
pub fn take_upgrade(head: &mut Parts, has_upgrade: bool) -> Option<Upgrade> {
    if !has_upgrade && head.method != Method::CONNECT {
        return None;
    }
    if let Some(protocol) = head.extensions.remove::<Protocol>() {
        head.method = Method::GET;
        let on = head.extensions.remove::<OnUpgrade>();
        let protocol = protocol.as_str().to_ascii_lowercase();
        if protocol == "websocket" && !head.headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            let key = STANDARD.encode(
                [natsway_boot::random_u64(), natsway_boot::random_u64()]
                    .map(u64::to_be_bytes)
                    .concat(),
            );
            let key = HeaderValue::try_from(key).expect("base64 is a value");
            head.headers.insert(header::SEC_WEBSOCKET_KEY, key);
        }
        return Some(Upgrade { protocol, on });
    }
    let is_asked = head.version == Version::HTTP_11
        && lists(&head.headers, &header::CONNECTION)
            .any(|token| token.eq_ignore_ascii_case("upgrade"));
    if !is_asked {
        return None;
    }
    let protocol = lists(&head.headers, &header::UPGRADE).find(|offer| is_other(offer))?;
    Some(Upgrade { protocol: protocol.to_ascii_lowercase(), on: None })
}

/// Whether HTTP does not just go on. Newer, or by TLS, it is offered with every request by some
/// clients, and that is passed over.
fn is_other(offer: &str) -> bool {
    let name = offer.split_once('/').map_or(offer, |(name, _)| name);
    !["", "h2c", "http", "tls"].iter().any(|passed| name.eq_ignore_ascii_case(passed))
}

/// The members of a field that is a list.
fn lists<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn protocol(connection: &str, upgrade: &str, version: Version) -> Option<String> {
        let request = Request::get("/")
            .version(version)
            .header("connection", connection)
            .header("upgrade", upgrade);
        let mut head = request.body(()).expect("a request").into_parts().0;
        take_upgrade(&mut head, true).map(|upgrade| upgrade.protocol)
    }

    #[test]
    fn only_what_would_be_another_protocol_is_an_upgrade() {
        for (connection, upgrade, expected) in [
            ("upgrade", "websocket", Some("websocket")),
            ("keep-alive, Upgrade", "WebSocket", Some("websocket")),
            ("upgrade", "h2c, websocket", Some("websocket")),
            ("upgrade", "h2c", None),
            ("upgrade", "HTTP/2.0, TLS/1.2", None),
            ("upgrade", "", None),
            ("keep-alive", "websocket", None),
        ] {
            let found = protocol(connection, upgrade, Version::HTTP_11);
            assert_eq!(found.as_deref(), expected, "{connection}: {upgrade}");
        }
        assert_eq!(protocol("upgrade", "websocket", Version::HTTP_10), None);
    }

    #[test]
    fn an_extended_connect_is_the_get_that_it_would_be() {
        let mut head =
            Request::connect("http://a/chat").body(()).expect("a request").into_parts().0;
        head.extensions.insert(Protocol::from_static("websocket"));
        let upgrade = take_upgrade(&mut head, false).expect("it asks");
        assert_eq!((upgrade.protocol.as_str(), &head.method), ("websocket", &Method::GET));
        assert_eq!(head.headers[header::SEC_WEBSOCKET_KEY].len(), 24);
    }
}
