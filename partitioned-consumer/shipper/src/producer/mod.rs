//! The producer: follows files and publishes their lines.
//!
//! Each file is a task of its own: it looks, cuts, sends, and moves its checkpoint when what it
//! sent is stored. All share one connection and one bound on memory.

mod args;
mod generation;
mod input;
mod journal;
mod outbox;
mod plain;
mod problems;
mod progress;
mod run;
mod shipping;
mod sources;
pub mod status;

pub use args::{Config, ProducerArgs};
pub use run::run;
