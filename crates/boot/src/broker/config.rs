//! Where the broker is, and how to prove to it who we are.

use std::path::Path;
use std::time::Duration;
use std::{fmt, fs};

use async_nats::{ConnectOptions, ServerAddr};

use super::addresses;
use super::credentials::{self, Credentials};
use super::error::{BrokerConfigError, checked};
use super::tls::Tls;

/// How often a connection asks the broker whether it is alive. Three unanswered pings end the
/// connection, so a broker that froze or vanished is noticed within 6 s.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt to connect may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Servers, credentials and TLS of a broker: everything that a connection needs except its name.
#[derive(Clone)]
pub struct BrokerConfig {
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) options: ConnectOptions,
    /// As whom we connect, without secrets; `None` when nothing was given.
    pub(crate) who: Option<String>,
    inbox_prefix: Option<String>,
}

impl BrokerConfig {
    /// A broker without TLS or credentials of ours. `urls` holds one URL or several with commas
    /// between.
    ///
    /// # Errors
    /// [`BrokerConfigError::Url`].
    pub fn new(urls: &str) -> Result<Self, BrokerConfigError> {
        Self::with(urls, Credentials::None, Tls::default())
    }

    /// A broker with credentials and TLS.
    ///
    /// # Errors
    /// [`BrokerConfigError`]. Files are read and looked into here, so that a wrong one is told
    /// before anything is started; certificates are read again when connecting, for they may be
    /// renewed meanwhile.
    pub fn with(urls: &str, credentials: Credentials, tls: Tls) -> Result<Self, BrokerConfigError> {
        let servers = addresses::read(urls)?;
        // The client library reads what an address says of users, and sends none of it.
        let credentials = match credentials {
            Credentials::None => addresses::credentials(&servers),
            given => given,
        };
        let who = credentials.described();
        let mut options = match credentials {
            Credentials::None => ConnectOptions::new(),
            Credentials::UserPassword(user, password) => {
                ConnectOptions::with_user_and_password(user, password)
            }
            Credentials::Token(token) => ConnectOptions::with_token(token),
            Credentials::NKey(seed) if !credentials::is_user_seed(&seed) => {
                return Err(BrokerConfigError::Seed);
            }
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
        let options = tls.apply(options)?;
        Ok(Self { servers, options, who, inbox_prefix: None })
    }

    /// The same broker, with inboxes below `prefix` for whatever connects to it, in place of the
    /// role's own prefix. It has to begin with `_INBOX`, because such subjects cannot be a
    /// service's.
    ///
    /// # Errors
    /// [`BrokerConfigError::InboxPrefix`].
    pub fn with_inbox_prefix(mut self, prefix: &str) -> Result<Self, BrokerConfigError> {
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

    /// What every connection to this broker starts from.
    pub(crate) fn options(&self, name: &str, inbox_prefix: &str) -> ConnectOptions {
        self.options.clone().name(name).custom_inbox_prefix(self.inbox_prefix(inbox_prefix))
    }
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
    use std::path::PathBuf;

    use super::credentials::{read_secret, read_seed};
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
}
