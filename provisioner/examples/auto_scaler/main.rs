//! The auto-scaler of NATS by Example, with this library: a stream, a consumer that does the work,
//! one that only counts, two batches of 10,000 requests, and a rule that starts and stops instances
//! of this very process.
//!
//! `NATS_URL=nats://127.0.0.1:4222 cargo run --release --package natsway-provisioner --example auto_scaler`;
//! the broker needs JetStream. The stream is deleted in the end.

mod rehearsal;

use anyhow::Context;
use natsway_boot::BrokerConfig;
use rehearsal::{Plan, rehearse};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = BrokerConfig::new(&url)?.connect("auto-scaler", "_INBOX_auto_scaler").await?;
    let outcome = rehearse(client, Plan::TRANSCRIPT, |line| println!("{line}")).await;
    let outcome = outcome.map_err(anyhow::Error::from_boxed).context("the run was not finished")?;
    println!("instances: {:?}", outcome.trajectory);
    println!(
        "{} requests answered, {} processed, {} of them twice",
        outcome.answered, outcome.processed, outcome.twice
    );
    println!("batches took {:.1?} and {:.1?}", outcome.took[0], outcome.took[1]);
    Ok(())
}
