//! The gateway as a process, in front of a real broker; backends are plain NATS clients that a test
//! holds by the hand.

#![expect(unreachable_pub, reason = "a test binary has no outside")]
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test, in helpers too")]

mod backend;
mod client;
mod collector;
mod fixture;

mod answers;
mod args;
mod broker;
mod cancel;
mod clients;
mod drain;
mod durable;
mod enqueue;
mod h2spec;
mod hostile;
mod http1;
mod limits;
mod live;
mod memory;
mod metrics;
mod native;
mod retries;
mod rollout;
mod setup;
mod slow_readers;
mod tombstone;
mod traces;
mod websocket;
