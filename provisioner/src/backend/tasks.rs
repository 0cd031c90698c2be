//! Instances as tasks of this process.

use std::future::Future;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use natsway_boot::Clock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Backend, BackendError, Instance, InstanceState};

/// Starts a task for each instance. A task is told to stop by its token, finishes what it
/// holds, and ends; it is never aborted, not even when the backend is dropped.
pub struct Tasks<F> {
    make: F,
    clock: Clock,
    running: Vec<Task>,
    made: u64,
}

struct Task {
    id: String,
    since_ms: u64,
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl<F, T> Tasks<F>
where
    F: FnMut(String, CancellationToken) -> T + Send,
    T: Future<Output = ()> + Send + 'static,
{
    /// A backend whose instances are what `make` gives for an id and a token. The future must end
    /// soon after its token is cancelled and what it holds is finished.
    pub fn new(make: F) -> Self {
        Self { make, clock: Clock::start(), running: Vec::new(), made: 0 }
    }

    /// Tells all of them to stop and waits until they have.
    pub async fn stop_all(&mut self) {
        for task in &self.running {
            task.stop.cancel();
        }
        for task in self.running.drain(..) {
            if let Err(error) = task.handle.await {
                warn!(%error, instance = %task.id, "instance ended badly");
            }
        }
    }
}

impl<F, T> Backend for Tasks<F>
where
    F: FnMut(String, CancellationToken) -> T + Send,
    T: Future<Output = ()> + Send + 'static,
{
    fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
        self.running.retain(|task| !task.handle.is_finished());
        let instance = |task: &Task| {
            let is_leaving = task.stop.is_cancelled();
            let state = if is_leaving { InstanceState::Stopping } else { InstanceState::Ready };
            Instance::new(task.id.clone(), state, task.since_ms)
        };
        ready(Ok(self.running.iter().map(instance).collect())).boxed()
    }

    fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.made += 1;
        let (id, stop) = (format!("task-{}", self.made), CancellationToken::new());
        let handle = tokio::spawn((self.make)(id.clone(), stop.clone()));
        let since_ms = self.clock.unix_ms_at(Instant::now());
        self.running.push(Task { id, since_ms, stop, handle });
        ready(Ok(())).boxed()
    }

    fn stop<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        if let Some(task) = self.running.iter().find(|task| task.id == id) {
            task.stop.cancel();
        }
        ready(Ok(())).boxed()
    }
}

impl<F> Drop for Tasks<F> {
    fn drop(&mut self) {
        for task in &self.running {
            task.stop.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;
    use crate::backend::{fleet, set};
    use crate::sample::Fleet;

    #[tokio::test]
    async fn a_stopped_task_finishes_what_it_holds() {
        let work = Arc::new(Notify::new());
        let held = Arc::clone(&work);
        let mut tasks = Tasks::new(move |_, stop: CancellationToken| {
            let held = Arc::clone(&held);
            async move {
                stop.cancelled().await;
                held.notified().await;
            }
        });
        set(&mut tasks, 3).await.unwrap();
        set(&mut tasks, 1).await.unwrap();
        let counted = fleet(&tasks.instances().await.unwrap());
        assert_eq!(counted, Fleet { ready: 1, stopping: 2, ..Fleet::default() });
        let ids: Vec<String> =
            tasks.instances().await.unwrap().into_iter().map(|instance| instance.id).collect();
        assert_eq!(ids, ["task-1", "task-2", "task-3"], "none was aborted");
        for _ in 0..3 {
            work.notify_one();
            tokio::task::yield_now().await;
        }
        tasks.stop_all().await;
        assert_eq!(tasks.instances().await.unwrap(), []);
    }
}
