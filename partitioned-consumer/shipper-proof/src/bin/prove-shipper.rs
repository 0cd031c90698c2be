//! The long proof: chaos from files to files, judged; one line of JSON at the end.
//!
//! `SEED` replays a run's plan. `RUN_SECONDS` (600), `FAULTS` (120), `LINES` (5,000,000) and `HOSTS` (20) set its size.
//! `LISTED=overlapping` lets two consumers read the same partitions and overtake each other; `SHIPPER_ROTATE`, say `1m`, goes to
//! all consumers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use natsway_shipper_proof::chaos::{self, Plan};
use natsway_testkit::workspace_binary;

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text}: expected a number")),
        Err(_) => Ok(default),
    }
}

fn overlapping() -> Result<bool> {
    match std::env::var("LISTED").as_deref() {
        Err(_) | Ok("apart") => Ok(false),
        Ok("overlapping") => Ok(true),
        Ok(other) => anyhow::bail!("LISTED={other}: expected apart or overlapping"),
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let seed = number("SEED", fastrand::u64(..))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let directory = std::path::absolute(target.join("prove/shipper").join(seed.to_string()))?;
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    eprintln!("SEED={seed}, everything is kept under {}", directory.display());
    let plan = Plan {
        seed,
        duration: Duration::from_secs(number("RUN_SECONDS", 600)?),
        faults: number("FAULTS", 120)?,
        hosts: number("HOSTS", 20)?,
        lines: number("LINES", 5_000_000)?,
        overlapping: overlapping()?,
        rotate: std::env::var("SHIPPER_ROTATE").ok(),
        producer: workspace_binary("producer"),
        consumer: workspace_binary("consumer"),
        directory: directory.clone(),
    };
    let outcome = chaos::run(plan).await?;
    let line = serde_json::to_string(&outcome)?;
    std::fs::write(directory.join("outcome.json"), &line)?;
    println!("{line}");
    Ok(if outcome.kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
