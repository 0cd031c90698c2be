//! Proofs: each starts real processes, breaks them on purpose under load, and judges what was
//! promised.
//!
//! The program `prove` runs them in full; `tests/it` runs a short form of each with `make test`. A
//! proof is a list of [`Scenario`]s. Each gets an empty directory for its raw data and writes what
//! it saw into a [`Finding`]; a [`Report`] has all of them.
//!
//! - [`gateway`], [`cluster`], [`versions`], [`provisioner`], [`memory`]: requests, under faults
//!   and attacks.
//! - [`streams`]: bodies that are no message, and WebSockets, under faults.
//! - [`apps`]: apps in other languages behind the sidecar, beside the same without it.
//! - [`groups`], [`shipper`]: messages and lines, judged one by one. [`webhooks`]: requests that a
//!   stream stores, the same.
//! - [`http1`]: what real clients and nginx make of HTTP/1. [`security`]: who may do what at the
//!   broker.
//! - [`stand`], [`load`], [`ledger`], [`probe`]: what several of them use.

pub mod apps;
pub mod cluster;
pub mod gateway;
pub mod groups;
pub mod http1;
pub mod ledger;
pub mod load;
pub mod memory;
pub mod probe;
pub mod provisioner;
mod report;
mod scenario;
pub mod security;
pub mod shipper;
pub mod stand;
pub mod streams;
mod transport;
pub mod versions;
pub mod webhooks;

pub use self::report::{Finding, Report};
pub use self::scenario::{Run, Scenario, raw_directory, run, select};
pub use self::transport::Transport;

/// How large a proof is whose scenarios repeat faults under a load of requests.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of what is chosen by chance: methods, victims, kinds of faults and when they come
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// Requests that each scenario with a fixed number makes at the least
    #[arg(long, env = "REQUESTS", default_value = "10000")]
    pub requests: usize,

    /// How often each scenario repeats its faults
    #[arg(long, env = "ROUNDS", default_value = "3")]
    pub rounds: usize,

    /// Connections of the load
    #[arg(long, env = "CONNECTIONS", default_value = "32")]
    pub connections: usize,

    /// What whole requests go by
    #[arg(long, env = "TRANSPORT", value_enum, default_value = "broker")]
    pub transport: Transport,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

impl Size {
    /// Returns the choices of one scenario: the same for the same seed, whichever other scenarios
    /// run.
    pub fn choices(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }
}
