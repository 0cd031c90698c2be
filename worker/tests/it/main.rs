//! Workers against a real broker: what they promise to callers, to operators and to each other.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod asked;
mod caller;
#[cfg(feature = "client")]
mod client;
mod contract;
mod directives;
mod discovery;
mod drain;
mod examples;
mod failure;
mod flood;
mod overload;
mod process;
mod serving;
#[cfg(feature = "cli")]
mod sidecar;
mod stage;
mod streams;
mod unary;
#[cfg(feature = "upstream")]
mod upstream;
