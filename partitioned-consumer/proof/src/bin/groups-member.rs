//! One member of a group, as a process that can be killed; its only argument is its orders as JSON.

use anyhow::{Context, Result};

/// As in the programs of this repository: what a member costs is measured as one would run it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<()> {
    natsway_groups_proof::usage::answer_help(
        "One member of a group that writes down what its handlers do",
        "groups-member ORDERS (JSON)",
        &[],
    );
    let orders = std::env::args().nth(1).context("expected orders as JSON")?;
    natsway_groups_proof::member::run(serde_json::from_str(&orders)?).await
}
