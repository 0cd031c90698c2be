//! One source on its way into the stream: read, send, wait for acknowledgements in order, move the
//! checkpoint.

use std::collections::VecDeque;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, message::PublishMessage};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::input::Input;
use super::journal::Journal;
use super::outbox::{Outbox, PendingMessage};
use super::status::{Metrics, SourceStatus};
use crate::head::{Generation, HEADER};
use crate::tail::checkpoint::{Mode, replace_lightly};
use crate::tail::{Chunk, Step, Tally};

/// Memory is handed out in units of this many bytes.
pub(super) const PERMIT_BYTES: usize = 1024;
/// A checkpoint is saved at most so often; a crash repeats what was sent since.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// How long to look away when all memory is in use.
const NO_MEMORY: Duration = Duration::from_millis(5);
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
const ZSTD_LEVEL: i32 = 1;

type Ack =
    Pin<Box<dyn Future<Output = Result<jetstream::publish::PublishAck, PublishError>> + Send>>;

/// What a source needs beside its input.
pub(super) struct Setup {
    pub(super) context: jetstream::Context,
    pub(super) client: async_nats::Client,
    pub(super) subject: String,
    pub(super) path: PathBuf,
    pub(super) generation: Generation,
    pub(super) since: u64,
    pub(super) floor: u64,
    pub(super) batch_bytes: usize,
    pub(super) compress: bool,
    pub(super) poll: Duration,
    pub(super) drain_timeout: Duration,
    pub(super) memory: Arc<Semaphore>,
    /// Sources that may be at the disk at once: each of them takes a thread.
    pub(super) disk: Arc<Semaphore>,
    pub(super) metrics: Arc<Metrics>,
}

/// See the module.
pub(super) struct Shipping {
    setup: Setup,
    input: Input,
    journal: Option<Journal>,
    outbox: Outbox<OwnedSemaphorePermit>,
    acks: VecDeque<Ack>,
    clock: Instant,
    poll_at: Instant,
    send_at: Instant,
    retry: Duration,
    saved: (u64, Instant),
    status: Arc<Mutex<SourceStatus>>,
    status_at: Instant,
    reported: Option<SourceStatus>,
    in_flight_bytes: u64,
    waiting: bool,
    /// Its checkpoint cannot be saved: nothing is read meanwhile.
    stopped: bool,
}

enum Event {
    Settled(Result<jetstream::publish::PublishAck, PublishError>),
    Poll,
    Send,
    Stop,
}

impl Shipping {
    pub(super) fn new(setup: Setup, input: Input, journal: Option<Journal>) -> Self {
        let now = Instant::now();
        let round = fastrand::u64(..) >> 16;
        let outbox = Outbox::new(setup.generation, setup.since, setup.floor, round);
        let status = setup.metrics.register(&setup.path, &setup.subject);
        Self {
            saved: (setup.floor, now),
            setup,
            input,
            journal,
            outbox,
            acks: VecDeque::new(),
            clock: now,
            poll_at: now,
            send_at: now,
            retry: RETRY.0,
            status,
            status_at: now,
            reported: None,
            in_flight_bytes: 0,
            waiting: false,
            stopped: false,
        }
    }

