//! Measures and proves Natsway end to end, on real processes.
//!
//! - [`measure`]: what a request costs, beside peers; `bench run`.
//! - [`autoscalers`]: the provisioner beside others, by a virtual clock; part of `bench run`.
//! - [`prove`]: promises, kept under faults; `bench prove <name>`.

pub mod autoscalers;
pub mod measure;
mod probe;
pub mod prove;
