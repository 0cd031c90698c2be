//! Of a request: RFC 7239 (`Forwarded`), RFC 9113 section 8.2.3 (cookies).

use std::borrow::Cow;
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use natsway_caller::encode::Fields;

use super::hop_by_hop::{connection_lists, is_listed, takes_trailers};
use crate::client_address::{Client, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Scheme};
use crate::fields::{FieldKind, Survey};
use crate::linger::Unread;
use crate::stream::becomes::Becomes;

/// Names the request in logs and in the error bodies; taken from the client when it sends a sound
/// one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What was taken off the path on the way, which an app puts before its links.
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The longest request id that is taken from a client, in bytes.
const REQUEST_ID_BYTES: usize = 128;

/// Who is at the other end of a client's connection: the same for all of its requests.
#[derive(Debug)]
pub struct Caller {
    /// The client, or the proxy in front of us.
    pub peer: SocketAddr,
    /// Whether the peer is a proxy that is believed.
    pub trusted: bool,
    /// What it has sent that belongs to no request that was read whole.
    pub unread: Rc<Unread>,
    /// The peer as its own client, which it is unless it is believed to speak for another.
    pub client: Client,
    /// What its connection of HTTP/1 becomes, once it was told so.
    pub becomes: RefCell<Option<Becomes>>,
    /// The peer's address as `X-Forwarded-For` has it.
    address: String,
    /// The same as a node of `Forwarded`.
    node: String,
    /// `Forwarded` as it was for the last request that nobody else passed on.
    direct: RefCell<DirectForwarded>,
}

/// A value of `Forwarded` with one node, and what it says of that.
#[derive(Clone, Debug, Default)]
struct DirectForwarded {
    host: String,
    scheme: Scheme,
    value: String,
}

impl Caller {
    /// A peer, whose words are believed if `trusted`.
    pub fn new(peer: SocketAddr, trusted: bool) -> Self {
        let client = Client::at(peer.ip());
        let (address, node) = (client.address.to_string(), node(client.address));
        let (unread, direct, becomes) = Default::default();
        Self { peer, trusted, unread, client, becomes, address, node, direct }
    }

    /// Calls `put` with `Forwarded` for a request that came straight from the peer. It is kept,
    /// since a connection asks for one host as a rule.
    fn put_direct<E>(
        &self,
        host: &str,
        scheme: Scheme,
        put: &mut impl FnMut(&str, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut direct = self.direct.borrow_mut();
        if direct.value.is_empty() || direct.host != host || direct.scheme != scheme {
            let value = self.element(host, scheme).concat();
            *direct = DirectForwarded { host: host.to_owned(), scheme, value };
        }
        put(header::FORWARDED.as_str(), direct.value.as_bytes())
    }

    /// The peer's element of `Forwarded`.
    fn element<'a>(&'a self, host: &'a str, scheme: Scheme) -> [&'a str; 6] {
        ["for=", &self.node, ";host=\"", host, "\";proto=", scheme.as_str()]
    }
}

/// An address as a node of `Forwarded`.
fn node(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    }
}

/// What the gateway knows of a request besides its header fields.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Who sent it.
    pub caller: &'a Caller,
    /// For whom, as far as that is believed.
    pub client: &'a Client,
    /// The authority that the client asked for, with its port.
    pub authority: &'a str,
    /// The request's id.
    pub request_id: &'a str,
    /// Which fields it has.
    pub survey: &'a Survey,
    /// How long the body is, when there is one or the client said there would be.
    pub body_bytes: Option<u64>,
    /// What its connection is to become, if anything.
    pub protocol: Option<&'a str>,
    /// What the route took off the path, if anything.
    pub prefix: Option<&'a str>,
    /// Whether the worker may answer with trailers behind a stream, if the client takes any.
    pub takes_trailers: bool,
}

/// The fields that a worker is to see of a client's request.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// What the client sent.
    pub headers: &'a HeaderMap,
    /// What else is known.
    pub origin: Origin<'a>,
}

impl Fields for Forwarded<'_> {
    fn bytes(&self) -> usize {
        // The gateway's own fields are some 250 bytes.
        self.origin.survey.text_bytes + 6 * self.headers.len() + 250
    }

    fn each<E>(&self, put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        forward_request(self.headers, self.origin, put)
    }
}

