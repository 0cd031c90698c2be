//! A connection that comes back by itself, for control planes.

use std::sync::Mutex;

use async_nats::{Client, ClientError, Event};
use tracing::{debug, info, warn};

use super::backoff::backoff;
use super::denied::DeniedSubscriptions;
use super::dial_error::DialErrorKind;
use super::dial_hints;
use super::server_errors::{ServerErrorLog, ServerEvent};
use crate::broker::BrokerConfig;

impl BrokerConfig {
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

/// Logs what happens to a connection that comes back by itself.
struct Listener {
    broker: BrokerConfig,
    name: String,
    server_errors: ServerErrorLog,
    refused: DeniedSubscriptions,
    /// The failure that was told last, since the last success.
    failure: Mutex<Option<String>>,
}

impl Listener {
    fn new(broker: BrokerConfig, name: &str) -> Self {
        let server_errors = ServerErrorLog::new(name, broker.who.as_deref());
        Self {
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
