//! Which header fields cross the gateway, and which it adds: pure.
//!
//! RFC 9110 section 7.6.1 (hop-by-hop fields), RFC 7239 (`Forwarded`).

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use natsway_caller::encode::Fields;

/// Names the request in logs and in the error bodies; taken from the client when it sends a sound one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The longest request id that is taken from a client, in bytes.
const REQUEST_ID_BYTES: usize = 128;

/// Who is at the other end of a client's connection: the same for all of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The client, or the proxy in front of us.
    pub peer: SocketAddr,
    /// Whether the peer is a proxy whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted: bool,
    /// The peer's address as `X-Forwarded-For` has it.
    address: String,
    /// The same as a node of `Forwarded`.
    node: String,
}

impl Caller {
    /// A peer, whose words are believed if `trusted`.
    pub fn new(peer: SocketAddr, trusted: bool) -> Caller {
        let ip = peer.ip().to_canonical();
        let node = match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("\"[{ip}]\""),
        };
        Caller { peer, trusted, address: ip.to_string(), node }
    }
}

/// What the gateway knows of a request besides its header fields.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Who sent it.
    pub caller: &'a Caller,
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

/// Calls `put` with every field that a worker is to see: the client's end-to-end fields in their order, then the
/// gateway's own.
///
/// # Errors
/// The first of `put`.
pub fn forward_request<E>(
    headers: &HeaderMap,
    origin: Origin<'_>,
    mut put: impl FnMut(&str, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let listed = connection_lists(headers);
    for (name, value) in headers {
        let ours = [
            &header::HOST,
            &header::CONTENT_LENGTH,
            &header::EXPECT,
            &header::FORWARDED,
            &REQUEST_ID,
            &FORWARDED_FOR,
            &FORWARDED_HOST,
            &FORWARDED_PROTO,
        ]
        .contains(&name);
        if ours || is_hop_by_hop(name) || (!listed.is_empty() && is_listed(&listed, name)) {
            continue;
        }
        put(name.as_str(), value.as_bytes())?;
    }
    put("host", origin.authority.as_bytes())?;
    put(REQUEST_ID.as_str(), origin.request_id.as_bytes())?;
    if let Some(length) = origin.body_bytes {
        put("content-length", length.to_string().as_bytes())?;
    }
    put_forwarded(headers, origin, &mut put)
}

/// `Forwarded` and its older relatives: appended to what a trusted proxy sent, in place of what anybody else did.
fn put_forwarded<E>(
    headers: &HeaderMap,
    origin: Origin<'_>,
    put: &mut impl FnMut(&str, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let Origin { caller, authority, .. } = origin;
    let believed = |name: &HeaderName| match caller.trusted {
        true => {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.collect::<Vec<_>>().join(", ")
        }
        false => String::new(),
    };
    let appended = |mut list: String, parts: &[&str]| {
        let separator = if list.is_empty() { "" } else { ", " };
        list.reserve(separator.len() + parts.iter().map(|part| part.len()).sum::<usize>());
        list.push_str(separator);
        list.extend(parts.iter().copied());
        list
    };
    let all = appended(believed(&FORWARDED_FOR), &[&caller.address]);
    put(FORWARDED_FOR.as_str(), all.as_bytes())?;
    put(FORWARDED_HOST.as_str(), or(&believed(&FORWARDED_HOST), authority).as_bytes())?;
    put(FORWARDED_PROTO.as_str(), or(&believed(&FORWARDED_PROTO), "http").as_bytes())?;
    let node = ["for=", &caller.node, ";host=\"", authority, "\";proto=http"];
    put(header::FORWARDED.as_str(), appended(believed(&header::FORWARDED), &node).as_bytes())
}

fn or<'t>(told: &'t str, own: &'t str) -> &'t str {
    if told.is_empty() { own } else { told }
}

/// The client's request id, when it is one that can go into logs and headers as it is.
pub fn sound_request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let sound =
        !id.is_empty() && id.len() <= REQUEST_ID_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic());
    sound.then_some(id)
}

/// Why a worker's response may not go to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseFault {
    /// 1xx, or above 599.
    #[error("status {0} is not one that a worker may answer")]
    Status(StatusCode),
    /// 204 and 304 have none.
    #[error("status {0} with a body")]
    Body(StatusCode),
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
        return Err(ResponseFault::Status(status));
    }
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if bodiless && body_bytes > 0 {
        return Err(ResponseFault::Body(status));
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
    // A length is what the body has, which hyper writes. Only where there is no body by rule does a worker's own
    // figure stand: it says what a GET would have given.
    let stands = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    let length = headers.remove(header::CONTENT_LENGTH);
    if stands {
        let said = length.filter(|value| value.to_str().is_ok_and(|text| text.parse::<u64>().is_ok()));
        let length = said.or_else(|| (body_bytes > 0).then(|| HeaderValue::from(body_bytes as u64)));
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        fields.iter().map(pair).collect()
    }

    fn forwarded(fields: &[(&str, &str)], trusted: bool) -> Vec<String> {
        let caller = Caller::new("192.0.2.7:5000".parse().unwrap(), trusted);
        let origin = Origin {
            caller: &caller,
            authority: "shop.example:8080",
            request_id: "id-1",
            body_bytes: Some(3),
        };
        let mut seen = Vec::new();
        forward_request(&headers(fields), origin, |name, value| {
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
        let fields =
            [("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1"), ("x-forwarded-proto", "https")];
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
    fn statuses_that_a_worker_may_not_answer_are_refused() {
        for code in [100, 101, 199, 600, 999] {
            let status = StatusCode::from_u16(code).unwrap();
            assert!(check_response(&Method::GET, status, &mut HeaderMap::new(), 0).is_err(), "{code}");
        }
        let no_content = StatusCode::NO_CONTENT;
        assert!(check_response(&Method::GET, no_content, &mut HeaderMap::new(), 1).is_err());
        assert!(check_response(&Method::GET, no_content, &mut HeaderMap::new(), 0).is_ok());
    }
}
