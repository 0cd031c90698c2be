//! One member of a group, as a process that can be killed; its only argument is its orders as JSON.

use anyhow::{Context, Result};

/// As in the programs of this repository: what a member costs is measured as one would run it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<()> {
    let orders = std::env::args().nth(1).context("expected orders as JSON")?;
    natsway_groups_proof::member::run(serde_json::from_str(&orders)?).await
}
