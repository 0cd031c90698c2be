//! One member that handles stored messages as fast as it can; `bench groups` starts it.

use anyhow::Result;
use clap::Parser;
use natsway_bench::groups::{bare, member};
use tokio::runtime::Builder;

/// As in the programs of this repository: what a member costs is measured as one would run it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One member that handles stored messages as fast as it can; `bench groups` starts it
#[derive(Parser)]
struct Args {
    /// What it is to do, as JSON
    orders: String,
}

fn main() -> Result<()> {
    let orders: member::Orders = serde_json::from_str(&Args::parse().orders)?;
    let mut runtime = match orders.means {
        member::Means::Library => Builder::new_multi_thread(),
        member::Means::OneThread | member::Means::Bare => Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let outcome = match orders.means {
        member::Means::Bare => {
            runtime.block_on(bare::create_consumer(&orders))?;
            bare::run(&orders)?
        }
        _ => runtime.block_on(member::run(orders))?,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
