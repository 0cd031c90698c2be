//! Starts and stops instances as the traffic asks for: both autoscalers that came before it, without their faults.
//!
//! # Map
//!
//! The core is pure; time is an argument everywhere:
//!
//! - [`sample`]: what a signal says of a target at one moment, or why it says nothing.
//! - [`window`]: the last looks, what may be believed of them, and the rates between them.
//! - [`service_rate`]: how much one instance can do, learned.
//! - [`policy`]: how many instances there should be, one small type for each way to say so.
//! - [`scale`]: what stands between that and the number that is set.
//! - [`controller`]: all of it together: a look in, a [`decision`] with its reasons out.

pub mod backend;
pub mod config;
pub mod controller;
pub mod decision;
pub mod lease;
pub mod policy;
pub mod sample;
pub mod scale;
pub mod service_rate;
pub mod signal;
pub mod simulate;
pub mod target;
pub mod window;
