//! Where the broker is, and how to prove to it who we are.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, ServerAddr};

/// How often a connection asks the broker whether it is alive. Three unanswered pings end the connection, so a broker
/// that froze or vanished is noticed within 6 s.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt to connect may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Servers, credentials and TLS of a broker: everything that a connection needs except its name.
#[derive(Clone)]
pub struct Broker {
    pub(crate) servers: Vec<ServerAddr>,
    options: ConnectOptions,
}

/// How a client proves who it is. Never logged.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nothing, or what the URL itself says (`nats://user:password@host`).
    #[default]
    None,
    /// User name and password.
    UserPassword(String, String),
    /// A token.
    Token(String),
    /// The seed of an NKey, itself (`SU...`).
    NKey(String),
    /// A credentials file (JWT and NKey seed).
    File(PathBuf),
}

/// TLS beyond what the broker asks for by itself.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificates of the authorities to trust besides the system's, PEM.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key, PEM, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A broker that cannot be described that way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// A URL is no broker's.
    #[error(
        "broker url {url:?}: {reason} (expected nats://host:port or tls://host:port, several with commas)"
    )]
    Url {
        /// The URL, without its user part.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of credentials cannot be read or is not one.
    #[error("credentials file {path}: {source}")]
    CredentialsFile {
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        source: std::io::Error,
    },
    /// Options that exclude each other, or half of a pair.
    #[error("{0}")]
    Conflict(&'static str),
}

impl Broker {
    /// A broker without TLS or credentials of ours. `urls` holds one URL or several with commas between.
    ///
    /// # Errors
    /// [`BrokerError::Url`].
    pub fn new(urls: &str) -> Result<Broker, BrokerError> {
        Broker::with(urls, Credentials::None, Tls::default())
    }

    /// A broker with credentials and TLS.
    ///
    /// # Errors
    /// [`BrokerError::Url`] and [`BrokerError::CredentialsFile`]; certificates are read when connecting.
    pub fn with(urls: &str, credentials: Credentials, tls: Tls) -> Result<Broker, BrokerError> {
        let servers = urls
            .split(',')
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .map(parse_url)
            .collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err(BrokerError::Url { url: urls.to_owned(), reason: "no address in it".to_owned() });
        }
        let mut options = match credentials {
            Credentials::None => ConnectOptions::new(),
            Credentials::UserPassword(user, password) => {
                ConnectOptions::with_user_and_password(user, password)
            }
            Credentials::Token(token) => ConnectOptions::with_token(token),
            Credentials::NKey(seed) => ConnectOptions::with_nkey(seed),
            Credentials::File(path) => std::fs::read_to_string(&path)
                .and_then(|text| ConnectOptions::with_credentials(&text))
                .map_err(|source| BrokerError::CredentialsFile { path, source })?,
        };
        options = options.ping_interval(PING_INTERVAL).connection_timeout(CONNECT_TIMEOUT);
        if let Some(ca) = tls.ca {
            options = options.add_root_certificates(ca).require_tls(true);
        }
        if let Some((certificate, key)) = tls.identity {
            options = options.add_client_certificate(certificate, key).require_tls(true);
        }
        Ok(Broker { servers, options })
    }

    /// What every connection to this broker starts from.
    pub(crate) fn options(&self, name: &str, inbox_prefix: &str) -> ConnectOptions {
        self.options.clone().name(name).custom_inbox_prefix(inbox_prefix)
    }

    /// An ordinary connection, for control planes: it keeps trying, now and after every loss, with growing, jittered
    /// delays up to 2 s. `inbox_prefix` is the role's own, say `_INBOX_apiproxy`.
    ///
    /// # Errors
    /// What cannot mend itself: unreadable certificates and addresses.
    pub async fn connect(&self, name: &str, inbox_prefix: &str) -> Result<Client, async_nats::ConnectError> {
        self.options(name, inbox_prefix)
            .retry_on_initial_connect()
            .reconnect_delay_callback(backoff)
            .connect(self.servers.clone())
            .await
    }
}

/// How long to wait before the `attempt`th try, counted from 1: none at first, then 10 ms doubled up to 2 s, half of
/// it jitter, so that clients do not come back all at once.
pub(crate) fn backoff(attempt: usize) -> Duration {
    const LONGEST_MS: u64 = 2_000;
    let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
    let full = 10_u64.saturating_mul(1 << doublings.min(20)).min(LONGEST_MS);
    Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))
}

fn parse_url(url: &str) -> Result<ServerAddr, BrokerError> {
    let shown = || url.rsplit('@').next().unwrap_or_default().to_owned();
    url.parse().map_err(|error: std::io::Error| BrokerError::Url { url: shown(), reason: error.to_string() })
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("servers", &self.to_string()).finish_non_exhaustive()
    }
}

impl fmt::Display for Broker {
    /// Hosts and ports, without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", server.host(), server.port())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_servers_are_read_and_shown_without_credentials() {
        let broker = Broker::new("nats://me:secret@a:1, b:2,tls://c").unwrap();
        assert_eq!(broker.to_string(), "a:1,b:2,c:4222");
        assert!(!format!("{broker:?}").contains("secret"));
    }

    #[test]
    fn a_bad_url_says_what_was_expected_and_no_secret() {
        let error = Broker::new("http://me:secret@a:1").unwrap_err().to_string();
        assert!(error.contains("expected nats://"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert!(Broker::new(" , ").is_err());
    }

    #[test]
    fn a_missing_credentials_file_is_named() {
        let credentials = Credentials::File("no/such.creds".into());
        let error = Broker::with("a", credentials, Tls::default()).unwrap_err().to_string();
        assert!(error.contains("no/such.creds"), "{error}");
    }

    #[test]
    fn backoff_starts_at_once_grows_and_stays_bounded() {
        assert_eq!(backoff(1), Duration::ZERO);
        for attempt in 2..100 {
            assert!(backoff(attempt) <= Duration::from_secs(2));
        }
        assert!(backoff(50) >= Duration::from_secs(1));
    }
}
