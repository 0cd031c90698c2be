//! One source in core mode: a line a message, and nobody says whether anyone heard it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use bytes::Bytes;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::input::Input;
use super::journal::Journal;
use super::shipping::{Setup, log_losses};
use super::status::SourceStatus;
use crate::tail::checkpoint::{Mode, replace_lightly};
use crate::tail::{Chunk, Step};

const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long the broker may take to have been sent what was published.
const FLUSH: Duration = Duration::from_secs(5);
const RECONNECT_LOOK: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Plain {
    pub(super) setup: Setup,
    pub(super) input: Input,
    pub(super) journal: Option<Journal>,
    /// Events of several lines stay whole, so a message is not split at line feeds.
    pub(super) events: bool,
}

impl Plain {
    /// Publishes until `stop` or the end of the input.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let status = self.setup.metrics.register(&self.setup.path, &self.setup.subject);
        let (clock, mut floor, mut saved_at) = (Instant::now(), self.setup.floor, Instant::now());
        let mut told_away = false;
        while !stop.is_cancelled() && !self.input.is_over() {
            if self.setup.client.connection_state() != State::Connected {
                if !std::mem::replace(&mut told_away, true) {
                    warn!(subject = self.setup.subject, "waiting for the broker");
                }
                pause(RECONNECT_LOOK, &stop).await;
                continue;
            }
            if std::mem::take(&mut told_away) {
                info!(subject = self.setup.subject, "the broker is back");
            }
            let looked = {
                let _turn = self.setup.disk.acquire().await.expect("nobody closes it");
                block_in_place(|| self.input.poll(clock.elapsed() + Duration::from_nanos(1)))
            };
            match looked {
                Ok(Step::Chunk(chunk)) => {
                    floor = chunk.end;
                    self.publish(chunk).await;
                }
                Ok(Step::Save) => self.save(floor, &status, &stop).await,
                Ok(Step::Idle) => {
                    self.report(&status);
                    pause(self.setup.poll, &stop).await;
                }
                Err(error) => {
                    warn!(path = %self.setup.path.display(), %error, "the file cannot be read, \
                                                                      trying again");
                    pause(FLUSH, &stop).await;
                }
            }
            if saved_at.elapsed() >= SAVE_EVERY {
                self.save(floor, &status, &stop).await;
                saved_at = Instant::now();
            }
        }
        if let Err(error) = self.try_save(floor, true) {
            warn!(%error, "the last checkpoint is not saved; what it says is sent again at the \
                           next start");
        }
        self.report(&status);
    }

    async fn publish(&self, chunk: Chunk) {
        let Setup { client, subject, metrics, .. } = &self.setup;
        if chunk.gap.is_none() {
            for line in self.messages(&chunk.payload) {
                // It fails only when the client is closed, which is when the process ends.
                client.publish(subject.clone(), line).await.unwrap_or_default();
                metrics.messages.add(1);
            }
        }
        if tokio::time::timeout(FLUSH, client.flush()).await.is_err() {
            warn!(subject, "the broker does not take what is published");
        }
        if chunk.gap.is_none() {
            metrics.bytes.add(chunk.end - chunk.start);
        }
    }

    fn messages(&self, payload: &Bytes) -> Vec<Bytes> {
        if self.events {
            return vec![payload.clone()];
        }
        payload.split(|byte| *byte == b'\n').map(|line| payload.slice_ref(line)).collect()
    }

    /// Saves the checkpoint. The disk is waited for: what is published meanwhile would come twice
    /// after a crash.
    async fn save(
        &mut self,
        floor: u64,
        status: &Arc<Mutex<SourceStatus>>,
        stop: &CancellationToken,
    ) {
        let tell = |error: Option<String>| {
            status.lock().unwrap_or_else(PoisonError::into_inner).last_error = error;
        };
        let mut stopped = false;
        while let Err(error) = self.try_save(floor, false) {
            if !std::mem::replace(&mut stopped, true) {
                let reason = format!("the checkpoint cannot be saved: {error}");
                error!(subject = self.setup.subject, reason, "reading nothing until it can be");
                self.setup.metrics.stopped.add(1);
                tell(Some(reason));
            }
            pause(SAVE_EVERY, stop).await;
            if stop.is_cancelled() {
                break;
            }
        }
        if stopped {
            let metrics = &self.setup.metrics;
            metrics.stopped.sub(1);
            tell(None);
        }
    }

    fn try_save(&mut self, floor: u64, last: bool) -> io::Result<()> {
        let (Some(journal), Some(tail)) = (&mut self.journal, self.input.state(floor, last)) else {
            return Ok(());
        };
        let Setup { generation, since, subject, path, .. } = &self.setup;
        block_in_place(|| journal.save(Mode::Core, *generation, subject, *since, path, tail))
    }

    fn report(&self, status: &Arc<Mutex<SourceStatus>>) {
        let status = {
            let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
            let tally = self.input.tally();
            if status.unread_bytes == self.input.unread_bytes() && status.tally == tally {
                return;
            }
            status.unread_bytes = self.input.unread_bytes();
            log_losses(&self.setup.path, status.tally, tally);
            status.tally = tally;
            status.clone()
        };
        if let (Some(journal), Ok(json)) = (&self.journal, serde_json::to_vec(&status)) {
            // Only for people to look at.
            replace_lightly(&journal.status_path(), &json).unwrap_or_default();
        }
    }
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}
