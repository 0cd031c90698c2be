//! Measures and proves Natsway end to end, on real processes.
//!
//! - [`prove`]: promises, kept under faults; `bench prove <name>`.

pub mod prove;
