//! `producer` and `consumer` as programs, on a real broker.
#![allow(clippy::unwrap_used, reason = "tests")]

mod article;
mod bounds;
mod doubts;
mod durable;
mod figures;
mod files;
mod memory;
mod pushed;
mod streams;
mod support;
