//! Chaos and figures for partitioned consumer groups.
//!
//! Members run as processes of their own, so that they can be killed; each writes what its handlers do, with the
//! machine's clock, into a log that outlives it. Afterwards the [`ledger`] judges all logs together.

pub mod bare;
pub mod chaos;
pub mod cpu;
pub mod ledger;
pub mod member;
pub mod peer;
pub mod speed;
pub mod usage;
