//! Who a client is behind the proxies that are believed: pure.
//!
//! Each proxy on the way says from whom it got the request: by one more element of `Forwarded` (RFC
//! 7239), or by one more address in `X-Forwarded-For`. Only the last of these was written by a peer
//! of ours. So they are read from the right, past the networks that are believed; the first address
//! that is none of theirs is the client's, and whatever stands left of it is hearsay.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use http::uri::Authority;
use ipnet::IpNet;

/// The addresses that a request came by, the client's first.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The host that the client asked for.
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The scheme that the client used.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The proxies that are believed, and by which field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Where they are.
    pub networks: Vec<IpNet>,
    /// The field that they write. The other one they may pass on as a stranger sent it, so it is
    /// not read.
    pub field: ProxyField,
}

/// The field by which proxies say for whom they ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProxyField {
    /// `X-Forwarded-For`, with `X-Forwarded-Host` and `X-Forwarded-Proto` beside it.
    #[default]
    XForwardedFor,
    /// `Forwarded`.
    Forwarded,
}

/// How a client reached the first proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    #[default]
    Http,
    /// By TLS.
    Https,
}

/// What is believed of who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address, an IPv4 address in its own form.
    pub address: IpAddr,
    /// Its scheme.
    pub scheme: Scheme,
    /// The authority that it asked for, where a proxy says so.
    pub host: Option<Authority>,
    /// The addresses that a believed proxy tells, as far as they are addresses; the last one is its
    /// own peer's.
    pub told: Vec<Option<IpAddr>>,
}

/// What one proxy says of its peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hop {
    address: Option<IpAddr>,
    scheme: Option<Scheme>,
    host: Option<Authority>,
}

impl TrustedProxies {
    /// Whether an address is that of a proxy that is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

impl Scheme {
    /// As URIs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            text if text.eq_ignore_ascii_case("http") => Some(Self::Http),
            text if text.eq_ignore_ascii_case("https") => Some(Self::Https),
            _ => None,
        }
    }
}

impl Client {
    /// A client that is its connection's own peer.
    pub fn at(peer: IpAddr) -> Self {
        Self { address: peer.to_canonical(), scheme: Scheme::Http, host: None, told: Vec::new() }
    }
}

/// Returns who sent a request that came from `peer` with these fields.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, proxies: &TrustedProxies) -> Client {
    let peer = Client::at(peer);
    if !proxies.trusts(peer.address) {
        return peer;
    }
    let hops = match proxies.field {
        ProxyField::XForwardedFor => listed_hops(headers),
        ProxyField::Forwarded => forwarded_hops(headers),
    };
    let told = hops.iter().map(|hop| hop.address).collect();
    let client = client_hop(&hops, proxies);
    let own = client.map(|index| hops[index].clone()).unwrap_or_default();
    let (scheme, host) = match proxies.field {
        ProxyField::XForwardedFor => {
            let host = first_listed(headers, &FORWARDED_HOST).and_then(|host| authority(&host));
            (first_listed(headers, &FORWARDED_PROTO).and_then(|proto| Scheme::parse(&proto)), host)
        }
        ProxyField::Forwarded => (own.scheme, own.host),
    };
    Client {
        address: own.address.unwrap_or(peer.address),
        scheme: scheme.unwrap_or_default(),
        host,
        told,
    }
}

/// The client among what proxies say, leftmost first: from the right, the first that is no proxy of
/// ours. Where all are, it is the leftmost; what is no address ends the walk.
fn client_hop(hops: &[Hop], proxies: &TrustedProxies) -> Option<usize> {
    let mut client = None;
    for (index, hop) in hops.iter().enumerate().rev() {
        let Some(address) = hop.address else { break };
        client = Some(index);
        if !proxies.trusts(address) {
            break;
        }
    }
    client
}

/// The values of a field, whatever bytes a stranger had in them: what a proxy wrote beside those
/// stays readable.
fn values<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = Cow<'h, str>> {
    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()))
}

fn first_listed(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = values(headers, name).next()?;
    value.split(',').next().map(|first| first.trim().to_owned())
}

/// The most hops that are read, from the right: a stranger writes as many commas as a head may
/// hold, and each is repeated to workers several times as long.
const MOST_HOPS: usize = 32;

fn listed_hops(headers: &HeaderMap) -> Vec<Hop> {
    let hop = |text: &str| Hop { address: node(text.trim()), ..Hop::default() };
    let lines: Vec<_> = values(headers, &FORWARDED_FOR).collect();
    let from_the_right = lines.iter().rev().flat_map(|line| line.rsplit(','));
    let mut hops: Vec<Hop> = from_the_right.take(MOST_HOPS).map(hop).collect();
    hops.reverse();
    hops
}

fn forwarded_hops(headers: &HeaderMap) -> Vec<Hop> {
    let lines: Vec<_> = values(headers, &FORWARDED).collect();
    let elements = lines.iter().rev().flat_map(|line| parts(line, ',').into_iter().rev());
    let elements = elements.filter(|element| !element.trim().is_empty());
    let mut hops: Vec<Hop> = elements.take(MOST_HOPS).map(forwarded_hop).collect();
    hops.reverse();
    hops
}

