//! Moves the bytes of a pipe: publishes what was written, takes what comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, Subject, Subscriber};
use futures_util::{FutureExt, StreamExt};
use natsway_wire::control::is_mapped;
use natsway_wire::pipe::{PipeMessage, ResetReason};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::broker::PipeConnection;
use super::state::PipeError;
use super::stream::{PipeSettings, Shared};

/// Between two ticks of a pipe.
const TICK: Duration = Duration::from_millis(500);

/// How long what was written may take to be sent when nobody reads or writes any more.
const LINGER: Duration = Duration::from_secs(1);

/// How long what was published last may take to reach the socket.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// What a pipe needs to go on: [run](Self::run) it as a task of its own.
#[derive(Debug)]
pub struct PipeDriver {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: PipeConnection,
    pub(super) messages: Subscriber,
    /// Where we hear.
    pub(super) own: Subject,
    /// Where the other end hears.
    pub(super) peer: Subject,
    /// The other end hears where its newest message says, for the broker puts a subject of its own
    /// in the place of that, and forgets it after a while.
    pub(super) follows_reply: bool,
    pub(super) settings: PipeSettings,
}

/// Sends what one end says.
struct Sender<'d> {
    client: &'d Client,
    shared: &'d Shared,
    own: &'d Subject,
    peer: &'d Mutex<Subject>,
    settings: &'d PipeSettings,
    connection: &'d PipeConnection,
}

impl PipeDriver {
    /// Moves bytes until the pipe has ended, or breaks.
    ///
    /// # Errors
    /// Why it broke. Who reads and writes the pipe gets an error then, too.
    ///
    /// # Cancel safety
    /// Dropping the future breaks the pipe without a word to the other end.
    pub async fn run(self) -> Result<(), PipeError> {
        let Self { shared, connection, mut messages, own, peer, follows_reply, settings } = self;
        let _broken_when_dropped = BreakOff(&shared);
        let client = connection.client();
        let peer = Mutex::new(peer);
        let (shared, settings) = (&*shared, &settings);
        let sender =
            Sender { client, shared, own: &own, peer: &peer, settings, connection: &connection };
        let ended = tokio::select! {
            ended = sender.send() => ended,
            ended = async {
                loop {
                    receive(&mut messages, shared, settings, |reply| {
                        if follows_reply && is_mapped(&reply) {
                            *peer.lock().unwrap_or_else(PoisonError::into_inner) = reply;
                        }
                    })
                    .await?;
                }
            } => ended,
        };
        if let Err(error) = ended {
            settings.meter.broke();
            shared.break_off(error);
            let reason = match error {
                PipeError::ConnectionLost => return ended,
                PipeError::Gone | PipeError::Reset(_) => None,
                _ => Some(ResetReason::Broken),
            };
            if let Some(reason) = reason {
                sender.publish(&PipeMessage::Reset(reason)).await.ok();
            }
        }
        tokio::time::timeout(FLUSH_TIMEOUT, client.flush()).await.ok();
        ended
    }
}

/// A pipe that nobody drives is broken.
struct BreakOff<'d>(&'d Shared);

impl Drop for BreakOff<'_> {
    fn drop(&mut self) {
        self.0.break_off(PipeError::ConnectionLost);
    }
}

async fn receive(
    messages: &mut Subscriber,
    shared: &Shared,
    settings: &PipeSettings,
    reply_is: impl Fn(Subject),
) -> Result<(), PipeError> {
    let message = messages.next().await.ok_or(PipeError::ConnectionLost)?;
    if message.status.is_some() {
        return Err(PipeError::Gone);
    }
    let said = PipeMessage::decode(&message.payload).map_err(|error| {
        debug!(%error, "no message of a pipe");
        PipeError::Unexpected
    })?;
    if let Some(reply) = message.reply {
        reply_is(reply);
    }
    shared.receive(said, &settings.meter)
}

impl Sender<'_> {
    async fn send(&self) -> Result<(), PipeError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What the other end is to be let send, and when.
        let mut granting: Option<(Instant, u64)> = None;
        // How much is to be sent, and when: nothing of it is taken before.
        let mut sending: Option<(Instant, usize)> = None;
        let mut has_said_leaving = false;
        loop {
            if ticks.tick().now_or_never().is_some() {
                self.tick().await?;
            }
            if granting.is_none() {
                granting = self.shared.due().map(|due| (self.reserve(due), due));
            }
            if let Some((at, due)) = granting
                && at <= Instant::now()
            {
                granting = None;
                self.publish(&self.shared.grant(due)).await?;
            }
            if sending.is_none() {
                let next = self.shared.next_bytes();
                sending = next.map(|bytes| (self.reserve(bytes as u64), bytes));
            }
            if let Some((at, bytes)) = sending
                && at <= Instant::now()
            {
                sending = None;
                if let Some((data, bytes)) = self.shared.next_data(bytes) {
                    self.publish(&data).await?;
                    self.settings.meter.sent(bytes);
                }
                continue;
            }
            if let Some(end) = self.shared.end() {
                self.publish(&end).await?;
            }
            if self.shared.is_over() {
                return Ok(());
            }
            let dropped_at = self.shared.dropped_at();
            tokio::select! {
                () = self.shared.work.notified() => {}
                _ = ticks.tick() => self.tick().await?,
                () = until(granting.map(|(at, _)| at)) => {}
                () = until(sending.map(|(at, _)| at)) => {}
                () = until(dropped_at.map(|at| at + LINGER)) => {
                    return self.publish(&PipeMessage::Reset(ResetReason::Closed)).await;
                }
                () = self.connection.leaving(), if !has_said_leaving => {
                    has_said_leaving = true;
                    self.publish(&self.shared.leave()).await?;
                }
            }
        }
    }

    /// Says how far this end is, as a question: the broker answers it when nobody hears.
    async fn tick(&self) -> Result<(), PipeError> {
        let Some(status) = self.shared.tick()? else { return Ok(()) };
        let asked =
            self.client.publish_with_reply(self.peer(), self.own.clone(), status.encode()).await;
        asked.map_err(|_| PipeError::ConnectionLost)
    }

    async fn publish(&self, message: &PipeMessage) -> Result<(), PipeError> {
        let published = self.client.publish(self.peer(), message.encode()).await;
        published.map_err(|_| PipeError::ConnectionLost)
    }

    fn peer(&self) -> Subject {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reserve(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        self.settings.pace.as_ref().map_or(now, |pace| pace.reserve(bytes, now))
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
