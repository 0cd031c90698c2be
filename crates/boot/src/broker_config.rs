//! Where the broker is, and how to prove to it who we are.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use std::{fmt, fs, io};

use async_nats::rustls;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{Client, ClientError, ConnectOptions, Event, ServerAddr};
use tracing::{debug, info, warn};

use crate::server_errors::{ServerErrorLog, ServerEvent};
use crate::unchecked::UncheckedBrokerConfig;
use crate::{DeniedSubscriptions, DialErrorKind, addresses, dial_hints};

/// How often a connection asks the broker whether it is alive. Three unanswered pings end the
/// connection, so a broker that froze or vanished is noticed within 6 s.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt to connect may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Servers, credentials and TLS of a broker: everything that a connection needs except its name.
#[derive(Clone)]
pub struct BrokerConfig {
    pub(crate) servers: Vec<ServerAddr>,
    options: ConnectOptions,
    /// As whom we connect, without secrets; `None` when nothing was given.
    pub(crate) who: Option<String>,
    inbox_prefix: Option<String>,
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
    /// Certificates of the authorities to trust in place of the system's, PEM.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key, PEM, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Begin with TLS, before the broker says anything: for a broker with `handshake_first`.
    pub first: bool,
}

/// A broker that cannot be described that way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerConfigError {
    /// A URL is no broker's.
    #[error(
        "broker url {url:?}: expected nats://host:port or tls://host:port, several with commas \
         between; what is neither letter nor digit in a user name or password must be \
         percent-encoded"
    )]
    Url {
        /// The URLs, without their user parts.
        url: String,
    },
    /// A file of credentials or certificates cannot be read, or is not one. What was given for its
    /// path is shown only where it is one: it may be the secret itself, put where a path belongs.
    #[error("{what} {}", shown(path))]
    File {
        /// What the file should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        source: io::Error,
    },
    /// The seed of an NKey is none.
    #[error("the nkey is no seed of a user: expected SU and 56 more letters and digits")]
    Seed,
    /// Options that exclude each other, or half of a pair.
    #[error("{0}")]
    Conflict(&'static str),
    /// An inbox prefix is none.
    #[error(
        "inbox prefix {0:?}: expected a subject that begins with _INBOX, such as _INBOX_apiproxy, \
         without wildcards"
    )]
    InboxPrefix(String),
}

impl BrokerConfig {
    /// A broker without TLS or credentials of ours. `urls` holds one URL or several with commas
    /// between.
    ///
    /// # Errors
    /// [`BrokerConfigError::Url`].
    pub fn new(urls: &str) -> Result<BrokerConfig, BrokerConfigError> {
        BrokerConfig::with(urls, Credentials::None, Tls::default())
    }

    /// A broker with credentials and TLS.
    ///
    /// # Errors
    /// [`BrokerConfigError`]. Files are read and looked into here, so that a wrong one is told
    /// before anything is started; certificates are read again when connecting, for they may be
    /// renewed meanwhile.
    pub fn with(
        urls: &str,
        credentials: Credentials,
        tls: Tls,
    ) -> Result<BrokerConfig, BrokerConfigError> {
        let servers = addresses::read(urls)?;
        // The client library reads what an address says of users, and sends none of it.
        let credentials = match credentials {
            Credentials::None => addresses::credentials(&servers),
            given => given,
        };
        let who = presented(&credentials);
        let mut options = match credentials {
            Credentials::None => ConnectOptions::new(),
            Credentials::UserPassword(user, password) => {
                ConnectOptions::with_user_and_password(user, password)
            }
            Credentials::Token(token) => ConnectOptions::with_token(token),
            Credentials::NKey(seed) if !is_user_seed(&seed) => return Err(BrokerConfigError::Seed),
            Credentials::NKey(seed) => ConnectOptions::with_nkey(seed),
            Credentials::File(path) => {
                let read =
                    |path: &Path| ConnectOptions::with_credentials(&fs::read_to_string(path)?);
                checked("credentials file", &path, read)?
            }
        };
        options = options.ping_interval(PING_INTERVAL).connection_timeout(CONNECT_TIMEOUT);
        // An address that the cluster advertises has no scheme: without this it could be spoken to
        // in the clear.
        if servers.iter().any(ServerAddr::tls_required) {
            options = options.require_tls(true);
        }
        if tls.first {
            options = options.tls_first();
        }
        if let Some(ca) = tls.ca {
            checked("file of certificate authorities", &ca, has_certificates)?;
            options = options.add_root_certificates(ca).require_tls(true);
        }
        if let Some((certificate, key)) = tls.identity {
            checked("certificate file", &certificate, has_certificates)?;
            checked("key file", &key, has_key)?;
            checked("key file", &key, |key| belongs_to(key, &certificate))?;
            options = options.add_client_certificate(certificate, key).require_tls(true);
        }
        Ok(BrokerConfig { servers, options, who, inbox_prefix: None })
    }

