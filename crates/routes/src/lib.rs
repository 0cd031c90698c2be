//! Live routes: one document for each route in a bucket of the broker, and the table that all of
//! them make.
//!
//! [`document`] is a route as operators write it, [`table`] what answers a request; [`reconciler`]
//! makes the one of the other and keeps what was good when something is refused; [`rollout`] is a
//! change of version under way. These are pure. [`store`] reads and writes the bucket, [`watch`]
//! keeps a table in force equal to it. [`metrics`] is what senders of requests count of each
//! version, [`report`] how they tell it, [`peers`] who they are and how much of it is believed. The
//! gateway uses all of it, and so does whoever calls services without one.

pub mod document;
pub mod lease;
pub mod metrics;
pub mod peers;
pub mod reconciler;
pub mod report;
pub mod rollout;
pub mod store;
pub mod table;
pub mod watch;