/// One element of `Forwarded`: pairs with semicolons between, in any order, names in any case.
fn forwarded_hop(element: &str) -> Hop {
    let mut hop = Hop::default();
    for pair in parts(element, ';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        let value = unquote(value.trim());
        match name.trim() {
            name if name.eq_ignore_ascii_case("for") => hop.address = node(&value),
            name if name.eq_ignore_ascii_case("proto") => hop.scheme = Scheme::parse(&value),
            name if name.eq_ignore_ascii_case("host") => hop.host = authority(&value),
            _ => {}
        }
    }
    hop
}

/// The parts of a text between separators that do not stand in a quoted string. A quotation that
/// does not end is none: otherwise a stranger's would swallow what a proxy wrote behind it.
fn parts(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(|letter| {
        if escaped {
            escaped = false;
            return false;
        }
        match letter {
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        letter == separator && !quoted
    });
    let parts = parts.collect();
    if quoted { text.split(separator).collect() } else { parts }
}

/// What a token or a quoted string says.
fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut escaped = false;
    inner
        .chars()
        .filter(|letter| {
            escaped = *letter == '\\' && !escaped;
            !escaped
        })
        .collect()
}

/// The address of a node: alone, in brackets, with a port. `unknown` and names that hide an address
/// are none.
fn node(text: &str) -> Option<IpAddr> {
    let address = match text.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest.split_once(']')?;
            (port.is_empty() || port.starts_with(':')).then_some(())?;
            IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?)
        }
        None => match text.parse() {
            Ok(address) => address,
            Err(_) => IpAddr::V4(text.split_once(':')?.0.parse::<Ipv4Addr>().ok()?),
        },
    };
    Some(address.to_canonical())
}

