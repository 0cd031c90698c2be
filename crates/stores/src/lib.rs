//! The buckets and streams that Natsway keeps in the broker: what each is made with, and who makes
//! it.
//!
//! On a broker that lets everybody do everything, whoever misses a store makes it
//! ([`open_or_make`]). On one with a user for each role nobody may: who makes a stream chooses its
//! subjects and sources, and so reads and writes what he likes. There an administrator makes them
//! all, by `apiproxy setup` ([`setup`]). Both take the settings from here, so they are the same.
//!
//! [`lease`] is what is kept in some of them: who of several acts. [`results`] are what became of
//! stored requests.

pub mod definitions;
pub mod lease;
mod open;
pub mod results;
pub mod setup;

pub use open::{StoreError, StoreErrorKind, is_missing, open_or_make, open_or_make_stream};
