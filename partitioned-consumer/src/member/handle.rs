//! A running member, in the hands of whoever started it.

use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::event::{MemberEvent, MemberEvents, MemberState};
use super::lifecycle::End;
use crate::error::{Error, ErrorKind};
use crate::group::source_loss::SourceLoss;

/// A member at work. Dropping it stops the member without waiting for it.
#[must_use = "dropping it stops the member"]
pub struct MemberHandle {
    pub(super) events: MemberEvents,
    pub(super) state: watch::Receiver<MemberState>,
    pub(super) source_loss: watch::Receiver<SourceLoss>,
    pub(super) stop: CancellationToken,
    pub(super) task: Option<JoinHandle<Result<End, Error>>>,
}

impl MemberHandle {
    /// Asks the member to stop: running handlers end (within the drain time-out), buffered messages
    /// go back, the pin is given up so that a standby goes on at once. Wait for
    /// [`MemberHandle::done`] to see it through.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops the member and waits for its end.
    ///
    /// # Errors
    /// What [`MemberHandle::done`] gives when the member had ended by itself.
    pub async fn stopped(mut self) -> Result<End, Error> {
        self.stop.cancel();
        self.done().await
    }

    /// Waits for the member's end. Call it until it has answered once; after that it gives
    /// [`ErrorKind::Closed`].
    ///
    /// # Errors
    /// Why the member could not go on: [`ErrorKind::ConfigChanged`],
    /// [`ErrorKind::ConsumerDeleted`], [`ErrorKind::StreamNotFound`],
    /// [`ErrorKind::BucketNotFound`], [`ErrorKind::CorruptEntry`], [`ErrorKind::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; call it again.
    pub async fn done(&mut self) -> Result<End, Error> {
        let Some(task) = &mut self.task else {
            return Err(ErrorKind::Closed.with("the member's end was told before"));
        };
        let end = task.await;
        self.task = None;
        end.unwrap_or_else(|error| {
            Err(ErrorKind::Closed.caused("the member's task ended early", error))
        })
    }

    /// What the member is doing now, and its changes.
    pub fn state(&self) -> watch::Receiver<MemberState> {
        self.state.clone()
    }

    /// What the source stream of an elastic group dropped before it was copied, for metrics: as of
    /// the last look, which a pinned instance takes every few seconds.
    pub fn source_loss(&self) -> watch::Receiver<SourceLoss> {
        self.source_loss.clone()
    }

    /// What happens to the member from now on; a reader that is 256 events behind misses the
    /// oldest.
    pub fn events(&self) -> broadcast::Receiver<MemberEvent> {
        self.events.subscribe()
    }
}

impl Drop for MemberHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
