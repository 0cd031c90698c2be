//! Both ends of a unary tunnel without a connection between them, and the choice among tunnels.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod choice;
mod clocks;
mod ends;
mod lossy;
mod pumps;
