//! The worker's end of pipes: asks a gateway for one, and answers its hello.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use natsway_boot::BrokerConfig;
use natsway_tunnel::pipe::{
    Ear, PipeBroker, PipeDriver, PipeOpenError, PipeSettings, PipeStream, answer,
};
use natsway_wire::control::is_mapped;
use natsway_wire::envelope::{Signal, encode_signal};
use natsway_wire::{QueueGroup, Subject as ServiceSubject};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Offered;
use crate::handler::outbox::Outbox;
use crate::inbox::INBOX_PREFIX;

/// What a gateway may be ahead of us on one pipe. As wide as a gateway's own: wider ones are no
/// faster.
const WINDOW_BYTES: u32 = 512 << 10;

/// Pipes of one reader. Their windows are a quarter of what a broker has waiting for a client
/// before it drops that.
const MOST: usize = 32;

/// How long a gateway may be asked for: it waits for the answer to its request meanwhile.
const INVITE_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct PipeEnd {
    broker: PipeBroker,
    settings: PipeSettings,
    outbox: Arc<Outbox>,
    subjects: Vec<ServiceSubject>,
    queue_group: QueueGroup,
    permits: Arc<Semaphore>,
}

/// Who made an offer, as long as a pipe is asked for.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    /// Where it hears by the broker, if it can be asked there.
    reply: Option<Subject>,
    endpoint: usize,
}

/// A pipe, and what it needs to go on.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) stream: PipeStream,
    pub(super) driver: PipeDriver,
    /// It is one of those that there may be as long as its driver runs.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Why there is no pipe.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipeError {
    #[error("there are as many pipes as there may be")]
    Full,
    #[error("the request's sender cannot be asked")]
    NotAsked,
    #[error(transparent)]
    Open(#[from] PipeOpenError),
}

impl From<Offered<'_>> for Sender {
    fn from(offered: Offered<'_>) -> Self {
        Self { reply: offered.reply.cloned(), endpoint: offered.endpoint }
    }
}

impl Sender {
    /// Whether it can be asked for a pipe: not by who answers a request of a tunnel.
    pub(super) fn can_be_asked(&self) -> bool {
        self.reply.is_some()
    }
}

impl PipeEnd {
    /// Returns one that is not connected, of a worker of these subjects; `name` is what the
    /// broker's monitoring shows.
    pub(crate) fn new(
        broker: BrokerConfig,
        name: String,
        subjects: Vec<ServiceSubject>,
        queue_group: QueueGroup,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self {
            broker: PipeBroker::new(broker, name, INBOX_PREFIX, WINDOW_BYTES),
            settings: PipeSettings {
                window_bytes: WINDOW_BYTES,
                // The gateway's is kept by what it lets us send.
                pace: None,
                meter: Arc::default(),
            },
            outbox,
            subjects,
            queue_group,
            permits: Arc::new(Semaphore::new(MOST)),
        }
    }

    /// Asks the sender of a request for a pipe, and waits for that.
    ///
    /// # Errors
    /// [`PipeError`].
    pub(super) async fn open(&self, sender: &Sender) -> Result<Pipe, PipeError> {
        let reply = sender.reply.as_ref().ok_or(PipeError::NotAsked)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let permit = permit.map_err(|_| PipeError::Full)?;
        let connection = self.broker.connection().await?;
        // Between accounts nothing leads to an inbox of ours.
        let service = self.subjects.get(sender.endpoint).filter(|_| is_mapped(reply));
        let below = service.map(|service| (service, &self.queue_group));
        let ear = Ear::open(connection, below).await?;
        let invitation = encode_signal(&Signal::Invite { subject: ear.subject().to_string() });
        let until = Instant::now() + INVITE_TIMEOUT;
        let asked = self.outbox.send(reply.clone(), invitation, until).await;
        asked.map_err(|_| PipeError::NotAsked)?;
        let (stream, driver) = answer(ear, self.settings.clone()).await?;
        Ok(Pipe { stream, driver, permit })
    }
}