    /// The same broker, with inboxes below `prefix` for whatever connects to it, in place of the
    /// role's own prefix. It has to begin with `_INBOX`, because such subjects cannot be a
    /// service's.
    ///
    /// # Errors
    /// [`BrokerConfigError::InboxPrefix`].
    pub fn with_inbox_prefix(mut self, prefix: &str) -> Result<BrokerConfig, BrokerConfigError> {
        let is_token = |token: &str| {
            !token.is_empty()
                && token.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>".contains(&byte))
        };
        if !prefix.starts_with("_INBOX") || !prefix.split('.').all(is_token) {
            return Err(BrokerConfigError::InboxPrefix(prefix.to_owned()));
        }
        self.inbox_prefix = Some(prefix.to_owned());
        Ok(self)
    }

    /// Where the inboxes of a role are: below the prefix that was set, else below the role's own.
    pub fn inbox_prefix<'a>(&'a self, of_role: &'a str) -> &'a str {
        self.inbox_prefix.as_deref().unwrap_or(of_role)
    }

    /// The broker that the environment names, by the variables that Natsway's programs read:
    /// `NATS_URL` (`nats://127.0.0.1:4222` without), one of `NATS_CREDS`, `NATS_NKEY`, `NATS_USER`
    /// with `NATS_PASSWORD`, and `NATS_TOKEN`, for TLS `NATS_CA`, `NATS_CERTIFICATE` with
    /// `NATS_KEY`, and `NATS_TLS_FIRST`, and `NATS_INBOX_PREFIX`.
    ///
    /// # Errors
    /// [`BrokerConfigError`], also for two kinds of credentials at once or half of a pair.
    pub fn from_env() -> Result<BrokerConfig, BrokerConfigError> {
        UncheckedBrokerConfig::from_environment(|name| std::env::var(name).ok()).into_config()
    }

    /// What every connection to this broker starts from.
    pub(crate) fn options(&self, name: &str, inbox_prefix: &str) -> ConnectOptions {
        self.options.clone().name(name).custom_inbox_prefix(self.inbox_prefix(inbox_prefix))
    }

    /// An ordinary connection, for control planes: it keeps trying, now and after every loss, with
    /// growing, jittered delays up to 2 s. `inbox_prefix` is the role's own, say `_INBOX_apiproxy`.
    ///
    /// What the broker does not permit, and why a connection is refused, goes to the log, once for
    /// each kind.
    ///
    /// # Errors
    /// What cannot mend itself: unreadable certificates and addresses.
    pub async fn connect(
        &self,
        name: &str,
        inbox_prefix: &str,
    ) -> Result<Client, async_nats::ConnectError> {
        self.connect_watched(name, inbox_prefix).await.map(|(client, _)| client)
    }

    /// The same, for those who cannot do without what they subscribe to: with what the broker
    /// refused since the connection came up last.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn connect_watched(
        &self,
        name: &str,
        inbox_prefix: &str,
    ) -> Result<(Client, DeniedSubscriptions), async_nats::ConnectError> {
        let listener = Listener::new(self.clone(), name);
        let refused = listener.refused.clone();
        let client = self
            .options(name, inbox_prefix)
            .event_callback(move |event| {
                listener.record(event);
                std::future::ready(())
            })
            .retry_on_initial_connect()
            .reconnect_delay_callback(backoff)
            .connect(self.servers.clone())
            .await?;
        Ok((client, refused))
    }

    /// Tries each server once and says why it cannot be had, with what to do; `None` when one of
    /// them can. A client that keeps trying tells a kind of failure and no more. Takes some seconds
    /// where nothing answers.
    pub async fn diagnose(&self) -> Option<(DialErrorKind, String)> {
        let mut told = None;
        for server in &self.servers {
            let tried =
                self.options.clone().name("natsway diagnosis").connect(server.clone()).await;
            let (kind, reason) = dial_hints::explain(&tried.err()?, self.who.as_deref());
            let reason = format!("broker {}:{} {reason}", server.host(), server.port());
            if kind != DialErrorKind::Unavailable {
                return Some((kind, reason));
            }
            told.get_or_insert((kind, reason));
        }
        told
    }
}

