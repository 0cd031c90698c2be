//! Changing the version that serves, safely: blue/green and canary.
//!
//! [`analysis`] compares versions, [`machine`] decides the next step, [`command`] does what
//! operators ask, [`fleet`] adds up what all senders report: all pure, on the route's document.
//! [`driver`] does what was decided, with [`check`], which asks workers, and [`lease`], which keeps
//! several gateways from doing it all twice.

pub mod analysis;
pub mod check;
pub mod command;
pub mod driver;
pub mod fleet;
pub mod lease;
pub mod machine;

#[cfg(test)]
mod lossy;
#[cfg(test)]
mod simulation;

use std::time::Instant;

/// The time now, in milliseconds since 1970, for people: no decision depends on it.
pub fn unix_ms() -> u64 {
    natsway_boot::Clock::start().unix_ms_at(Instant::now())
}
