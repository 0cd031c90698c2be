//! Whatever header fields say: a stranger is its own peer, and behind trusted proxies the client is
//! none of them unless all are.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue};
use natsway_apiproxy::client_address::{ProxyField, TrustedProxies, client_address};

/// See the module.
pub fn check(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    let proxy = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let stranger = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    for field in [ProxyField::XForwardedFor, ProxyField::Forwarded] {
        let networks = vec!["10.0.0.0/8".parse().expect("a network")];
        let proxies = TrustedProxies { networks, field };
        assert_eq!(client_address(stranger, &headers, &proxies).address, stranger);
        let client = client_address(proxy, &headers, &proxies);
        if proxies.trusts(client.address) && client.told.iter().all(Option::is_some) {
            assert!(client.told.iter().flatten().all(|address| proxies.trusts(*address)));
        }
    }
}
