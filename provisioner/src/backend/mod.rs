//! What starts and stops instances. The trait is that of the NATS example, in Rust: how many there are, start one,
//! stop one.
//!
//! # A backend of one's own
//!
//! ```
//! use std::collections::BTreeMap;
//! use futures_util::future::{BoxFuture, FutureExt, ready};
//! use natsway_provisioner::backend::{Backend, BackendError, Instance, InstanceState};
//!
//! /// Machines of a cloud, say.
//! #[derive(Default)]
//! struct Machines {
//!     running: BTreeMap<String, u64>,
//!     made: u64,
//! }
//!
//! impl Backend for Machines {
//!     fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
//!         let instance = |(id, since_ms): (&String, &u64)| Instance {
//!             id: id.clone(),
//!             state: InstanceState::Ready,
//!             since_ms: *since_ms,
//!         };
//!         ready(Ok(self.running.iter().map(instance).collect())).boxed()
//!     }
//!
//!     fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
//!         self.made += 1;
//!         self.running.insert(format!("machine-{}", self.made), self.made);
//!         ready(Ok(())).boxed()
//!     }
//!
//!     fn stop<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
//!         self.running.remove(id);
//!         ready(Ok(())).boxed()
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let mut machines = Machines::default();
//! natsway_provisioner::backend::set(&mut machines, 3).await.unwrap();
//! natsway_provisioner::backend::set(&mut machines, 1).await.unwrap();
//! assert!(machines.running.contains_key("machine-1"), "the newest go first");
//! # });
//! ```

pub mod directives;
pub mod docker;
pub mod processes;
pub mod tasks;

use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::sample::Fleet;

/// Starts and stops the instances of one target.
///
/// What it says of its instances is the truth; nobody else keeps a count. All methods end within a few seconds: an
/// instance that takes longer to start or to stop is `Starting` or `Stopping` meanwhile.
pub trait Backend: Send {
    /// All instances, those that stop included.
    fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>>;

    /// Starts one more.
    fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Tells one to stop: it takes nothing new, finishes what it holds, and goes. Not an error when it is gone already.
    fn stop<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), BackendError>>;
}

/// An instance as its backend sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// Unique within the backend.
    pub id: String,
    /// Whether it works.
    pub state: InstanceState,
    /// When it was started, in milliseconds since the Unix epoch, or any other number that grows: the newest is
    /// stopped first.
    pub since_ms: u64,
}

/// Whether an instance works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Started, and does not take messages yet.
    Starting,
    /// Takes messages.
    Ready,
    /// Takes none, and finishes what it holds.
    Stopping,
}

/// Why a backend did not do what it was asked. The next poll tries again.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct BackendError {
    what: String,
    reason: String,
}

impl BackendError {
    /// What was to be done, and why it was not.
    pub fn new(what: impl Into<String>, reason: impl ToString) -> BackendError {
        BackendError { what: what.into(), reason: reason.to_string() }
    }
}

/// Counts instances by their state.
pub fn fleet(instances: &[Instance]) -> Fleet {
    let count = |state: InstanceState| {
        let number = instances.iter().filter(|instance| instance.state == state).count();
        u32::try_from(number).unwrap_or(u32::MAX)
    };
    Fleet {
        ready: count(InstanceState::Ready),
        starting: count(InstanceState::Starting),
        stopping: count(InstanceState::Stopping),
    }
}

/// Starts or stops instances until there are `wanted`, those that start included. The newest are stopped first: they
/// hold the least, and a spike's instances go with it.
///
/// # Errors
/// The first [`BackendError`]; what was done until then stays done.
pub async fn set(backend: &mut dyn Backend, wanted: u32) -> Result<(), BackendError> {
    let instances = backend.instances().await?;
    let present = fleet(&instances).present();
    for _ in present..wanted {
        backend.start().await?;
    }
    let mut present: Vec<Instance> =
        instances.into_iter().filter(|instance| instance.state != InstanceState::Stopping).collect();
    present.sort_by(|one, other| (other.since_ms, &other.id).cmp(&(one.since_ms, &one.id)));
    let surplus = present.len().saturating_sub(wanted as usize);
    for instance in &present[..surplus] {
        backend.stop(&instance.id).await?;
    }
    Ok(())
}
