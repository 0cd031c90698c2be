//! `producer` and `consumer` as programs, on a real broker.
#![allow(clippy::unwrap_used, reason = "tests")]

mod article;
mod bounds;
mod doubts;
mod durable;
mod files;
mod memory;
mod metrics;
mod pushed;
mod streams;
mod support;
