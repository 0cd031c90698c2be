//! The broker as the command line and the environment name it.

use std::path::PathBuf;

use clap::Args;

use crate::{Broker, BrokerError, Credentials, Tls};

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
        default_value = "nats://127.0.0.1:4222",
        hide_env_values = true
    )]
    nats_url: String,

    /// Credentials file (JWT and seed)
    #[arg(long, global = true, env = "NATS_CREDS", value_name = "FILE")]
    nats_creds: Option<PathBuf>,

    /// File that holds an NKey seed
    #[arg(long, global = true, env = "NATS_NKEY", value_name = "FILE")]
    nats_nkey: Option<PathBuf>,

    /// User name; the password comes from NATS_PASSWORD
    #[arg(long, global = true, env = "NATS_USER", value_name = "NAME")]
    nats_user: Option<String>,

    /// Password of the user
    #[arg(long, global = true, env = "NATS_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    nats_password: Option<String>,

    /// Authentication token
    #[arg(long, global = true, env = "NATS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    nats_token: Option<String>,

    /// Certificate authorities to trust, PEM; makes TLS mandatory
    #[arg(long, global = true, env = "NATS_CA", value_name = "FILE")]
    nats_ca: Option<PathBuf>,

    /// Our own certificate, PEM, for mutual TLS
    #[arg(long, global = true, env = "NATS_CERTIFICATE", value_name = "FILE")]
    nats_certificate: Option<PathBuf>,

    /// Key of our own certificate, PEM
    #[arg(long, global = true, env = "NATS_KEY", value_name = "FILE")]
    nats_key: Option<PathBuf>,
}

impl BrokerArgs {
    /// Checks the arguments and makes the broker of them.
    ///
    /// # Errors
    /// [`BrokerError`], also for two kinds of credentials at once or half of a pair.
    pub fn into_broker(self) -> Result<Broker, BrokerError> {
        let identity = match (self.nats_certificate, self.nats_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(BrokerError::Conflict(
                    "NATS_CERTIFICATE and NATS_KEY go together: give both or none",
                ));
            }
        };
        let tls = Tls { ca: self.nats_ca, identity };
        let user = match (self.nats_user, self.nats_password) {
            (Some(user), Some(password)) => Some(Credentials::UserPassword(user, password)),
            (None, None) => None,
            _ => {
                return Err(BrokerError::Conflict(
                    "NATS_USER and NATS_PASSWORD go together: give both or none",
                ));
            }
        };
        let nkey = self.nats_nkey.map(read_seed).transpose()?;
        let token = self.nats_token.map(Credentials::Token);
        let file = self.nats_creds.map(Credentials::File);
        let mut given = [user, nkey, token, file].into_iter().flatten();
        let credentials = given.next().unwrap_or_default();
        if given.next().is_some() {
            return Err(BrokerError::Conflict(
                "give one of NATS_CREDS, NATS_NKEY, NATS_USER and NATS_TOKEN, not several",
            ));
        }
        Broker::with(&self.nats_url, credentials, tls)
    }
}

fn read_seed(path: PathBuf) -> Result<Credentials, BrokerError> {
    let seed = std::fs::read_to_string(&path);
    let seed = seed.map_err(|source| BrokerError::CredentialsFile { path, source })?;
    Ok(Credentials::NKey(seed.trim().to_owned()))
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

    fn broker(arguments: &[&str]) -> Result<Broker, BrokerError> {
        Cli::parse_from([&["test"], arguments].concat()).broker.into_broker()
    }

    #[test]
    fn halves_and_doubles_are_refused() {
        for arguments in [
            &["--nats-user", "me"][..],
            &["--nats-key", "k.pem"],
            &["--nats-token", "t", "--nats-user", "me", "--nats-password", "p"],
        ] {
            assert!(matches!(broker(arguments), Err(BrokerError::Conflict(_))), "{arguments:?}");
        }
    }

    #[test]
    fn an_address_alone_is_enough() {
        assert_eq!(broker(&["--nats-url", "nats://b:1"]).unwrap().to_string(), "b:1");
    }
}