/// Tells what happens to a connection that comes back by itself.
struct Listener {
    broker: BrokerConfig,
    name: String,
    server_errors: ServerErrorLog,
    refused: DeniedSubscriptions,
    /// The failure that was told last, since the last success.
    failure: Mutex<Option<String>>,
}

impl Listener {
    fn new(broker: BrokerConfig, name: &str) -> Listener {
        let server_errors = ServerErrorLog::new(name, broker.who.as_deref());
        Listener {
            broker,
            name: name.to_owned(),
            server_errors,
            refused: DeniedSubscriptions::default(),
            failure: Mutex::default(),
        }
    }

    fn record(&self, event: Event) {
        match self.server_errors.record(&event) {
            ServerEvent::Other => {}
            ServerEvent::Logged => return,
            ServerEvent::SubscriptionDenied(subject) => return self.refused.add(subject),
        }
        if let Event::Disconnected = event {
            self.refused.clear();
        }
        match event {
            Event::ClientError(ClientError::Other(failure)) => {
                let known = self.replace_failure(Some(failure.clone()));
                if known.as_ref() != Some(&failure) {
                    tokio::spawn(log_failure(self.broker.clone(), self.name.clone(), failure));
                }
            }
            Event::Connected if self.replace_failure(None).is_some() => {
                info!(name = %self.name, "broker reached");
            }
            _ => {}
        }
    }

    fn replace_failure(&self, failure: Option<String>) -> Option<String> {
        let mut told = self.failure.lock().expect("nothing panics while it holds this");
        std::mem::replace(&mut told, failure)
    }
}

/// Says why the connection `name` cannot be had. Ends by itself: each server is tried once, within
/// 3 s.
async fn log_failure(broker: BrokerConfig, name: String, failure: String) {
    match broker.diagnose().await {
        Some((DialErrorKind::Unavailable, reason)) => {
            debug!(name, reason, "broker not reached, trying again");
        }
        Some((_, reason)) => warn!(name, "{reason}; trying again"),
        None => debug!(name, failure, "broker was not reached, and is now"),
    }
}

/// Who we say that we are, in words and without secrets.
fn presented(credentials: &Credentials) -> Option<String> {
    match credentials {
        Credentials::None => None,
        Credentials::UserPassword(user, _) => Some(format!("user {user:?}")),
        Credentials::Token(_) => Some("the token".to_owned()),
        Credentials::NKey(seed) => {
            let pair = nkeys::KeyPair::from_seed(seed).ok()?;
            Some(format!("nkey {}", pair.public_key()))
        }
        Credentials::File(path) => Some(format!("the user of {}", path.display())),
    }
}

/// How long to wait before the `attempt`th try, counted from 1: none at first, then 10 ms doubled
/// up to 2 s, half of it jitter, so that clients do not come back all at once.
pub(crate) fn backoff(attempt: usize) -> Duration {
    const LONGEST_MS: u64 = 2_000;
    let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
    let full = 10_u64.saturating_mul(1 << doublings.min(20)).min(LONGEST_MS);
    Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))
}

impl Credentials {
    /// The NKey whose seed a file holds.
    ///
    /// # Errors
    /// [`BrokerConfigError::File`].
    pub fn nkey_file(path: PathBuf) -> Result<Credentials, BrokerConfigError> {
        read_seed(path).map(Credentials::NKey)
    }
}

/// The longest password or token that is read from a file, in bytes: more is another file.
const SECRET_BYTES: u64 = 4_096;

/// Reads a password or token, `what`, from its file: one line, whose end is no part of it.
pub(crate) fn read_secret(what: &'static str, path: PathBuf) -> Result<String, BrokerConfigError> {
    checked(what, &path, |path| {
        let mut secret = String::new();
        fs::File::open(path)?.take(SECRET_BYTES + 1).read_to_string(&mut secret)?;
        let line = secret.strip_suffix('\n').unwrap_or(&secret);
        let line = line.strip_suffix('\r').unwrap_or(line);
        match line {
            "" => Err(invalid("it is empty".to_owned())),
            _ if secret.len() as u64 > SECRET_BYTES || line.contains('\n') => {
                Err(invalid("it holds more than one line of at most 4096 bytes".to_owned()))
            }
            line => Ok(line.to_owned()),
        }
    })
}

