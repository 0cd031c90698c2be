//! Somebody who looks at the answers while the load runs: the generators count statuses and
//! lengths, this one reads bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::question::{Question, ask};

/// Ten a second: nothing beside the load, and enough to see an answer that belongs to somebody
/// else.
const PAUSE: Duration = Duration::from_millis(100);

/// A request takes longer than that only when something is broken.
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks beside the load until it is stopped.
#[derive(Debug)]
pub struct Witness {
    wrong: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Witness {
    /// Begins to ask.
    pub fn start(question: Question) -> Self {
        let wrong = Arc::new(AtomicU64::new(0));
        let count = wrong.clone();
        let task = tokio::spawn(async move {
            loop {
                if !matches!(tokio::time::timeout(DEADLINE, ask(&question)).await, Ok(Ok(()))) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { wrong, task }
    }

    /// Stops, and tells how many answers were wrong or missing. What is still out is not judged.
    pub fn stop(self) -> u64 {
        self.task.abort();
        self.wrong.load(Ordering::Relaxed)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}
