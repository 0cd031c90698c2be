//! Where an app listens, and which protocol it speaks there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What an address may look like.
const EXPECTED: &str =
    "expected http://host:port, https://host:port, h2c://host:port or unix:/path/of/socket";

/// The address of an app: `http://127.0.0.1:3000`, `https://app.example`, `h2c://127.0.0.1:50051`
/// or `unix:/run/app.sock`.
///
/// ```
/// use natsway_worker::upstream::UpstreamAddress;
///
/// let address: UpstreamAddress = "http://127.0.0.1:3000".parse()?;
/// assert_eq!(address.to_string(), "http://127.0.0.1:3000");
/// # Ok::<(), natsway_worker::upstream::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamAddress {
    pub(super) scheme: Scheme,
    pub(super) endpoint: Endpoint,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// HTTP/1.1, and HTTP/2 without TLS for calls by gRPC.
    Http,
    /// TLS, and the version of HTTP that is agreed on by ALPN.
    Https,
    /// HTTP/2 without TLS.
    H2c,
}

/// Where a connection is made to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// What is not the address of an app.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {EXPECTED}")]
pub struct AddressError {
    text: String,
}

impl UpstreamAddress {
    /// The same app on another port; an app at a Unix socket has none, and stays where it is.
    #[must_use]
    pub fn with_port(mut self, new_port: u16) -> Self {
        if let Endpoint::Tcp { port, .. } = &mut self.endpoint {
            *port = new_port;
        }
        self
    }

    /// The authority that a client would ask for which connects here directly.
    pub(super) fn authority(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(_) => "localhost".to_owned(),
            Endpoint::Tcp { host, port } if *port == self.scheme.default_port() => host.clone(),
            Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        }
    }
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http | Self::H2c => 80,
            Self::Https => 443,
        }
    }
}

impl FromStr for UpstreamAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            let endpoint = Endpoint::Unix(path);
            let is_absolute = matches!(&endpoint, Endpoint::Unix(path) if path.is_absolute());
            return is_absolute
                .then_some(Self { scheme: Scheme::Http, endpoint })
                .ok_or_else(error);
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(error)?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "h2c" => Scheme::H2c,
            _ => return Err(error()),
        };
        let authority: http::uri::Authority =
            rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|_| error())?;
        let host = authority.host().to_owned();
        // User and password would stand before the host, and are not for us.
        let behind_host = authority.as_str().strip_prefix(host.as_str());
        let port = match behind_host.ok_or_else(error)?.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| error())?,
            None => scheme.default_port(),
        };
        if host.is_empty() {
            return Err(error());
        }
        Ok(Self { scheme, endpoint: Endpoint::Tcp { host, port } })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::H2c => "h2c",
        };
        match &self.endpoint {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp { host, port } => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown, authority) in [
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000", "127.0.0.1:3000"),
            ("http://app/", "http://app:80", "app"),
            ("https://app.example", "https://app.example:443", "app.example"),
            ("h2c://[::1]:50051", "h2c://[::1]:50051", "[::1]:50051"),
            ("unix:/run/app.sock", "unix:/run/app.sock", "localhost"),
            ("unix:///run/app.sock", "unix:/run/app.sock", "localhost"),
        ] {
            let address: UpstreamAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.authority(), authority);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_was_expected() {
        for text in [
            "",
            "3000",
            "127.0.0.1:3000",
            "ftp://a",
            "http://",
            "http://a:99999",
            "http://a/path",
            "http://user@a",
            "unix:relative",
        ] {
            let error = text.parse::<UpstreamAddress>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}: expected http://host:port")), "{error}");
        }
    }

    #[test]
    fn a_port_is_replaced_where_there_is_one() {
        let address: UpstreamAddress = "http://127.0.0.1:0".parse().unwrap();
        assert_eq!(address.with_port(4000).to_string(), "http://127.0.0.1:4000");
        let address: UpstreamAddress = "unix:/a".parse().unwrap();
        assert_eq!(address.with_port(4000).to_string(), "unix:/a");
    }
}
