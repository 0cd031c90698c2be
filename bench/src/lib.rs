//! Measures and proves Natsway end to end, on real processes.
//!
//! - [`scenario`]: what is measured, from the files in `bench/scenarios`.
//! - [`harness`]: starts, loads, measures and takes down; `bench run`.
//! - [`results`]: the figures as data, statistics, and `bench compare`.
//! - [`report`]: the figures as tables and pictures.
//! - [`micro`]: small operations, timed by criterion and counted by valgrind.
//! - [`autoscalers`]: the provisioner beside others, by a virtual clock; part of `bench run`.
//! - [`prove`]: promises, kept under faults; `bench prove <name>`.

pub mod autoscalers;
pub mod harness;
pub mod micro;
mod probe;
pub mod prove;
pub mod report;
pub mod results;
pub mod scenario;
pub mod service;