/// Calls `put` with every field that a worker is to see: the client's end-to-end fields in their
/// order, then the gateway's own.
///
/// # Errors
/// The first of `put`.
fn forward_request<E>(
    headers: &HeaderMap,
    origin: Origin<'_>,
    mut put: impl FnMut(&str, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let listed = match origin.survey.has_connection {
        true => connection_lists(headers),
        false => String::new(),
    };
    let mut cookies_put = false;
    for (name, value) in headers {
        let kind = FieldKind::of(name.as_str());
        let crosses = match kind {
            FieldKind::EndToEnd | FieldKind::Cookie => true,
            FieldKind::Proxys if origin.prefix.is_some() && name == FORWARDED_PREFIX => false,
            FieldKind::Proxys => origin.caller.trusted,
            FieldKind::HopByHop | FieldKind::Own | FieldKind::LooksLikeOurs => false,
        };
        if !crosses || (!listed.is_empty() && is_listed(&listed, name)) {
            continue;
        }
        if kind != FieldKind::Cookie {
            put(name.as_str(), value.as_bytes())?;
        } else if !std::mem::replace(&mut cookies_put, true) {
            put(name.as_str(), &cookies(headers))?;
        }
    }
    if let Some(prefix) = origin.prefix {
        // A proxy in front may have taken off another one before.
        let before = headers.get(FORWARDED_PREFIX).filter(|_| origin.caller.trusted);
        let before = before.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let whole = [before.trim_end_matches('/'), prefix].concat();
        put(FORWARDED_PREFIX.as_str(), whole.as_bytes())?;
    }
    put("host", origin.authority.as_bytes())?;
    put(REQUEST_ID.as_str(), origin.request_id.as_bytes())?;
    if let Some(length) = origin.body_bytes {
        put("content-length", length.to_string().as_bytes())?;
    }
    if let Some(protocol) = origin.protocol {
        put("connection", b"upgrade")?;
        put("upgrade", protocol.as_bytes())?;
    }
    if origin.takes_trailers && takes_trailers(headers) {
        put("te", b"trailers")?;
    }
    put_forwarded(origin, &mut put)
}

/// All cookies as one field: HTTP/2 parts them to compress them better, and outside of it there is
/// to be one (RFC 9113 section 8.2.3, RFC 6265 section 5.4).
fn cookies(headers: &HeaderMap) -> Cow<'_, [u8]> {
    let mut fields = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    let all = match (fields.next(), fields.next()) {
        (Some(first), Some(second)) => {
            [first, second].into_iter().chain(fields).collect::<Vec<_>>()
        }
        (only, _) => return only.unwrap_or_default().into(),
    };
    all.join(&b"; "[..]).into()
}

