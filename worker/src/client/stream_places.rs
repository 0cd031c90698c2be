//! How many streams a client has, and that its thread lives as long as they do.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The streams of one client.
pub(super) struct StreamPlaces {
    places: Arc<Semaphore>,
    /// Those that are open: the thread lives as long as they do.
    open: TaskTracker,
}

/// The place of a stream, until it is dropped.
#[derive(Debug)]
pub(super) struct StreamPlace {
    _permit: OwnedSemaphorePermit,
    _open: TaskTrackerToken,
}

impl StreamPlaces {
    pub(super) fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), open: TaskTracker::new() }
    }

    /// Takes one, unless as many are open as may be.
    pub(super) fn try_take(&self) -> Option<StreamPlace> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(StreamPlace { _permit: permit, _open: self.open.token() })
    }

    /// Waits until none is open.
    pub(super) async fn ended(&self) {
        self.open.close();
        self.open.wait().await;
    }
}
