//! Where workers dial: what is read first on a connection, and which addresses offers say.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natsway_wire::offer::Offer;
use tokio::io::{AsyncRead, AsyncReadExt};
use tracing::warn;

use crate::preface::Preface;

/// How long a connection may take to say for whom it is.
const PREFACE_TIMEOUT: Duration = Duration::from_millis(500);

/// Reads what a connection begins with.
///
/// # Errors
/// It is no tunnel, or said nothing for half a second.
///
/// # Cancel safety
/// What was read is lost.
pub async fn begun(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<Preface> {
    let mut bytes = [0; Preface::BYTES];
    tokio::time::timeout(PREFACE_TIMEOUT, connection.read_exact(&mut bytes)).await??;
    Preface::decode(bytes).map_err(io::Error::other)
}

/// Returns the addresses that offers say: those that are `given`, else the one that is `bound`,
/// else every address of this machine that others may reach. One without a port has that of
/// `bound`.
pub fn said_addresses(given: &[String], bound: SocketAddr) -> Vec<String> {
    said(given, bound, own_addresses)
}

fn said(
    given: &[String],
    bound: SocketAddr,
    own: impl FnOnce() -> io::Result<Vec<IpAddr>>,
) -> Vec<String> {
    let port = bound.port();
    if !given.is_empty() {
        let has_port = |address: &str| {
            address.rsplit_once(':').is_some_and(|(host, port)| {
                port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
            })
        };
        let with_port = |address: &String| match has_port(address) {
            true => address.clone(),
            false => format!("{address}:{port}"),
        };
        return given.iter().take(Offer::ADDRESSES).map(with_port).collect();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let found = own().unwrap_or_else(|error| {
        warn!(%error, "the addresses of this machine are not known: say which workers dial");
        Vec::new()
    });
    let (loopback, mut others): (Vec<IpAddr>, Vec<IpAddr>) = found
        .into_iter()
        .filter(|ip| !is_link_local(*ip) && (ip.is_ipv4() || bound.is_ipv6()))
        .partition(IpAddr::is_loopback);
    if others.is_empty() {
        others = loopback;
    }
    let said = others.into_iter().map(|ip| SocketAddr::new(ip, port).to_string());
    said.take(Offer::ADDRESSES).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(interfaces.filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(given: &[&str], bound: &str, own: &[&str]) -> Vec<String> {
        let given: Vec<String> = given.iter().map(|address| (*address).to_owned()).collect();
        let own = own.iter().map(|ip| ip.parse().expect("an address")).collect();
        said(&given, bound.parse().expect("an address"), || Ok(own))
    }

    #[test]
    fn offers_say_where_workers_can_dial() {
        let own = &["127.0.0.1", "172.20.0.3", "169.254.0.1", "::1", "fd00::3", "fe80::1"];
        assert_eq!(offered(&[], "127.0.0.1:7443", own), ["127.0.0.1:7443"]);
        assert_eq!(offered(&[], "0.0.0.0:7443", own), ["172.20.0.3:7443"]);
        assert_eq!(offered(&[], "[::]:7443", own), ["172.20.0.3:7443", "[fd00::3]:7443"]);
        assert_eq!(offered(&[], "0.0.0.0:7443", &["127.0.0.1"]), ["127.0.0.1:7443"]);
        assert_eq!(
            offered(&["gw", "gw2:9", "[::1]"], "0.0.0.0:1", own),
            ["gw:1", "gw2:9", "[::1]:1"]
        );
        assert_eq!(offered(&["[fd00::1]:9"], "0.0.0.0:1", own), ["[fd00::1]:9"]);
    }

    #[test]
    fn this_machine_has_an_address() {
        assert!(
            own_addresses().expect("it can be asked").contains(&"127.0.0.1".parse().expect("one"))
        );
    }
}
