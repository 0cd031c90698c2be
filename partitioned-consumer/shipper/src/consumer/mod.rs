//! The consumer: takes messages and appends their lines to files, one directory for each host.
//!
//! Readers (`list`, `elastic`, `plain`) take messages and wait for each to be written. One `writer`
//! judges, appends, syncs and commits them in groups; a message is acknowledged when its group is
//! committed.

mod args;
mod durable;
mod elastic;
mod file_index;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod list;
mod liveness;
mod metrics;
mod offsets;
mod parked;
mod plain;
mod plan;
mod push;
mod receive;
mod retention;
mod run;
pub mod status;
mod steps;
mod target;
mod unreadable;
mod writer;

pub use args::{Config, ConsumerArgs, Fsync, Partitions};
pub use run::run;
