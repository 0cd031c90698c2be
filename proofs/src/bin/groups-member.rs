//! One member of a group, as a process that can be killed.

use anyhow::Result;
use clap::Parser;

/// As in the programs of this repository: what a member costs is measured as one would run it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One member of a group that writes down what its handlers do; proofs and `bench groups` start it
#[derive(Parser)]
struct Args {
    /// What it is to do, as JSON
    orders: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let orders = serde_json::from_str(&Args::parse().orders)?;
    natsway_proofs::groups::member::run(orders).await
}
