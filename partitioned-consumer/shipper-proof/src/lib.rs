//! Proof of the log shipper: files to NATS to files under faults, judged line by line, and how fast that is.

pub mod chaos;
mod field;
pub mod hosts;
pub mod judge;
mod mount;
pub mod throughput;
