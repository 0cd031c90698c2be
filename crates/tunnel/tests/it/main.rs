//! Tunnels on real connections.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod ends;
mod five_deaths;
mod left_behind;
mod pipe;
mod streams;
mod upgrades;
