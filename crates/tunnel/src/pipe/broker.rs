//! A connection to the broker for pipes alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::Client;
use natsway_boot::{BrokerConfig, Dial, DialError, Dialer, Session, SessionEvent};
use natsway_wire::pipe::{CHUNK_BYTES, LEAST_COST};
use tokio::sync::OnceCell;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::error::PipeOpenError;

/// How long dialling may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages accepted and not yet written to the socket, for all pipes together: 1 MiB.
const PUBLISH_MESSAGES: usize = (1 << 20) / CHUNK_BYTES;

/// What may come for one pipe beside its data: a status for each quarter of a window, and each
/// second.
const STATUS_MESSAGES: usize = 64;

/// Where pipes find the broker. Connects when the first pipe needs it, and closes after the last.
#[derive(Debug)]
pub struct PipeBroker {
    broker: BrokerConfig,
    dial: Dial,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The newest connection, as long as somebody has it.
    newest: Weak<OnceCell<Connected>>,
    /// Knows the servers that the cluster told of.
    dialer: Option<Dialer>,
    /// The server that is about to shut down.
    avoided: Option<String>,
}

/// A connection that pipes share. It closes when the last of its clones is dropped.
#[derive(Clone, Debug)]
pub struct PipeConnection(Arc<OnceCell<Connected>>);

#[derive(Debug)]
struct Connected {
    client: Client,
    /// Where inboxes of this connection begin, dot included.
    inbox: String,
    /// Cancelled when its server will shut down, does not answer, or is lost.
    leaving: CancellationToken,
    _watch: DropGuard,
}

impl PipeBroker {
    /// Returns one that is not connected. `name` is what the broker's monitoring shows;
    /// `inbox_prefix` is the role's own; `window_bytes` the largest of its pipes' windows.
    pub fn new(broker: BrokerConfig, name: String, inbox_prefix: &str, window_bytes: u32) -> Self {
        let most_data = u64::from(window_bytes) / LEAST_COST;
        let dial = Dial {
            name,
            inbox_prefix: inbox_prefix.to_owned(),
            subscription_messages: usize::try_from(most_data).unwrap_or(usize::MAX / 2)
                + STATUS_MESSAGES,
            publish_messages: PUBLISH_MESSAGES,
        };
        Self { broker, dial, known: Arc::default() }
    }

    /// Returns the connection, or dials it where there is none that stays.
    ///
    /// # Errors
    /// [`PipeOpenError::Broker`] or [`PipeOpenError::NoAnswer`].
    ///
    /// # Cancel safety
    /// Cancelling gives the dialling up, unless somebody else waits for it too.
    pub async fn connection(&self) -> Result<PipeConnection, PipeOpenError> {
        let cell = {
            let mut known = self.lock();
            let stays = |cell: &Arc<OnceCell<Connected>>| {
                cell.get().is_none_or(|connected| !connected.leaving.is_cancelled())
            };
            known.newest.upgrade().filter(stays).unwrap_or_else(|| {
                let cell = Arc::default();
                known.newest = Arc::downgrade(&cell);
                cell
            })
        };
        cell.get_or_try_init(|| async {
            let (dialer, avoided) = {
                let mut known = self.lock();
                (known.dialer.take(), known.avoided.take())
            };
            let fresh = || Dialer::new(self.broker.clone(), self.dial.clone());
            let mut dialer = dialer.unwrap_or_else(fresh);
            let dialled = dialer.dial_once(avoided.as_deref());
            let dialled = tokio::time::timeout(DIAL_TIMEOUT, dialled).await;
            self.lock().dialer = Some(dialer);
            let session = dialled.map_err(|_| PipeOpenError::NoAnswer)??;
            Ok::<_, PipeOpenError>(Connected::watch(session, Arc::downgrade(&self.known)))
        })
        .await?;
        Ok(PipeConnection(cell))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connected {
    fn watch(mut session: Session, known: Weak<Mutex<Known>>) -> Self {
        let (leaving, dropped) = (CancellationToken::new(), CancellationToken::new());
        let connected = Self {
            client: session.client().clone(),
            inbox: format!("{}.{}.", session.inbox_prefix(), natsway_boot::random_id()),
            leaving: leaving.clone(),
            _watch: dropped.clone().drop_guard(),
        };
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = session.next_event() => event,
                    () = dropped.cancelled() => return,
                };
                match event {
                    SessionEvent::Answers | SessionEvent::NotPermitted => {}
                    SessionEvent::Silent => leaving.cancel(),
                    SessionEvent::LameDuck => {
                        if let Some(known) = known.upgrade() {
                            lock(&known).avoided = Some(session.server_id().to_owned());
                        }
                        leaving.cancel();
                    }
                    SessionEvent::Lost => {
                        debug!(server_id = session.server_id(), "broker connection of pipes lost");
                        return leaving.cancel();
                    }
                }
            }
        });
        connected
    }
}

impl PipeConnection {
    fn connected(&self) -> &Connected {
        self.0.get().expect("it is given away once it is connected")
    }

    pub(super) fn client(&self) -> &Client {
        &self.connected().client
    }

    /// Returns an inbox that nobody else has: about 94 random bits.
    pub(super) fn inbox(&self) -> String {
        format!("{}{}", self.connected().inbox, natsway_boot::random_id())
    }

    /// Completes when the connection will end.
    pub(super) async fn leaving(&self) {
        self.connected().leaving.cancelled().await;
    }
}

impl From<DialError> for PipeOpenError {
    fn from(error: DialError) -> Self {
        Self::Broker(error)
    }
}
