//! What starts and stops instances. The trait is that of the NATS example, in Rust: how many there
//! are, start one, stop one.
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
//!         let instance =
//!             |(id, since): (&String, &u64)| Instance::new(id, InstanceState::Ready, *since);
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

pub use crate::instance::{Instance, InstanceState};
use crate::roll_call::{self, Standing};
use crate::sample::Fleet;

/// Starts and stops the instances of one target.
///
/// What it says of its instances is the truth; nobody else keeps a count. All methods end within a
/// few seconds: an instance that takes longer to start or to stop is `Starting` or `Stopping`
/// meanwhile.
pub trait Backend: Send {
    /// All instances, those that stop included.
    fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>>;

    /// Starts one more.
    fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Tells one to stop: it takes nothing new, finishes what it holds, and goes. Not an error when
    /// it is gone already.
    fn stop<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), BackendError>>;

    /// Whether it is the one that is named that stops. Where somebody else chooses, nobody is
    /// stopped because they do not answer.
    fn stops_whom_it_is_told(&self) -> bool {
        true
    }
}

/// Why a backend did not do what it was asked. The next poll tries again.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct BackendError {
    what: String,
    reason: String,
    is_floor: bool,
}

impl BackendError {
    /// What was to be done, and why it was not.
    pub fn new(what: impl Into<String>, reason: impl ToString) -> Self {
        Self { what: what.into(), reason: reason.to_string(), is_floor: false }
    }

    /// Nothing more can be stopped, since what is left is not the backend's to stop. That is a
    /// bound, and no trouble.
    pub fn floor(what: impl Into<String>, reason: impl ToString) -> Self {
        Self { is_floor: true, ..Self::new(what, reason) }
    }

    /// Whether it is a bound of the backend and no trouble.
    pub fn is_floor(&self) -> bool {
        self.is_floor
    }
}

/// Counts instances by their state.
pub fn fleet(instances: &[Instance]) -> Fleet {
    roll_call::fleet(instances, &vec![Standing::Good; instances.len()])
}

/// Starts or stops instances until there are `wanted`, those that start included. The
/// newest are stopped first: they hold the least, and a spike's instances go with it.
///
/// # Errors
/// The first [`BackendError`]; what was done until then stays done.
pub async fn set(backend: &mut dyn Backend, wanted: u32) -> Result<(), BackendError> {
    let instances = backend.instances().await?;
    let standings = vec![Standing::Good; instances.len()];
    let start = wanted.saturating_sub(fleet(&instances).present());
    change(backend, start, &roll_call::surplus(&instances, &standings, wanted)).await
}

/// Starts so many and stops these.
///
/// # Errors
/// The first [`BackendError`]; what was done until then stays done.
pub(crate) async fn change(
    backend: &mut dyn Backend,
    start: u32,
    stop: &[String],
) -> Result<(), BackendError> {
    for _ in 0..start {
        backend.start().await?;
    }
    for id in stop {
        backend.stop(id).await?;
    }
    Ok(())
}
