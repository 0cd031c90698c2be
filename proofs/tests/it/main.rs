//! The short form of every proof, and what else needs their members: the real Go library, and a
//! process that is frozen.

mod apps;
mod cluster;
mod gateway;
mod groups_chaos;
mod groups_frozen;
mod groups_interop;
mod memory;
mod provisioner;
mod security;
mod shipper;
mod streams;
mod versions;
mod webhooks;