/// What was given for a path, where it is one that exists, or could: else only how long it is.
fn shown(path: &Path) -> String {
    let is_directory = |parent: &Path| parent.parent().is_some() && parent.is_dir();
    if path.symlink_metadata().is_ok() || path.parent().is_some_and(is_directory) {
        return path.display().to_string();
    }
    let length = path.as_os_str().len();
    format!(
        "({length} bytes that name no file; not shown, for they may be the secret itself: give the \
         path of a file)"
    )
}

/// Reads the seed of an NKey from its file.
pub(crate) fn read_seed(path: PathBuf) -> Result<String, BrokerConfigError> {
    checked("nkey file", &path, |path| {
        let seed = fs::read_to_string(path)?.trim().to_owned();
        if is_user_seed(&seed) {
            Ok(seed)
        } else {
            Err(invalid("it holds no seed of a user (SU...)".to_owned()))
        }
    })
}

fn is_user_seed(seed: &str) -> bool {
    nkeys::KeyPair::from_seed(seed)
        .is_ok_and(|pair| pair.key_pair_type() == nkeys::KeyPairType::User)
}

/// What `read` makes of a file, or its name and what is wrong with it.
fn checked<T>(
    what: &'static str,
    path: &Path,
    read: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, BrokerConfigError> {
    read(path).map_err(|source| BrokerConfigError::File { what, path: path.to_owned(), source })
}

fn has_certificates(path: &Path) -> io::Result<()> {
    let pem = fs::read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(invalid("it holds no certificate in PEM".to_owned()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn has_key(path: &Path) -> io::Result<()> {
    let pem = fs::read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem);
    key.map(drop).map_err(|_| invalid("it holds no private key in PEM".to_owned()))
}

/// Whether a private key is that of the certificate, which is the first of its file.
fn belongs_to(key: &Path, certificate: &Path) -> io::Result<()> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&fs::read(certificate)?).collect();
    let certificates = certificates.map_err(|error| invalid(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&fs::read(key)?)
        .map_err(|_| invalid("it holds no private key".to_owned()))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| invalid(error.to_string()))?;
    match rustls::sign::CertifiedKey::new(certificates, key).keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(invalid(format!(
                "it is the key of another certificate than that of {}",
                shown(certificate)
            )))
        }
        // What cannot be told is for the broker to refuse.
        _ => Ok(()),
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("servers", &self.to_string()).finish_non_exhaustive()
    }
}

