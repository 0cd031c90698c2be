//! The broker as the command line and the environment name it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::broker::{BrokerConfig, BrokerConfigError, DEFAULT_URL, UncheckedBrokerConfig};

/// How to reach the broker; `#[command(flatten)]` it into a binary's arguments.
#[derive(Args, Clone)]
#[command(next_help_heading = "Broker")]
pub struct BrokerArgs {
    /// Broker addresses, several with commas between
    #[arg(
        long,
        global = true,
        env = "NATS_URL",
        value_name = "URL",
        default_value = DEFAULT_URL,
        hide_env_values = true
    )]
    nats_url: String,

    /// Credentials file (JWT and seed)
    #[arg(
        long,
        global = true,
        env = "NATS_CREDS",
        value_name = "FILE",
        value_parser = maybe_path(),
        hide_env_values = true
    )]
    nats_creds: Option<PathBuf>,

    /// File that holds an NKey seed
    #[arg(
        long,
        global = true,
        env = "NATS_NKEY",
        value_name = "FILE",
        value_parser = maybe_path(),
        hide_env_values = true
    )]
    nats_nkey: Option<PathBuf>,

    /// User name; the password comes from NATS_PASSWORD_FILE or NATS_PASSWORD
    #[arg(long, global = true, env = "NATS_USER", value_name = "NAME")]
    nats_user: Option<String>,

    /// Password of the user
    #[arg(
        long,
        global = true,
        env = "NATS_PASSWORD",
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    nats_password: Option<String>,

    /// File that holds the password of the user, on one line
    #[arg(
        long,
        global = true,
        env = "NATS_PASSWORD_FILE",
        value_name = "FILE",
        value_parser = maybe_path(),
        hide_env_values = true
    )]
    nats_password_file: Option<PathBuf>,

    /// Authentication token
    #[arg(long, global = true, env = "NATS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    nats_token: Option<String>,

    /// File that holds the token, on one line
    #[arg(
        long,
        global = true,
        env = "NATS_TOKEN_FILE",
        value_name = "FILE",
        value_parser = maybe_path(),
        hide_env_values = true
    )]
    nats_token_file: Option<PathBuf>,

    /// Certificate authorities to trust in place of the system's, PEM; makes TLS mandatory
    #[arg(long, global = true, env = "NATS_CA", value_name = "FILE", value_parser = maybe_path())]
    nats_ca: Option<PathBuf>,

    /// Our own certificate, PEM, for mutual TLS
    #[arg(
        long, global = true, env = "NATS_CERTIFICATE", value_name = "FILE",
        value_parser = maybe_path()
    )]
    nats_certificate: Option<PathBuf>,

    /// Key of our own certificate, PEM
    #[arg(
        long,
        global = true,
        env = "NATS_KEY",
        value_name = "FILE",
        value_parser = maybe_path(),
        hide_env_values = true
    )]
    nats_key: Option<PathBuf>,

    /// Begin with TLS at once, for a broker with handshake_first
    #[arg(
        long,
        global = true,
        env = "NATS_TLS_FIRST",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    nats_tls_first: Option<bool>,

    /// Where inboxes are, if not below the role's own prefix (such as _INBOX_apiproxy)
    #[arg(long, global = true, env = "NATS_INBOX_PREFIX", value_name = "PREFIX")]
    nats_inbox_prefix: Option<String>,
}

impl BrokerArgs {
    /// Checks the arguments and makes the broker of them.
    ///
    /// # Errors
    /// [`BrokerConfigError`], also for two kinds of credentials at once, half of a pair, and files
    /// that cannot be read.
    pub fn into_config(self) -> Result<BrokerConfig, BrokerConfigError> {
        let settings = UncheckedBrokerConfig {
            url: said(self.nats_url),
            creds: said_path(self.nats_creds),
            nkey: said_path(self.nats_nkey),
            user: self.nats_user.and_then(said),
            password: self.nats_password.and_then(said),
            password_file: said_path(self.nats_password_file),
            token: self.nats_token.and_then(said),
            token_file: said_path(self.nats_token_file),
            ca: said_path(self.nats_ca),
            certificate: said_path(self.nats_certificate),
            key: said_path(self.nats_key),
            tls_first: self.nats_tls_first.map(|first| first.to_string()),
            inbox_prefix: self.nats_inbox_prefix.and_then(said),
        };
        settings.into_config()
    }
}

/// What was said; a variable that is set and empty says nothing, as with
/// [`BrokerConfig::from_env`].
fn said(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn said_path(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// A path, or nothing where a variable is set and empty: clap's own reader of paths refuses that.
fn maybe_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Reads a time as operators write it, for `#[arg(value_parser = duration)]`.
///
/// # Errors
/// A sentence with what was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: expected a time such as 500ms, 9s or 2m"))
}

/// Reads an address to listen on, for `#[arg(value_parser = address)]`.
///
/// # Errors
/// A sentence with what was expected; names of hosts are none, since they may have several
/// addresses.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an IP address and a port, such as 127.0.0.1:8080 or [::]:8080".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        broker: BrokerArgs,
    }

    fn broker(arguments: &[&str]) -> Result<BrokerConfig, BrokerConfigError> {
        Cli::parse_from([&["test"], arguments].concat()).broker.into_config()
    }

    #[test]
    fn halves_and_doubles_are_refused() {
        for arguments in [
            &["--nats-user", "me"][..],
            &["--nats-key", "k.pem"],
            &["--nats-token", "t", "--nats-user", "me", "--nats-password", "p"],
        ] {
            assert!(
                matches!(broker(arguments), Err(BrokerConfigError::Conflict(_))),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn help_shows_no_value_of_what_may_be_secret() {
        use clap::CommandFactory;
        let secret =
            ["url", "creds", "nkey", "password", "password_file", "token", "token_file", "key"];
        let command = Cli::command();
        for argument in command.get_arguments().filter(|argument| argument.get_env().is_some()) {
            let name = argument.get_id().as_str().trim_start_matches("nats_");
            assert_eq!(argument.is_hide_env_values_set(), secret.contains(&name), "{name}");
        }
    }

    #[test]
    fn addresses_are_ip_and_port() {
        assert_eq!(address("[::]:80").unwrap().port(), 80);
        for wrong in ["localhost:80", ":80", "80", "127.0.0.1"] {
            assert!(address(wrong).unwrap_err().contains("such as 127.0.0.1:8080"), "{wrong}");
        }
    }

    #[test]
    fn times_are_written_with_their_unit() {
        assert_eq!(duration("1m 500ms"), Ok(Duration::from_millis(60_500)));
        assert!(duration("9").unwrap_err().contains("expected a time such as 500ms"));
    }

    #[test]
    fn what_is_set_and_empty_is_not_said() {
        let empty = [
            "url",
            "creds",
            "nkey",
            "user",
            "password",
            "password-file",
            "token",
            "token-file",
            "ca",
            "certificate",
            "key",
            "inbox-prefix",
        ];
        let arguments: Vec<String> = empty.iter().map(|name| format!("--nats-{name}=")).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(broker(&arguments).unwrap().to_string(), "127.0.0.1:4222");
    }

    #[test]
    fn an_address_alone_is_enough() {
        assert_eq!(broker(&["--nats-url", "nats://b:1"]).unwrap().to_string(), "b:1");
    }
}