/// `Forwarded` and its older relatives: what is believed of the way to the peer, and the peer. All
/// of them say the same, by whichever of them it was told.
fn put_forwarded<E>(
    origin: Origin<'_>,
    put: &mut impl FnMut(&str, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let Origin { caller, client, authority, .. } = origin;
    let host = client.host.as_ref().map_or(authority, |host| host.as_str());
    let scheme = client.scheme;
    if client.told.is_empty() {
        put(FORWARDED_FOR.as_str(), caller.address.as_bytes())?;
        put(FORWARDED_HOST.as_str(), host.as_bytes())?;
        put(FORWARDED_PROTO.as_str(), scheme.as_str().as_bytes())?;
        return caller.put_direct(host, scheme, put);
    }
    let mut list = String::new();
    for told in &client.told {
        list += &told.map_or_else(|| UNKNOWN.to_owned(), |told| told.to_string());
        list += ", ";
    }
    list += &caller.address;
    put(FORWARDED_FOR.as_str(), list.as_bytes())?;
    put(FORWARDED_HOST.as_str(), host.as_bytes())?;
    put(FORWARDED_PROTO.as_str(), scheme.as_str().as_bytes())?;
    list.clear();
    for told in &client.told {
        list += "for=";
        list += &told.map_or_else(|| UNKNOWN.to_owned(), node);
        list += ", ";
    }
    list.extend(caller.element(host, scheme));
    put(header::FORWARDED.as_str(), list.as_bytes())
}

/// What RFC 7239 has for an address that nobody knows.
const UNKNOWN: &str = "unknown";

/// The client's request id, when it is one that can go into logs, headers and pages as it is: once,
/// of letters, digits and what stands in UUIDs, base64 and the ids of clouds.
pub fn sound_request_id<'h>(headers: &'h HeaderMap, survey: &Survey) -> Option<&'h str> {
    if survey.request_ids != 1 {
        return None;
    }
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@~".contains(&byte);
    (!id.is_empty() && id.len() <= REQUEST_ID_BYTES && id.bytes().all(sound)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_address::{ProxyField, TrustedProxies, client_address};

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        fields.iter().map(pair).collect()
    }

    fn forwarded(fields: &[(&str, &str)], trusted: bool) -> Vec<String> {
        forwarded_without(None, fields, trusted)
    }

    fn forwarded_without(
        prefix: Option<&str>,
        fields: &[(&str, &str)],
        trusted: bool,
    ) -> Vec<String> {
        let (caller, headers) =
            (Caller::new("192.0.2.7:5000".parse().unwrap(), trusted), headers(fields));
        let networks = if trusted { vec!["192.0.2.0/24".parse().unwrap()] } else { vec![] };
        let proxies = TrustedProxies { networks, field: ProxyField::XForwardedFor };
        let client = client_address(caller.peer.ip(), &headers, &proxies);
        let origin = Origin {
            caller: &caller,
            client: &client,
            authority: "shop.example:8080",
            request_id: "id-1",
            survey: &Survey::of(&headers),
            body_bytes: Some(3),
            protocol: None,
            prefix,
            takes_trailers: false,
        };
        let mut seen = Vec::new();
        forward_request(&headers, origin, |name, value| {
            seen.push(format!("{name}: {}", String::from_utf8_lossy(value)));
            Ok::<(), ()>(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn end_to_end_fields_cross_with_their_repeats_and_the_others_do_not() {
        let seen = forwarded(
            &[
                ("accept", "a"),
                ("accept", "b"),
                ("connection", "keep-alive, X-Secret-Hop"),
                ("x-secret-hop", "1"),
                ("keep-alive", "5"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("content-length", "99"),
                ("cookie", "c"),
            ],
            false,
        );
        assert_eq!(
            seen,
            [
                "accept: a",
                "accept: b",
                "cookie: c",
                "host: shop.example:8080",
                "x-request-id: id-1",
                "content-length: 3",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: shop.example:8080",
                "x-forwarded-proto: http",
                "forwarded: for=192.0.2.7;host=\"shop.example:8080\";proto=http",
            ]
        );
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let fields = [
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-proto", "https"),
        ];
        let stranger = forwarded(&fields, false);
        assert!(stranger.contains(&"x-forwarded-for: 192.0.2.7".to_owned()), "{stranger:?}");
        assert!(stranger.contains(&"x-forwarded-proto: http".to_owned()), "{stranger:?}");
        let proxy = forwarded(&fields, true);
        assert!(proxy.contains(&"x-forwarded-for: 10.0.0.1, 192.0.2.7".to_owned()), "{proxy:?}");
        assert!(proxy.contains(&"x-forwarded-proto: https".to_owned()), "{proxy:?}");
        assert!(
            proxy.iter().any(|field| field.starts_with("forwarded: for=10.0.0.1, for=192.0.2.7;")),
            "{proxy:?}"
        );
    }

    #[test]
    fn a_request_id_is_taken_only_when_it_is_sound() {
        let sound = |fields: &[(&str, &str)]| {
            let headers = headers(fields);
            sound_request_id(&headers, &Survey::of(&headers)).map(str::to_owned)
        };
        assert_eq!(sound(&[("x-request-id", "abc-1")]), Some("abc-1".to_owned()));
        assert_eq!(sound(&[("x-request-id", "a b")]), None);
        assert_eq!(sound(&[("x-request-id", "a\"b")]), None);
        assert_eq!(sound(&[("x-request-id", "a"), ("x-request-id", "b")]), None);
        assert_eq!(sound(&[("x-request-id", &"x".repeat(129))]), None);
        assert_eq!(sound(&[]), None);
    }

    #[test]
    fn what_strangers_say_in_a_proxys_name_is_left_out_under_any_spelling() {
        let fields = [
            ("x-forwarded-prefix", "/x"),
            ("x-forwarded-user", "root"),
            ("x-real-ip", "10.0.0.1"),
            ("x-original-url", "/admin"),
            ("x-rewrite-url", "/admin"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("tracestate", "a=1"),
        ];
        let kept = |trusted, fields: &[(&str, &str)]| {
            let all = forwarded(fields, trusted);
            all.into_iter().take_while(|field| !field.starts_with("host:")).collect::<Vec<_>>()
        };
        assert_eq!(kept(false, &fields), [""; 0]);
        assert_eq!(kept(true, &fields).len(), fields.len());
        let alike = [
            ("x_forwarded_for", "1"),
            ("x-forwarded_proto", "1"),
            ("x.real.ip", "1"),
            ("content_length", "1"),
            ("transfer_encoding", "chunked"),
            ("x_request_id", "1"),
            ("proxy_connection", "1"),
        ];
        for trusted in [false, true] {
            assert_eq!(kept(trusted, &alike), [""; 0], "no proxy says it so either");
        }
        let others = [("x_user", "1"), ("x-forward", "2"), ("x.y", "3"), ("trace", "4")];
        assert_eq!(kept(false, &others), ["x_user: 1", "x-forward: 2", "x.y: 3", "trace: 4"]);
    }

    #[test]
    fn a_prefix_that_was_taken_off_is_told_behind_that_of_a_trusted_proxy() {
        let told = |trusted, fields: &[(&str, &str)]| {
            let all = forwarded_without(Some("/api"), fields, trusted);
            all.into_iter()
                .filter(|field| field.starts_with("x-forwarded-prefix"))
                .collect::<Vec<_>>()
        };
        let sent = [("x-forwarded-prefix", "/shop/")];
        assert_eq!(told(true, &sent), ["x-forwarded-prefix: /shop/api"]);
        assert_eq!(told(false, &sent), ["x-forwarded-prefix: /api"]);
        assert_eq!(told(false, &[]), ["x-forwarded-prefix: /api"]);
    }

    #[test]
    fn cookies_are_one_field() {
        let seen = forwarded(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2; c=3")], false);
        assert_eq!(seen[..2], ["cookie: a=1; b=2; c=3", "x: y"]);
    }
}
