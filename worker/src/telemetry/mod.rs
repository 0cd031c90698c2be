//! What is known of a worker from outside: its counters, and the spans of its requests.

pub(crate) mod metrics;
#[cfg_attr(not(feature = "trace"), path = "trace_noop.rs")]
pub(crate) mod trace;