    /// Ships until `stop`, then has acknowledged what was sent, within the time to drain; or until
    /// the input is over.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut deadline = None;
        loop {
            self.send().await;
            if self.outbox.is_empty()
                && (self.input.is_over() || deadline.is_some() && self.input.may_stop())
            {
                break;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                warn!(
                    subject = self.setup.subject,
                    "stopped before everything that was sent is acknowledged; it is sent again at \
                     the next start"
                );
                break;
            }
            let event = self.event(&stop, deadline).await;
            let disk = Arc::clone(&self.setup.disk);
            let _turn = disk.acquire().await.expect("nobody closes it");
            match event {
                Event::Settled(Ok(_)) => self.stored(),
                Event::Settled(Err(error)) => self.failed(&error),
                Event::Poll => self.poll(),
                Event::Send => {}
                Event::Stop => {
                    deadline = deadline.or_else(|| Some(Instant::now() + self.setup.drain_timeout));
                    self.input.close();
                }
            }
            self.report();
        }
        if !self.save(true) {
            warn!(
                subject = self.setup.subject,
                "the last checkpoint is not saved; what it says is sent again at the next start"
            );
        }
        self.status_at = Instant::now();
        self.report();
    }

    /// Waits for the next thing to do. Cancel safe: acknowledgements stay in their queue.
    async fn event(&mut self, stop: &CancellationToken, deadline: Option<Instant>) -> Event {
        let stopping = deadline.is_some();
        let (poll_at, send_at) = (self.poll_at, self.send_at);
        let has_acks = !self.acks.is_empty();
        let retrying = !has_acks && !self.outbox.is_empty();
        let acks = &mut self.acks;
        let front = async {
            match acks.front_mut() {
                Some(ack) => ack.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            settled = front, if has_acks => {
                self.acks.pop_front();
                Event::Settled(settled)
            }
            () = stop.cancelled(), if !stopping => Event::Stop,
            () = tokio::time::sleep_until(send_at.into()), if retrying => Event::Send,
            () = tokio::time::sleep_until(poll_at.into()), if !stopping || !self.input.may_stop() => Event::Poll,
            () = sleep_until(deadline), if stopping => Event::Stop,
        }
    }

    /// Sends what is due. Publishing only queues it for the connection, whose queue is longer than
    /// the memory allows messages.
    async fn send(&mut self) {
        if Instant::now() < self.send_at {
            return;
        }
        if self.setup.client.connection_state() != State::Connected {
            self.send_at = Instant::now() + RETRY.0;
            return;
        }
        while let Some((head, id, payload)) = self.outbox.next() {
            let message =
                PublishMessage::build().payload(payload).header(HEADER, head.to_string().as_str());
            match self
                .setup
                .context
                .send_publish(self.setup.subject.clone(), message.message_id(id))
                .await
            {
                Ok(ack) => self.acks.push_back(ack.into_future()),
                Err(error) => {
                    self.failed(&error);
                    return;
                }
            }
        }
    }

    fn stored(&mut self) {
        if let Some(message) = self.outbox.acknowledged() {
            let metrics = &self.setup.metrics;
            metrics.messages.add(1);
            metrics.bytes.add(message.file_bytes());
            self.in_flight_bytes -= message.payload.len() as u64;
        }
        if self.waiting {
            self.waiting = false;
            self.setup.metrics.waiting.set(self.setup.metrics.waiting.get().saturating_sub(1));
            info!(subject = self.setup.subject, "the stream takes messages again");
            self.status.lock().unwrap_or_else(PoisonError::into_inner).last_error = None;
        }
        self.retry = RETRY.0;
        self.poll_at = self.poll_at.min(Instant::now() + NO_MEMORY);
        if self.saved.1.elapsed() >= SAVE_EVERY {
            self.save(false);
        }
    }

    /// Goes back to the first message that is not stored, a little later.
    fn failed(&mut self, error: &PublishError) {
        self.acks.clear();
        self.outbox.failed();
        self.send_at = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(RETRY.1);
        self.setup.metrics.retries.add(1);
        let reason = explain(error);
        if !self.waiting {
            self.waiting = true;
            self.setup.metrics.waiting.add(1);
            warn!(subject = self.setup.subject, reason, "waiting for the stream");
        }
        self.status.lock().unwrap_or_else(PoisonError::into_inner).last_error = Some(reason);
    }

    fn poll(&mut self) {
        let now = Instant::now();
        if self.stopped && !self.save(false) {
            self.poll_at = now + RETRY.1;
            return;
        }
        let units = self.setup.batch_bytes.div_ceil(PERMIT_BYTES) as u32;
        let Ok(permit) = Arc::clone(&self.setup.memory).try_acquire_many_owned(units) else {
            self.poll_at = now + NO_MEMORY;
            return;
        };
        let since = self.clock.elapsed() + Duration::from_nanos(1);
        match block_in_place(|| self.input.poll(since)) {
            Ok(Step::Idle) => {
                self.poll_at = now + self.setup.poll;
                // Nothing moves, so what was acknowledged last is saved now.
                if self.outbox.is_empty() && self.saved.1.elapsed() >= SAVE_EVERY {
                    self.save(false);
                }
            }
            Ok(Step::Save) => {
                // Nothing may be read before that is on the disk.
                if !self.save(false) {
                    self.poll_at = now + RETRY.1;
                }
            }
            Ok(Step::Chunk(chunk)) => self.take(chunk, permit, units),
            Err(error) => {
                warn!(path = %self.setup.path.display(), %error, "the file cannot be read, trying \
                                                                  again");
                self.status.lock().unwrap_or_else(PoisonError::into_inner).last_error =
                    Some(error.to_string());
                self.poll_at = now + RETRY.1;
            }
        }
    }

    /// Puts a chunk into the outbox, with the part of `permit` that it needs.
    fn take(&mut self, chunk: Chunk, mut permit: OwnedSemaphorePermit, units: u32) {
        let message = self.pack(chunk);
        let used = (message.payload.len().div_ceil(PERMIT_BYTES) as u32).clamp(1, units);
        let permit = permit.split(used as usize).expect("at most what was taken");
        self.in_flight_bytes += message.payload.len() as u64;
        let PendingMessage { start, end, payload, zstd, gap, .. } = message;
        self.outbox.push(PendingMessage { start, end, payload, zstd, gap, _permit: permit });
    }

    fn pack(&self, chunk: Chunk) -> PendingMessage<()> {
        let Chunk { start, end, payload, gap } = chunk;
        let packed = (self.setup.compress && !payload.is_empty())
            .then(|| block_in_place(|| zstd::bulk::compress(&payload, ZSTD_LEVEL)));
        match packed {
            Some(Ok(packed)) => {
                let zstd = Some(payload.len() as u64);
                PendingMessage { start, end, payload: Bytes::from(packed), zstd, gap, _permit: () }
            }
            // What cannot be packed is sent as it is.
            _ => PendingMessage { start, end, payload, zstd: None, gap, _permit: () },
        }
    }

    /// Saves the checkpoint, and returns whether it is on the disk. The disk is waited for, as it
    /// is full for a while at the most.
    fn save(&mut self, last: bool) -> bool {
        let floor = self.outbox.floor();
        let (Some(journal), Some(tail)) = (&mut self.journal, self.input.state(floor, last)) else {
            return true;
        };
        let Setup { generation, since, subject, path, metrics, .. } = &self.setup;
        let saved = block_in_place(|| {
            journal.save(Mode::JetStream, *generation, subject, *since, path, tail)
        });
        // Also after a failure: not again with each acknowledgement.
        self.saved = (floor, Instant::now());
        let was_stopped = std::mem::replace(&mut self.stopped, saved.is_err());
        match (was_stopped, &saved) {
            (false, Err(error)) => {
                metrics.stopped.add(1);
                let reason = format!("the checkpoint cannot be saved: {error}");
                error!(subject, reason, "reading nothing until it can be");
                self.status.lock().unwrap_or_else(PoisonError::into_inner).last_error =
                    Some(reason);
            }
            (true, Ok(())) => {
                metrics.stopped.sub(1);
                info!(subject, "the checkpoint can be saved again");
                self.status.lock().unwrap_or_else(PoisonError::into_inner).last_error = None;
            }
            _ => {}
        }
        saved.is_ok()
    }

    /// Reports how it goes, for metrics and `status`.
    fn report(&mut self) {
        let now = Instant::now();
        if now < self.status_at {
            return;
        }
        self.status_at = now + STATUS_EVERY;
        let status = {
            let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            status.unread_bytes = self.input.unread_bytes();
            status.in_flight_bytes = self.in_flight_bytes;
            let before = std::mem::replace(&mut status.tally, self.input.tally());
            log_losses(&self.setup.path, before, status.tally);
            status.clone()
        };
        let Some(journal) =
            self.journal.as_ref().filter(|_| self.reported.as_ref() != Some(&status))
        else {
            return;
        };
        let json = serde_json::to_vec(&status).unwrap_or_default();
        if let Err(error) = block_in_place(|| replace_lightly(&journal.status_path(), &json)) {
            warn!(%error, "the status cannot be written");
        }
        self.reported = Some(status);
    }
}