impl fmt::Display for BrokerConfig {
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
        let broker = BrokerConfig::new("nats://me:secret@a:1, b:2,tls://c").unwrap();
        assert_eq!(broker.to_string(), "a:1,b:2,c:4222");
        assert!(!format!("{broker:?}").contains("secret"));
    }

    #[test]
    fn a_bad_url_says_what_was_expected_and_no_secret() {
        let error = BrokerConfig::new("http://me:secret@a:1").unwrap_err().to_string();
        assert!(error.contains("expected nats://"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert!(BrokerConfig::new(" , ").is_err());
    }

    fn refused(credentials: Credentials, tls: Tls) -> String {
        let error = BrokerConfig::with("a", credentials, tls).unwrap_err();
        let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(
            !error.to_string().contains(&reason),
            "the reason is told by the source, and once: {error}"
        );
        format!("{error}: {reason}")
    }

    #[test]
    fn files_are_looked_into_and_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "nonsense").unwrap();
        let missing = file.path().with_extension("missing");
        for (path, readable) in [(missing.as_path(), false), (file.path(), true)] {
            let path = path.to_owned();
            let other = file.path().to_owned();
            let credentials = refused(Credentials::File(path.clone()), Tls::default());
            let ca = refused(Credentials::None, Tls { ca: Some(path.clone()), ..Tls::default() });
            let identity = Some((path.clone(), other));
            let certificate = refused(Credentials::None, Tls { identity, ..Tls::default() });
            let seed = read_seed(path.clone()).unwrap_err().to_string();
            for told in [&credentials, &ca, &certificate, &seed] {
                assert!(told.contains(&path.display().to_string()), "{told}");
            }
            assert_eq!(ca.contains("no certificate in PEM"), readable, "{ca}");
        }
    }

    #[test]
    fn a_seed_that_is_none_is_refused_and_not_shown() {
        let account = nkeys::KeyPair::new_account().seed().unwrap();
        for seed in ["SUSECRET", account.as_str(), ""] {
            let told = BrokerConfig::with("a", Credentials::NKey(seed.to_owned()), Tls::default())
                .unwrap_err();
            assert!(
                matches!(told, BrokerConfigError::Seed) && !told.to_string().contains("SECRET"),
                "{told}"
            );
        }
        let user = nkeys::KeyPair::new_user().seed().unwrap();
        BrokerConfig::with("a", Credentials::NKey(user), Tls::default()).unwrap();
    }

    #[test]
    fn a_secret_in_the_place_of_a_path_is_not_shown() {
        let seed = nkeys::KeyPair::new_user().seed().unwrap();
        let jwt = "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.eyJqdGkiOiJ4In0.c2ln";
        for secret in [
            seed.as_str(),
            jwt,
            "s3cr3t",
            "a+b/c==",
            "/a+b/c==",
            "/s3cr3t",
            "-----BEGIN PRIVATE KEY-----",
        ] {
            let path = PathBuf::from(secret);
            let identity = Some((path.clone(), path.clone()));
            for told in [
                refused(Credentials::File(path.clone()), Tls::default()),
                refused(Credentials::None, Tls { ca: Some(path.clone()), ..Tls::default() }),
                refused(Credentials::None, Tls { identity, ..Tls::default() }),
                read_seed(path.clone()).unwrap_err().to_string(),
                format!(
                    "{:?}",
                    Credentials::nkey_file(path.clone()).err().map(|error| error.to_string())
                ),
                read_secret("password file", path.clone()).unwrap_err().to_string(),
            ] {
                assert!(
                    !told.contains(secret) && told.contains("give the path of a file"),
                    "{told}"
                );
            }
        }
    }

    #[test]
    fn a_secret_is_the_one_line_of_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            read_secret("password file", file.path().to_owned())
        };
        for text in ["s3cr3t", "s3cr3t\n", "s3cr3t\r\n"] {
            assert_eq!(read(text).unwrap(), "s3cr3t");
        }
        assert_eq!(read(" with blanks \n").unwrap(), " with blanks ");
        for text in ["", "\n", "two\nlines\n", &"x".repeat(4_097)] {
            let error = read(text).unwrap_err();
            let reason = std::error::Error::source(&error).unwrap().to_string();
            assert!(
                error.to_string().contains("password file") && !reason.contains("two"),
                "{error}: {reason}"
            );
        }
    }

    #[test]
    fn who_we_are_is_told_without_secrets() {
        let who = |url: &str, credentials| {
            BrokerConfig::with(url, credentials, Tls::default()).unwrap().who
        };
        assert_eq!(who("a", Credentials::None), None);
        assert_eq!(who("nats://me:secret@a", Credentials::None).unwrap(), "user \"me\"");
        assert_eq!(who("nats://secret@a", Credentials::None).unwrap(), "the token");
        assert_eq!(who("b,nats://m%65:secret@a", Credentials::None).unwrap(), "user \"me\"");
        assert_eq!(
            who("nats://me:secret@a", Credentials::Token("x".to_owned())).unwrap(),
            "the token"
        );
        assert_eq!(who("a", Credentials::Token("secret".to_owned())).unwrap(), "the token");
        let user = nkeys::KeyPair::new_user();
        let told = who("a", Credentials::NKey(user.seed().unwrap())).unwrap();
        assert_eq!(told, format!("nkey {}", user.public_key()));
    }

    #[test]
    fn an_inbox_prefix_replaces_the_roles_own_and_cannot_be_a_services() {
        let broker = BrokerConfig::new("a").unwrap();
        assert_eq!(broker.inbox_prefix("_INBOX_worker"), "_INBOX_worker");
        let broker = broker.with_inbox_prefix("_INBOX_team.x").unwrap();
        assert_eq!(broker.inbox_prefix("_INBOX_worker"), "_INBOX_team.x");
        for bad in ["", "svc.demo", "_INBOX.", "_INBOX_x.*", "_INBOX_x.>", "_INBOX x"] {
            assert!(BrokerConfig::new("a").unwrap().with_inbox_prefix(bad).is_err(), "{bad}");
        }
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
