//! Requests that a stream has stored: taken by a durable pull consumer, handled as any other, and
//! their results kept for their clients.
//!
//! - `options` says which stream, and within which bounds.
//! - `verdict` decides, purely, what becomes of a request by what its handler did.
//! - `consume` takes requests, as many as there are places; `delivery` is one of them, down to its
//!   acknowledgement.
//!
//! A request is acknowledged after its result is in the bucket, where the first one stays. So a
//! worker that dies loses nothing: the request is delivered again, and whoever takes it finds the
//! result if there was one.

mod consume;
mod delivery;
mod options;
mod verdict;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use async_nats::Client;
use natsway_stores::results::Results;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::options::WorkQueue;
pub(crate) use self::options::{WorkCounts, WorkQueueConfig};
use crate::admission::{Admission, Start};

/// The work of one reader.
pub(crate) struct Work<F> {
    config: WorkQueueConfig,
    admission: Rc<Admission<F>>,
    /// Takes no more requests.
    leaving: CancellationToken,
    tasks: TaskTracker,
    /// The bucket by the newest session. No strong count: a session that is left waits for those.
    results: RefCell<Option<(Weak<Client>, Results)>>,
}

/// What its reader has of it.
#[derive(Clone, Debug)]
pub(crate) struct WorkHandle {
    leaving: CancellationToken,
    tasks: TaskTracker,
}

impl WorkHandle {
    /// Has no more requests be taken.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }

    /// Waits until all that were taken are settled.
    pub(crate) async fn finished(&self) {
        self.tasks.wait().await;
    }
}

impl<F: Start> Work<F> {
    /// Takes requests on this thread until told to leave.
    pub(crate) fn start(config: WorkQueueConfig, admission: Rc<Admission<F>>) -> WorkHandle {
        let (leaving, tasks) = (CancellationToken::new(), TaskTracker::new());
        let handle = WorkHandle { leaving: leaving.clone(), tasks: tasks.clone() };
        let work = Rc::new(Self { config, admission, leaving, tasks, results: RefCell::default() });
        handle.tasks.spawn_local(work.run());
        handle.tasks.close();
        handle
    }

    /// The newest session's client; waits for one.
    async fn client(&self) -> Arc<Client> {
        self.admission.context.outbox.connected().await
    }

    /// The bucket of the results; waits for a session.
    async fn results(&self) -> Results {
        let client = self.client().await;
        let mut known = self.results.borrow_mut();
        match &*known {
            Some((of, results)) if std::ptr::eq(of.as_ptr(), Arc::as_ptr(&client)) => {
                results.clone()
            }
            _ => {
                let results = Results::new((*client).clone());
                *known = Some((Arc::downgrade(&client), results.clone()));
                results
            }
        }
    }
}