/// A host that may stand in a quoted string and in a field as it is.
fn authority(text: &str) -> Option<Authority> {
    let authority: Authority = text.parse().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    authority.as_str().bytes().all(plain).then_some(authority)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies(field: ProxyField) -> TrustedProxies {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        TrustedProxies { networks, field }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().expect("a test's value"))
        };
        fields.iter().map(pair).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn listed(peer: &str, list: &str) -> String {
        let headers = headers(&[("x-forwarded-for", list)]);
        client_address(ip(peer), &headers, &proxies(ProxyField::XForwardedFor)).address.to_string()
    }

    fn forwarded(list: &str) -> Client {
        client_address(
            ip("10.0.0.1"),
            &headers(&[("forwarded", list)]),
            &proxies(ProxyField::Forwarded),
        )
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxys_is_the_clients() {
        for (peer, list, client) in [
            // A stranger is believed nothing.
            ("192.0.2.7", "198.51.100.1", "192.0.2.7"),
            ("::ffff:192.0.2.7", "198.51.100.1", "192.0.2.7"),
            ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
            ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
            // What the client itself had put there.
            ("10.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),
            ("10.0.0.1", "10.0.0.9, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
            ("fd00::1", "198.51.100.1,fd00::2", "198.51.100.1"),
            // All of it is ours: the farthest.
            ("10.0.0.1", "10.0.0.9, 10.0.0.2", "10.0.0.9"),
            // Junk ends the walk at the nearest that is known.
            ("10.0.0.1", "198.51.100.1, what, 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1", "198.51.100.1, what", "10.0.0.1"),
            ("10.0.0.1", "198.51.100.1,", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            // Forms.
            ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
            ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
            ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
            ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
            ("10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
            ("10.0.0.1", "[2001:db8::1]x", "10.0.0.1"),
        ] {
            assert_eq!(listed(peer, list), client, "{list:?} from {peer}");
        }
    }

    #[test]
    fn several_fields_are_one_list() {
        let headers =
            headers(&[("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "198.51.100.1")]);
        let client = client_address(ip("10.0.0.1"), &headers, &proxies(ProxyField::XForwardedFor));
        assert_eq!(client.address, ip("198.51.100.1"));
        assert_eq!(client.told, [Some(ip("203.0.113.9")), Some(ip("198.51.100.1"))]);
    }

    #[test]
    fn forwarded_is_read_by_its_grammar() {
        let client = forwarded(r#"for="[2001:db8::1]:4711";proto=https;host="shop.example:8443""#);
        assert_eq!((client.address, client.scheme), (ip("2001:db8::1"), Scheme::Https));
        assert_eq!(client.host.unwrap(), "shop.example:8443");
        // Separators in quoted strings, and quotes in those.
        let quoted = forwarded(
            r#"for=203.0.113.9;by="a,b;c\",", For=198.51.100.1 ; PROTO=HTTPS, for=10.0.0.2"#,
        );
        assert_eq!((quoted.address, quoted.scheme), (ip("198.51.100.1"), Scheme::Https));
        // The element that is the client's says how it came, and no other.
        let other = forwarded("for=203.0.113.9;proto=https, for=198.51.100.1;proto=http");
        assert_eq!((other.address, other.scheme), (ip("198.51.100.1"), Scheme::Http));
        for hidden in ["for=unknown", "for=_secret", "for=\"_secret:80\"", "proto=https", "", ",,"]
        {
            assert_eq!(forwarded(hidden).address, ip("10.0.0.1"), "{hidden}");
        }
        assert_eq!(forwarded(r#"for=198.51.100.1;host="a\"b""#).host, None);
    }

    #[test]
    fn only_the_field_that_the_proxies_write_is_read() {
        let both = headers(&[
            ("x-forwarded-for", "198.51.100.1"),
            ("forwarded", "for=203.0.113.9;proto=https"),
        ]);
        let by = |field| client_address(ip("10.0.0.1"), &both, &proxies(field));
        assert_eq!(by(ProxyField::XForwardedFor).address, ip("198.51.100.1"));
        assert_eq!(by(ProxyField::XForwardedFor).scheme, Scheme::Http);
        assert_eq!(by(ProxyField::Forwarded).address, ip("203.0.113.9"));
    }

    #[test]
    fn the_scheme_and_the_host_come_from_whom_the_address_comes_from() {
        let told = headers(&[
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-proto", "HTTPS, http"),
            ("x-forwarded-host", "shop.example"),
        ]);
        let client = client_address(ip("10.0.0.1"), &told, &proxies(ProxyField::XForwardedFor));
        assert_eq!((client.scheme, client.host.unwrap().as_str()), (Scheme::Https, "shop.example"));
        let stranger = client_address(ip("192.0.2.7"), &told, &proxies(ProxyField::XForwardedFor));
        assert_eq!((stranger.scheme, stranger.host), (Scheme::Http, None));
        let odd = headers(&[("x-forwarded-proto", "gopher"), ("x-forwarded-host", "a\"b")]);
        let client = client_address(ip("10.0.0.1"), &odd, &proxies(ProxyField::XForwardedFor));
        assert_eq!((client.scheme, client.host), (Scheme::Http, None));
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([10, a, b, c])),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()).to_canonical()),
        ]
    }

    fn stranger() -> impl Strategy<Value = IpAddr> {
        address()
            .prop_filter("a stranger", |address| !proxies(ProxyField::Forwarded).trusts(*address))
    }

    fn join(list: &[String]) -> String {
        list.join(", ")
    }

    proptest! {
        #[test]
        fn nothing_that_a_stranger_wrote_changes_who_it_is(
            hearsay in "[ -~]{0,60}",
            client in stranger(),
            ours in proptest::collection::vec(any::<[u8; 3]>(), 0..4),
        ) {
            let ours: Vec<IpAddr> = ours.into_iter().map(|[a, b, c]| IpAddr::from([10, a, b, c])).collect();
            let told: Vec<IpAddr> = [client].into_iter().chain(ours).collect();
            let listed = format!("{hearsay},{}", join(&told.iter().map(IpAddr::to_string).collect::<Vec<_>>()));
            let by = headers(&[("x-forwarded-for", &listed)]);
            let found = client_address(ip("10.0.0.1"), &by, &proxies(ProxyField::XForwardedFor));
            prop_assert_eq!(found.address, client);
            let elements: Vec<String> = told.iter().map(|told| match told {
                IpAddr::V4(told) => format!("for={told}"),
                IpAddr::V6(told) => format!("for=\"[{told}]\""),
            }).collect();
            let by = headers(&[("forwarded", &format!("{hearsay},{}", join(&elements)))]);
            let found = client_address(ip("10.0.0.1"), &by, &proxies(ProxyField::Forwarded));
            prop_assert_eq!(found.address, client);
        }

        #[test]
        fn a_stranger_is_whoever_is_connected(peer in stranger(), list in "[ -~]{0,60}") {
            for field in [ProxyField::XForwardedFor, ProxyField::Forwarded] {
                let told = headers(&[("x-forwarded-for", &list), ("forwarded", &list)]);
                prop_assert_eq!(client_address(peer, &told, &proxies(field)), Client::at(peer));
            }
        }

        #[test]
        fn the_client_is_the_peer_or_one_that_was_told(list in proptest::collection::vec(address(), 0..6)) {
            let text = join(&list.iter().map(IpAddr::to_string).collect::<Vec<_>>());
            let told = headers(&[("x-forwarded-for", &text)]);
            let found = client_address(ip("10.0.0.1"), &told, &proxies(ProxyField::XForwardedFor)).address;
            prop_assert!(found == ip("10.0.0.1") || list.iter().any(|told| told.to_canonical() == found));
        }

        #[test]
        fn any_text_is_read_to_its_end(list in "\\PC{0,80}") {
            let Ok(value) = http::HeaderValue::try_from(list) else { return Ok(()) };
            for (name, field) in [(FORWARDED_FOR, ProxyField::XForwardedFor), (FORWARDED, ProxyField::Forwarded)] {
                client_address(ip("10.0.0.1"), &HeaderMap::from_iter([(name, value.clone())]), &proxies(field));
            }
        }
    }
}
