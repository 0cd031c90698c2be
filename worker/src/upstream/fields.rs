//! Which header fields an app sees, and which of its own go back: pure.
//!
//! RFC 9110 section 7.6.1 (hop-by-hop fields), RFC 9113 sections 8.2.2 (the same in HTTP/2) and
//! 8.2.3 (cookies).

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::HostHeader;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What becomes of a request's fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestRules<'a> {
    /// Whose `Host` the app sees.
    pub(super) host: HostHeader,
    /// The app's own authority.
    pub(super) authority: &'a HeaderValue,
    /// Whether the connection is to become another protocol.
    pub(super) is_upgrade: bool,
}

/// Makes the fields of a request those that the app is to see.
pub(super) fn prepare_request(headers: &mut HeaderMap, rules: RequestRules<'_>) {
    let takes_trailers = headers.get(TE).is_some_and(says_trailers);
    let protocol = headers.get(UPGRADE).filter(|_| rules.is_upgrade).cloned();
    remove_hop_by_hop(headers);
    headers.remove(EXPECT);
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
        // Nothing comes behind it that would be a body.
        headers.remove(CONTENT_LENGTH);
    }
    join_cookies(headers);
    add_forwarded_port(headers);
    if rules.host == HostHeader::Upstream || !headers.contains_key(HOST) {
        headers.insert(HOST, rules.authority.clone());
    }
}

/// Takes what concerns the connection to the app alone out of its answer. What an upgrade says of
/// its protocol is said again by whoever accepts it.
///
/// `Trailer` stays: whoever writes the response for a client of HTTP/1.1 writes only those trailers
/// that it announces.
pub(super) fn prepare_response(headers: &mut HeaderMap) {
    let announced = headers.remove(TRAILER);
    remove_hop_by_hop(headers);
    if let Some(announced) = announced {
        headers.insert(TRAILER, announced);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in listed_by_connection(headers) {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// The fields that `Connection` makes hop-by-hop; none as a rule.
fn listed_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty() && !["close", "keep-alive"].contains(name))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect()
}

fn says_trailers(te: &HeaderValue) -> bool {
    let codings = te.to_str().unwrap_or_default().split(',');
    codings.map(str::trim).any(|coding| coding.eq_ignore_ascii_case("trailers"))
}

/// Outside of HTTP/2 there is to be one field of cookies; apps that find several take the first.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Says by which port the client came, as far as that is known and nobody else said it.
fn add_forwarded_port(headers: &mut HeaderMap) {
    if headers.contains_key(FORWARDED_PORT) {
        return;
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(host) = text(FORWARDED_HOST) else { return };
    let behind_brackets = host.rsplit(']').next().unwrap_or(host);
    let port: Option<u16> = match behind_brackets.rsplit_once(':') {
        Some((_, port)) => port.parse().ok(),
        None if text(FORWARDED_PROTO) == Some("https") => Some(443),
        None => Some(80),
    };
    if let Some(port) = port {
        headers.insert(FORWARDED_PORT, port.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(fields: &[(&'static str, &'static str)], rules: RequestRules<'_>) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        prepare_request(&mut headers, rules);
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().unwrap())
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    fn rules(authority: &HeaderValue) -> RequestRules<'_> {
        RequestRules { host: HostHeader::Client, authority, is_upgrade: false }
    }

    #[test]
    fn what_concerns_one_connection_does_not_reach_the_app() {
        let authority = HeaderValue::from_static("app:3000");
        let seen = prepared(
            &[
                ("host", "shop.example"),
                ("connection", "close, x-mine"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("upgrade", "h2c"),
                ("te", "gzip, Trailers"),
                ("transfer-encoding", "chunked"),
                ("expect", "100-continue"),
                ("x-other", "2"),
            ],
            rules(&authority),
        );
        assert_eq!(seen, ["host: shop.example", "te: trailers", "x-other: 2"]);
    }

    #[test]
    fn a_response_keeps_what_announces_its_trailers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-checksum"),
            ("x-other", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        prepare_response(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["trailer", "x-other"]);
    }

    #[test]
    fn an_upgrade_says_what_it_wants_to_become() {
        let authority = HeaderValue::from_static("app");
        let rules = RequestRules { is_upgrade: true, ..rules(&authority) };
        let seen = prepared(
            &[
                ("host", "a"),
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "k"),
            ],
            rules,
        );
        assert_eq!(
            seen,
            ["connection: upgrade", "host: a", "sec-websocket-key: k", "upgrade: websocket"]
        );
    }

    #[test]
    fn the_host_is_the_clients_or_the_apps_own() {
        let authority = HeaderValue::from_static("app:3000");
        let own = RequestRules { host: HostHeader::Upstream, ..rules(&authority) };
        assert_eq!(prepared(&[("host", "a")], rules(&authority)), ["host: a"]);
        assert_eq!(prepared(&[("host", "a")], own), ["host: app:3000"]);
        assert_eq!(prepared(&[], rules(&authority)), ["host: app:3000"]);
    }

    #[test]
    fn cookies_are_joined() {
        let authority = HeaderValue::from_static("a");
        let fields = [("host", "a"), ("cookie", "a=1"), ("cookie", "b=2; c=3")];
        assert_eq!(prepared(&fields, rules(&authority)), ["cookie: a=1; b=2; c=3", "host: a"]);
    }

    #[test]
    fn the_port_of_the_client_is_told() {
        for (host, proto, port) in [
            ("shop.example:8443", "https", Some("8443")),
            ("shop.example", "https", Some("443")),
            ("shop.example", "http", Some("80")),
            ("[2001:db8::1]", "http", Some("80")),
            ("[2001:db8::1]:81", "http", Some("81")),
            ("shop.example:x", "http", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED_HOST, HeaderValue::from_static(host));
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
            add_forwarded_port(&mut headers);
            let told = headers.get(FORWARDED_PORT).map(|port| port.to_str().unwrap());
            assert_eq!(told, port, "{host}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED_HOST, HeaderValue::from_static("a:1"));
        headers.insert(FORWARDED_PORT, HeaderValue::from_static("443"));
        add_forwarded_port(&mut headers);
        assert_eq!(headers[FORWARDED_PORT], "443", "a trusted proxy knows better");
    }
}
