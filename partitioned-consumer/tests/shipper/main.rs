//! `producer` and `consumer` as programs, on a real broker.
#![allow(clippy::unwrap_used, reason = "tests")]

mod article;
mod doubts;
mod durable;
mod figures;
mod memory;
mod pushed;
mod streams;
mod support;
