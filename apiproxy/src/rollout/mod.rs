//! Changing the version that serves, safely: blue/green and canary.
//!
//! [`analysis`] compares versions, [`machine`] decides the next step, [`command`] does what operators ask: all pure, on
//! the route's document.

pub mod analysis;
pub mod command;
pub mod machine;
#[cfg(test)]
mod simulation;
