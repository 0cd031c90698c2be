//! Wrappers of bodies that enter and leave a tunnel.
//!
//! A tunnel is shared: what one body does to HTTP/2 it does to every stream beside it.
//! [`MergedBody`] keeps a sender from flooding the receiver with tiny frames, [`DrainedBody`] keeps
//! a receiver from resetting a stream that had already ended.

mod drained;
mod merged;

pub use drained::{DrainedBody, DrainedBodyError};
pub use merged::{MergedBody, MergedBodyError};
