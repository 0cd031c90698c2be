//! The log shipper: files to NATS to files, every line once and in order per host.
//!
//! The programs `producer` and `consumer` are thin layers over this library. What decides is pure
//! and apart from what does:
//!
//! | decides | does |
//! |---|---|
//! | [`name`], [`head`], [`framing`] | [`tail`], [`producer`] |
//! | [`accept`], [`commit`], [`pattern`], [`retain`] | [`consumer`] |
//!
//! How lines get through crashes is in [`head`] (what a message says), [`accept`] (which of it is
//! new) and [`commit`] (what is written, and by whom).

pub mod accept;
pub mod args;
pub mod commit;
mod connect;
pub mod consumer;
mod error;
pub mod framing;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod head;
mod metrics;
pub mod name;
pub mod pattern;
pub mod producer;
pub mod program;
pub mod retain;
mod stream;
pub mod tail;
mod units;

pub use error::{Error, ErrorKind};
