//! What is said about the broker, by the command line or by the environment, and how it becomes a
//! [`BrokerConfig`].

use std::path::PathBuf;

use super::config::BrokerConfig;
use super::credentials::{Credentials, read_secret, read_seed};
use super::error::BrokerConfigError;
use super::tls::Tls;

/// Where the broker is when nobody says.
pub(crate) const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// What was said; each member has the variable of its name, `NATS_URL` and so on.
#[derive(Clone, Default)]
pub(crate) struct UncheckedBrokerConfig {
    pub(crate) url: Option<String>,
    pub(crate) creds: Option<PathBuf>,
    pub(crate) nkey: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) tls_first: Option<String>,
    pub(crate) inbox_prefix: Option<String>,
}

impl UncheckedBrokerConfig {
    /// What the environment says, read by `variable`; what is empty counts as not said.
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| text(name).map(PathBuf::from);
        Self {
            url: text("NATS_URL"),
            creds: path("NATS_CREDS"),
            nkey: path("NATS_NKEY"),
            user: text("NATS_USER"),
            password: text("NATS_PASSWORD"),
            password_file: path("NATS_PASSWORD_FILE"),
            token: text("NATS_TOKEN"),
            token_file: path("NATS_TOKEN_FILE"),
            ca: path("NATS_CA"),
            certificate: path("NATS_CERTIFICATE"),
            key: path("NATS_KEY"),
            tls_first: text("NATS_TLS_FIRST"),
            inbox_prefix: text("NATS_INBOX_PREFIX"),
        }
    }

    /// Checks all of it and makes the broker.
    pub(crate) fn into_config(self) -> Result<BrokerConfig, BrokerConfigError> {
        let identity = both(
            self.certificate,
            self.key,
            "NATS_CERTIFICATE and NATS_KEY go together: give both or none",
        )?;
        let password = itself_or_file(
            self.password,
            self.password_file.map(|path| read_secret("password file", path)),
            "give NATS_PASSWORD or NATS_PASSWORD_FILE, not both",
        )?;
        let token = itself_or_file(
            self.token,
            self.token_file.map(|path| read_secret("token file", path)),
            "give NATS_TOKEN or NATS_TOKEN_FILE, not both",
        )?;
        let user = both(
            self.user,
            password,
            "NATS_USER goes together with NATS_PASSWORD or NATS_PASSWORD_FILE: give both or none",
        )?;
        let user = user.map(|(user, password)| Credentials::UserPassword(user, password));
        let nkey = self.nkey.map(read_seed).transpose()?.map(Credentials::NKey);
        let token = token.map(Credentials::Token);
        let file = self.creds.map(Credentials::File);
        let mut given = [user, nkey, token, file].into_iter().flatten();
        let credentials = given.next().unwrap_or_default();
        if given.next().is_some() {
            return Err(BrokerConfigError::Conflict(
                "give one of NATS_CREDS, NATS_NKEY, NATS_USER and NATS_TOKEN, not several",
            ));
        }
        let url = self.url.as_deref().unwrap_or(DEFAULT_URL);
        let first = self.tls_first.as_deref().map_or(Ok(false), switch)?;
        let broker = BrokerConfig::with(url, credentials, Tls { ca: self.ca, identity, first })?;
        match self.inbox_prefix {
            Some(prefix) => broker.with_inbox_prefix(&prefix),
            None => Ok(broker),
        }
    }
}

impl BrokerConfig {
    /// The broker that the environment names, by the variables that Natsway's programs read:
    /// `NATS_URL` (`nats://127.0.0.1:4222` without), one of `NATS_CREDS`, `NATS_NKEY`, `NATS_USER`
    /// with `NATS_PASSWORD`, and `NATS_TOKEN`, for TLS `NATS_CA`, `NATS_CERTIFICATE` with
    /// `NATS_KEY`, and `NATS_TLS_FIRST`, and `NATS_INBOX_PREFIX`.
    ///
    /// # Errors
    /// [`BrokerConfigError`], also for two kinds of credentials at once or half of a pair.
    pub fn from_env() -> Result<Self, BrokerConfigError> {
        UncheckedBrokerConfig::from_environment(|name| std::env::var(name).ok()).into_config()
    }
}

