//! The consumer: takes messages and appends their lines to files, one directory for each host.
//!
//! Readers (`list`, `elastic`, `plain`) take messages and wait for each to be written. One `writer` judges, appends,
//! syncs and commits them in groups; a message is acknowledged when its group is committed.

mod args;
mod catalogue;
mod elastic;
mod files;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod intake;
mod ledger;
mod list;
mod liveness;
mod parked;
mod plain;
mod plan;
mod push;
mod run;
pub mod status;
mod steps;
mod sweep;
mod target;
mod unreadable;
mod writer;

pub use args::{Config, ConsumerArgs, Fsync, Partitions};
pub use run::run;
