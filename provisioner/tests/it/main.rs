//! Signals, backends and whole provisioners against real brokers, real processes and an engine's
//! real protocol.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod analysers;
mod directives;
mod docker;
mod engine;
mod processes;
mod running;
mod seed;
mod signals;
mod silence;
