//! Which header fields cross the gateway, and which it adds: pure.
//!
//! RFC 9110 sections 6.5 (trailers) and 7.6.1 (hop-by-hop fields), RFC 7239 (`Forwarded`), RFC 9113
//! section 8.2.3 (cookies).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use natsway_boot::trace::{TRACEPARENT, TRACESTATE};
use natsway_caller::encode::Fields;

use crate::client_address::{Client, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO};
use crate::linger::Unread;

/// Names the request in logs and in the error bodies; taken from the client when it sends a sound
/// one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The longest request id that is taken from a client, in bytes.
const REQUEST_ID_BYTES: usize = 128;

/// Who is at the other end of a client's connection: the same for all of its requests.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The client, or the proxy in front of us.
    pub peer: SocketAddr,
    /// Whether the peer is a proxy that is believed.
    pub trusted: bool,
    /// What it has sent that belongs to no request that was read whole.
    pub unread: Rc<Unread>,
    /// The peer's address as `X-Forwarded-For` has it.
    address: String,
    /// The same as a node of `Forwarded`.
    node: String,
}

impl Caller {
    /// A peer, whose words are believed if `trusted`.
    pub fn new(peer: SocketAddr, trusted: bool) -> Caller {
        let ip = peer.ip().to_canonical();
        Caller { peer, trusted, unread: Rc::default(), address: ip.to_string(), node: node(ip) }
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
    /// How long the body is, when there is one or the client said there would be.
    pub body_bytes: Option<usize>,
}

/// Whether a field concerns one connection only.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    [
        &header::CONNECTION,
        &header::TRANSFER_ENCODING,
        &header::UPGRADE,
        &header::TE,
        &header::TRAILER,
        &header::PROXY_AUTHENTICATE,
        &header::PROXY_AUTHORIZATION,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &HTTP2_SETTINGS,
    ]
    .contains(&name)
}

/// Whether `Connection` names a field, which makes it hop-by-hop.
fn is_listed(connection: &str, name: &HeaderName) -> bool {
    connection.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(name.as_str()))
}

/// Everything that `Connection` lists, in one string; empty as a rule.
fn connection_lists(headers: &HeaderMap) -> String {
    if !headers.contains_key(header::CONNECTION) {
        return String::new();
    }
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.filter(|value| !is_plain_connection(value)).collect::<Vec<_>>().join(",")
}

fn is_plain_connection(value: &str) -> bool {
    value.eq_ignore_ascii_case("keep-alive") || value.eq_ignore_ascii_case("close")
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
        let sent: usize =
            self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 6).sum();
        // The gateway's own fields are some 250 bytes.
        sent + 250
    }

    fn each<E>(&self, put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        forward_request(self.headers, self.origin, put)
    }
}

/// Whether a field is one that the gateway says itself, in place of the client's.
fn is_own(name: &HeaderName) -> bool {
    [
        &header::HOST,
        &header::CONTENT_LENGTH,
        &header::EXPECT,
        &header::FORWARDED,
        &REQUEST_ID,
        &FORWARDED_FOR,
        &FORWARDED_HOST,
        &FORWARDED_PROTO,
    ]
    .contains(&name)
}

/// Beginnings of the names by which proxies say who a client is and what it asked for. A stranger's
/// own are lies or mistakes, and workers believe them.
const PROXYS_PREFIXES: [&str; 4] = ["x-forwarded", "x-real-ip", "x-original-", "x-rewrite-"];

/// Whether a field is a proxy's to send: nothing that a stranger says by it is passed on.
fn is_proxys(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => PROXYS_PREFIXES.iter().any(|prefix| name.starts_with(prefix)),
        Some(b't') => name == TRACEPARENT.as_str() || name == TRACESTATE.as_str(),
        _ => false,
    }
}

/// Whether a name becomes one of those above where `-`, `_` and `.` are taken for one another, as
/// CGI and WSGI do: `X_Forwarded_For` would stand beside the gateway's own, or in its place.
fn looks_like_ours(name: &str) -> bool {
    if !name.bytes().any(|byte| byte == b'_' || byte == b'.') {
        return false;
    }
    let Ok(folded) = HeaderName::try_from(name.replace(['_', '.'], "-")) else { return false };
    is_proxys(folded.as_str()) || is_own(&folded) || is_hop_by_hop(&folded)
}