/// Says what happened to a file between two polls at its tally, where lines may be lost by it.
pub(super) fn log_losses(path: &Path, before: Tally, now: Tally) {
    let path = path.display();
    let lost_bytes = now.lost_bytes - before.lost_bytes;
    if now.truncations > before.truncations {
        warn!(%path, lost_bytes, "the file was truncated or rewritten; what was not read of it is \
                                  lost");
    }
    if now.vanished > before.vanished {
        warn!(%path, lost_bytes, "the file was gone before it was read to its end");
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// What to tell about a message that was not stored.
fn explain(error: &PublishError) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(refused) = inner.downcast_ref::<jetstream::Error>() {
            let full = [
                jetstream::ErrorCode::STREAM_STORE_FAILED,
                jetstream::ErrorCode::INSUFFICIENT_RESOURCES,
                jetstream::ErrorCode::STORAGE_RESOURCES_EXCEEDED,
            ];
            return match full.contains(&refused.error_code()) {
                true => format!(
                    "the stream is full: consumers have to catch up, or it needs more room \
                     ({refused})"
                ),
                false => refused.to_string(),
            };
        }
        source = inner.source();
    }
    match error.kind() {
        PublishErrorKind::StreamNotFound => "no stream takes the subject: was it deleted".into(),
        PublishErrorKind::TimedOut => "the broker does not answer".into(),
        PublishErrorKind::MaxPayloadExceeded => {
            "the broker takes no message of that size: lower SHIPPER_BATCH".into()
        }
        _ => error.to_string(),
    }
}
