//! Finds the broker: an address that was given, else a context of the nats command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream;
use natsway_boot::{BrokerArgs, BrokerConfig, Credentials, DialErrorKind, Tls};
use serde::Deserialize;

/// A connection, and the prefix of its JetStream API.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) jetstream: jetstream::Context,
    pub(crate) api_prefix: String,
}

/// What a context file holds, as far as it matters here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct NatsContext {
    url: String,
    user: String,
    password: String,
    token: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    inbox_prefix: String,
    tls_first: bool,
}

/// How the broker is reached: a context named on the command line goes first, then an address that
/// was given, then the selected context.
pub(crate) struct Chosen {
    broker: BrokerConfig,
    api_prefix: String,
}

/// Reads the settings; what fails here has to be changed by the user before another try.
pub(crate) fn choose(args: BrokerArgs, url_given: bool, context: Option<&str>) -> Result<Chosen> {
    let directory = context_directory();
    let context = match context {
        Some(name) => Some(read_context(&directory, name)?),
        None if url_given => None,
        None => selected(&directory).map(|name| read_context(&directory, &name)).transpose()?,
    };
    Ok(match context {
        Some(context) => Chosen { broker: broker_of(&context)?, api_prefix: api_prefix(&context) },
        None => Chosen { broker: args.into_config()?, api_prefix: "$JS.API".to_owned() },
    })
}

/// How long a connection may take before it is looked why.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long the broker may take to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Connects.
pub(crate) async fn connect(chosen: Chosen) -> Result<Connection> {
    let Chosen { broker, api_prefix } = chosen;
    let client = broker.connect("cg", "_INBOX_cg").await.context("the broker cannot be reached")?;
    let connected = async {
        while client.connection_state() != async_nats::connection::State::Connected {
            tokio::time::sleep(Duration::from_millis(20)).await
        }
    };
    if tokio::time::timeout(PATIENCE, connected).await.is_err() {
        why_not(&broker, &client).await?;
    }
    let jetstream =
        jetstream::context::ContextBuilder::new().api_prefix(api_prefix.clone()).build(client);
    Ok(Connection { jetstream, api_prefix })
}

/// Waits on for a broker that is not reachable; ends at once with what is wrong where waiting mends
/// nothing.
async fn why_not(broker: &BrokerConfig, client: &async_nats::Client) -> Result<()> {
    let until = tokio::time::Instant::now() + CONNECT_WITHIN;
    loop {
        let found = broker.diagnose().await;
        if client.connection_state() == async_nats::connection::State::Connected {
            return Ok(());
        }
        let is_over = tokio::time::Instant::now() >= until;
        match found {
            Some((DialErrorKind::Unavailable, reason)) if is_over => {
                bail!("{reason}: is it the right one? --nats-url or --context name another")
            }
            Some((DialErrorKind::Unavailable, _)) | None if !is_over => {}
            Some((_, reason)) => bail!("{reason}"),
            None => bail!("broker {broker} does not answer"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn context_directory() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".config"));
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|d| !d.is_empty())
        .map(PathBuf::from)
        .or_else(home);
    base.unwrap_or_default().join("nats")
}

fn selected(directory: &Path) -> Option<String> {
    let name = std::fs::read_to_string(directory.join("context.txt")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn read_context(directory: &Path, name: &str) -> Result<NatsContext> {
    if name.contains(['/', '\\']) || name.contains("..") {
        bail!("context {name:?}: expected a name, not a path");
    }
    let path = directory.join("context").join(format!("{name}.json"));
    let text = std::fs::read(&path).with_context(|| {
        format!("context {name:?} cannot be read; `nats context ls` lists them")
    })?;
    serde_json::from_slice(&text)
        .with_context(|| format!("context {name:?} is not a context of the nats command line"))
}

fn broker_of(context: &NatsContext) -> Result<BrokerConfig> {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let path = |text: &str| given(text).map(|text| expand(&text));
    let credentials = if let Some(file) = path(&context.creds) {
        Credentials::File(file)
    } else if let Some(file) = path(&context.nkey) {
        Credentials::nkey_file(file)?
    } else if let Some(token) = given(&context.token) {
        Credentials::Token(token)
    } else if let Some(user) = given(&context.user) {
        Credentials::UserPassword(user, context.password.clone())
    } else {
        Credentials::None
    };
    let tls = Tls {
        ca: path(&context.ca),
        identity: path(&context.cert).zip(path(&context.key)),
        first: context.tls_first,
    };
    let url = given(&context.url).unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let broker = BrokerConfig::with(&url, credentials, tls)?;
    match given(&context.inbox_prefix) {
        Some(prefix) => Ok(broker.with_inbox_prefix(&prefix)?),
        None => Ok(broker),
    }
}

fn api_prefix(context: &NatsContext) -> String {
    match (context.jetstream_api_prefix.as_str(), context.jetstream_domain.as_str()) {
        ("", "") => "$JS.API".into(),
        ("", domain) => format!("$JS.{domain}.API"),
        (prefix, _) => prefix.trim_end_matches('.').to_owned(),
    }
}

fn expand(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}