fn switch(text: &str) -> Result<bool, BrokerConfigError> {
    text.parse().map_err(|_| BrokerConfigError::Conflict("NATS_TLS_FIRST: expected true or false"))
}

/// A secret that was given itself, or by the file that holds it.
fn itself_or_file(
    itself: Option<String>,
    read: Option<Result<String, BrokerConfigError>>,
    rule: &'static str,
) -> Result<Option<String>, BrokerConfigError> {
    match (itself, read) {
        (Some(_), Some(_)) => Err(BrokerConfigError::Conflict(rule)),
        (itself, read) => Ok(itself.or(read.transpose()?)),
    }
}

/// Two that go together.
fn both<A, B>(
    first: Option<A>,
    second: Option<B>,
    rule: &'static str,
) -> Result<Option<(A, B)>, BrokerConfigError> {
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        _ => Err(BrokerConfigError::Conflict(rule)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(variables: &[(&str, &str)]) -> Result<BrokerConfig, BrokerConfigError> {
        let value = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        UncheckedBrokerConfig::from_environment(value).into_config()
    }

    #[test]
    fn an_empty_environment_means_this_machine() {
        assert_eq!(broker(&[]).unwrap().to_string(), "127.0.0.1:4222");
        assert_eq!(
            broker(&[("NATS_URL", ""), ("NATS_CREDS", "")]).unwrap().to_string(),
            "127.0.0.1:4222"
        );
    }

    #[test]
    fn the_environment_says_where_the_broker_is() {
        assert_eq!(broker(&[("NATS_URL", "nats://b:1,c")]).unwrap().to_string(), "b:1,c:4222");
    }

    #[test]
    fn tls_first_and_the_inbox_prefix_are_read_strictly() {
        broker(&[("NATS_TLS_FIRST", "true"), ("NATS_INBOX_PREFIX", "_INBOX_mine")]).unwrap();
        assert!(matches!(
            broker(&[("NATS_TLS_FIRST", "yes")]),
            Err(BrokerConfigError::Conflict(_))
        ));
        assert!(matches!(
            broker(&[("NATS_INBOX_PREFIX", "mine")]),
            Err(BrokerConfigError::InboxPrefix(_))
        ));
    }

    #[test]
    fn halves_doubles_and_files_that_are_not_there_are_refused() {
        assert!(matches!(broker(&[("NATS_USER", "me")]), Err(BrokerConfigError::Conflict(_))));
        let both = [("NATS_USER", "me"), ("NATS_PASSWORD", "p"), ("NATS_TOKEN", "t")];
        assert!(matches!(broker(&both), Err(BrokerConfigError::Conflict(_))));
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no-such.file").display().to_string();
        for variable in
            ["NATS_CREDS", "NATS_NKEY", "NATS_CA", "NATS_TOKEN_FILE", "NATS_PASSWORD_FILE"]
        {
            let error = broker(&[(variable, &missing)]).unwrap_err();
            assert!(matches!(error, BrokerConfigError::File { .. }), "{error:?}");
            assert!(error.to_string().contains(&missing), "{error}");
        }
    }

    #[test]
    fn passwords_and_tokens_come_from_files_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "s3cr3t\n").unwrap();
        let path = file.path().to_str().unwrap();
        let by_file = broker(&[("NATS_USER", "me"), ("NATS_PASSWORD_FILE", path)]).unwrap();
        assert_eq!(by_file.who.as_deref(), Some("user \"me\""));
        let by_file = broker(&[("NATS_TOKEN_FILE", path)]).unwrap();
        assert_eq!(by_file.who.as_deref(), Some("the token"));
        for wrong in [
            &[("NATS_PASSWORD_FILE", path)][..],
            &[("NATS_USER", "me"), ("NATS_PASSWORD", "p"), ("NATS_PASSWORD_FILE", path)],
            &[("NATS_TOKEN", "t"), ("NATS_TOKEN_FILE", path)],
            &[("NATS_TOKEN_FILE", path), ("NATS_USER", "me"), ("NATS_PASSWORD_FILE", path)],
        ] {
            assert!(matches!(broker(wrong), Err(BrokerConfigError::Conflict(_))), "{wrong:?}");
        }
    }
}
