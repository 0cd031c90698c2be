//! Reaching the broker, patiently.

use std::future::Future;
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State;
use natsway_boot::BrokerConfig;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::{Error, ErrorKind, whole};

const RETRY: Duration = Duration::from_millis(500);
/// How long a connection may take before it is worth a word.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(50);

/// A connection that is there, with its inboxes below `_INBOX_<program>`: it says once that it
/// waits, and goes on trying until `stop`.
///
/// # Errors
/// Unreadable certificates, and `stop`.
pub(crate) async fn client(
    broker: &BrokerConfig,
    program: &str,
    name: &str,
    stop: &CancellationToken,
) -> Result<Client, Error> {
    let connected = broker.connect(name, &format!("_INBOX_{program}")).await;
    let client =
        connected.map_err(|error| ErrorKind::Broker.caused(format!("broker {broker}"), error))?;
    let (begin, mut told) = (Instant::now(), false);
    while client.connection_state() != State::Connected {
        // It counts as pending for as long as nothing answers.
        if begin.elapsed() >= PATIENCE && !std::mem::replace(&mut told, true) {
            warn!(%broker, "the broker is not reached, trying again: is NATS_URL right, unless it \
                            says above why it refuses");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => {
                return Err(ErrorKind::Stopped.with(format!("stopped before the broker {broker} was \
                                                            reached")));
            }
        }
    }
    Ok(client)
}

/// Whether the broker that the client is connected to has JetStream.
pub(crate) fn has_jetstream(client: &Client) -> bool {
    client.server_info().jetstream
}

/// Repeats what fails until it does not, or `stop`.
///
/// # Errors
/// The last failure, at `stop`.
pub(crate) async fn patiently<T, E, F>(
    what: &str,
    stop: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Error>
where
    E: std::error::Error + Send + Sync + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut told = false;
    loop {
        match attempt().await {
            Ok(value) => {
                if told {
                    info!("{what} is there");
                }
                return Ok(value);
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    warn!(error = whole(&error), "waiting for {what}");
                }
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = stop.cancelled() => return Err(ErrorKind::Stopped.caused(what, error)),
                }
            }
        }
    }
}