/// Calls `put` with every field that a worker is to see: the client's end-to-end fields in their
/// order, then the gateway's own.
///
/// # Errors
/// The first of `put`.
pub fn forward_request<E>(
    headers: &HeaderMap,
    origin: Origin<'_>,
    mut put: impl FnMut(&str, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let listed = connection_lists(headers);
    let mut cookies_put = false;
    for (name, value) in headers {
        let ours = is_own(name) || (!origin.caller.trusted && is_proxys(name.as_str()));
        if ours || is_hop_by_hop(name) || (!listed.is_empty() && is_listed(&listed, name)) {
            continue;
        }
        if name == header::COOKIE {
            if !std::mem::replace(&mut cookies_put, true) {
                put(name.as_str(), &cookies(headers))?;
            }
            continue;
        }
        if looks_like_ours(name.as_str()) {
            continue;
        }
        put(name.as_str(), value.as_bytes())?;
    }
    put("host", origin.authority.as_bytes())?;
    put(REQUEST_ID.as_str(), origin.request_id.as_bytes())?;
    if let Some(length) = origin.body_bytes {
        put("content-length", length.to_string().as_bytes())?;
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
    let scheme = client.scheme.as_str();
    let mut list = String::new();
    for told in &client.told {
        list += &told.map_or_else(|| UNKNOWN.to_owned(), |told| told.to_string());
        list += ", ";
    }
    list += &caller.address;
    put(FORWARDED_FOR.as_str(), list.as_bytes())?;
    put(FORWARDED_HOST.as_str(), host.as_bytes())?;
    put(FORWARDED_PROTO.as_str(), scheme.as_bytes())?;
    list.clear();
    for told in &client.told {
        list += "for=";
        list += &told.map_or_else(|| UNKNOWN.to_owned(), node);
        list += ", ";
    }
    let own = ["for=", &caller.node, ";host=\"", host, "\";proto=", scheme];
    list.reserve(own.iter().map(|part| part.len()).sum());
    list.extend(own);
    put(header::FORWARDED.as_str(), list.as_bytes())
}

/// What RFC 7239 has for an address that nobody knows.
const UNKNOWN: &str = "unknown";

/// The client's request id, when it is one that can go into logs, headers and pages as it is: once,
/// of letters, digits and what stands in UUIDs, base64 and the ids of clouds.
pub fn sound_request_id(headers: &HeaderMap) -> Option<&str> {
    let mut ids = headers.get_all(REQUEST_ID).iter();
    let (Some(id), None) = (ids.next(), ids.next()) else { return None };
    let id = id.to_str().ok()?;
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@~".contains(&byte);
    (!id.is_empty() && id.len() <= REQUEST_ID_BYTES && id.bytes().all(sound)).then_some(id)
}

/// Why a worker's response may not go to a client: its status is 1xx, or above 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status {0} is not one that a worker may answer")]
pub struct ResponseFault(StatusCode);

/// Whether an answer with that status has a body, were it not for its request's method.
pub fn has_content(status: StatusCode) -> bool {
    ![StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

/// Takes those out of a response's trailers that must not be trailers, and all where the client
/// takes none.
///
/// RFC 9110 section 6.5.1: none that frames or routes a message, says how to read its body, or
/// proves who asks; and section 6.5.2: only to who says `TE: trailers`, which HTTP/2 clients need
/// not. `content` is whether there is a body, behind which they could stand.
pub fn passable_trailers(
    mut trailers: HeaderMap,
    request: &HeaderMap,
    version: Version,
    content: bool,
) -> HeaderMap {
    let wanted = || {
        let values = request.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    };
    let passable =
        content && (version >= Version::HTTP_2 || version == Version::HTTP_11 && wanted());
    if !passable {
        return HeaderMap::new();
    }
    let never: Vec<HeaderName> =
        trailers.keys().filter(|name| is_never_trailer(name)).cloned().collect();
    for name in never {
        trailers.remove(name);
    }
    trailers
}

fn is_never_trailer(name: &HeaderName) -> bool {
    const NEVER: [&HeaderName; 9] = [
        &header::AUTHORIZATION,
        &header::CACHE_CONTROL,
        &header::CONTENT_ENCODING,
        &header::CONTENT_LENGTH,
        &header::CONTENT_RANGE,
        &header::CONTENT_TYPE,
        &header::HOST,
        &header::MAX_FORWARDS,
        &header::SET_COOKIE,
    ];
    NEVER.contains(&name) || is_hop_by_hop(name)
}

/// The value of `Trailer` that announces these.
pub fn announced(trailers: &HeaderMap) -> Option<HeaderValue> {
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    HeaderValue::try_from(names.join(", ")).ok().filter(|names| !names.is_empty())
}

/// Checks a worker's response head and takes out what is the gateway's own to say.
///
/// # Errors
/// [`ResponseFault`]: then the client gets a 502.
pub fn check_response(
    method: &Method,
    status: StatusCode,
    headers: &mut HeaderMap,
    body_bytes: usize,
) -> Result<(), ResponseFault> {
    if !(200..600).contains(&status.as_u16()) {
        return Err(ResponseFault(status));
    }
    let listed = connection_lists(headers);
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name) || (!listed.is_empty() && is_listed(&listed, name)))
        .cloned()
        .collect();
    for name in doomed {
        headers.remove(name);
    }
    // A length is what the body has, which hyper writes. Only where there is no body by rule does a
    // worker's own figure stand: it says what a GET would have given.
    let stands = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    let length = headers.remove(header::CONTENT_LENGTH);
    if stands {
        let said =
            length.filter(|value| value.to_str().is_ok_and(|text| text.parse::<u64>().is_ok()));
        let had = body_bytes > 0 && has_content(status);
        let length = said.or_else(|| had.then(|| HeaderValue::from(body_bytes as u64)));
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length);
        }
    }
    Ok(())
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
            body_bytes: Some(3),
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
        assert_eq!(sound_request_id(&headers(&[("x-request-id", "abc-1")])), Some("abc-1"));
        assert_eq!(sound_request_id(&headers(&[("x-request-id", "a b")])), None);
        assert_eq!(sound_request_id(&headers(&[("x-request-id", "a\"b")])), None);
        assert_eq!(
            sound_request_id(&headers(&[("x-request-id", "a"), ("x-request-id", "b")])),
            None
        );
        assert_eq!(sound_request_id(&headers(&[("x-request-id", &"x".repeat(129))])), None);
        assert_eq!(sound_request_id(&headers(&[])), None);
    }

    #[test]
    fn a_response_keeps_its_end_to_end_fields_alone() {
        let mut fields = headers(&[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
        ]);
        check_response(&Method::GET, StatusCode::OK, &mut fields, 3).unwrap();
        assert_eq!(fields, headers(&[("set-cookie", "a"), ("set-cookie", "b")]));
    }

    #[test]
    fn the_length_of_a_head_response_is_that_of_the_get() {
        let mut said = headers(&[("content-length", "7")]);
        check_response(&Method::HEAD, StatusCode::OK, &mut said, 0).unwrap();
        assert_eq!(said, headers(&[("content-length", "7")]));
        let mut forged = headers(&[("content-length", "7, 8")]);
        check_response(&Method::HEAD, StatusCode::OK, &mut forged, 0).unwrap();
        assert!(forged.is_empty());
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
    fn cookies_are_one_field() {
        let seen = forwarded(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2; c=3")], false);
        assert_eq!(seen[..2], ["cookie: a=1; b=2; c=3", "x: y"]);
    }

    #[test]
    fn trailers_go_to_whom_takes_them_without_what_must_not_be_one() {
        let trailers =
            || headers(&[("x-sum", "1"), ("set-cookie", "a"), ("connection", "x"), ("x-sum", "2")]);
        let te = headers(&[("te", "gzip, Trailers")]);
        let passed = |request: &HeaderMap, version, content| {
            passable_trailers(trailers(), request, version, content).len()
        };
        assert_eq!(passed(&te, Version::HTTP_11, true), 2);
        assert_eq!(passed(&HeaderMap::new(), Version::HTTP_2, true), 2);
        assert_eq!(passed(&HeaderMap::new(), Version::HTTP_11, true), 0);
        assert_eq!(passed(&te, Version::HTTP_10, true), 0);
        assert_eq!(passed(&te, Version::HTTP_11, false), 0);
        assert_eq!(
            announced(&headers(&[("x-a", "1"), ("x-a", "2"), ("x-b", "3")])).unwrap(),
            "x-a, x-b"
        );
        assert_eq!(announced(&HeaderMap::new()), None);
    }

    #[test]
    fn a_body_that_is_left_out_is_not_a_length() {
        let mut fields = HeaderMap::new();
        check_response(&Method::GET, StatusCode::NOT_MODIFIED, &mut fields, 3).unwrap();
        assert!(fields.is_empty());
    }

    #[test]
    fn statuses_that_a_worker_may_not_answer_are_refused() {
        for code in [100, 101, 199, 600, 999] {
            let status = StatusCode::from_u16(code).unwrap();
            assert!(
                check_response(&Method::GET, status, &mut HeaderMap::new(), 0).is_err(),
                "{code}"
            );
        }
    }
}
