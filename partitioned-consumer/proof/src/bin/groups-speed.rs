//! One member that handles stored messages as fast as it can; its only argument is its orders as JSON.

use anyhow::{Context, Result};
use natsway_groups_proof::{bare, speed};
use tokio::runtime::Builder;

/// As in the programs of this repository: what a member costs is measured as one would run it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    natsway_groups_proof::usage::answer_help(
        "One member that handles stored messages as fast as it can",
        "groups-speed ORDERS (JSON)",
        &[],
    );
    let orders = std::env::args().nth(1).context("expected orders as JSON")?;
    let orders: speed::Orders = serde_json::from_str(&orders)?;
    let mut runtime = match orders.means {
        speed::Means::Library => Builder::new_multi_thread(),
        speed::Means::OneThread | speed::Means::Bare => Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let outcome = match orders.means {
        speed::Means::Bare => {
            runtime.block_on(bare::create_consumer(&orders))?;
            bare::run(&orders)?
        }
        _ => runtime.block_on(speed::run(orders))?,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
