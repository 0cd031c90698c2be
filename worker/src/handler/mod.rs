//! A request that was admitted, down to its reply: the service is called, its panic caught, its
//! body collected, its answer handed over.

pub(crate) mod body;
pub(crate) mod context;
pub(crate) mod deadline;
pub(crate) mod draining;
mod going_on;
pub(crate) mod job;
pub(crate) mod outbox;
pub(crate) mod panics;
