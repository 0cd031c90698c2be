//! `producer` and `consumer` as programs, on a real broker.
#![allow(clippy::unwrap_used, reason = "tests")]

mod article;
mod streams;
mod support;
