//! Measures Natsway end to end, on real processes.
//!
//! - [`scenario`]: what is measured, from the files in `bench/scenarios`.
//! - [`settings`]: how much of it is measured.
//! - [`harness`]: starts, loads, measures and takes down; `bench run`.
//! - [`results`]: the figures as data, statistics, and `bench compare`.
//! - [`report`]: the figures as tables and pictures.
//! - [`instructions`]: instructions of a whole request, by callgrind; `bench instructions`.
//! - [`micro`]: small operations, timed by criterion and counted by valgrind.
//! - [`autoscalers`]: the provisioner beside others, by a virtual clock; part of `bench run`.
//! - [`groups`], [`shipper`]: consumer groups beside the Go library, the log shipper beside
//!   rsyslog; parts of `bench run`.

pub mod apps;
pub mod autoscalers;
pub mod groups;
pub mod harness;
pub mod instructions;
pub mod micro;
pub mod report;
pub mod results;
pub mod scenario;
pub mod service;
pub mod settings;
pub mod shipper;
pub mod streams;

use std::path::PathBuf;

use anyhow::Context;

/// Makes the directory for the raw data of a part below `target/bench`, and empties it.
fn raw_directory(part: &str) -> anyhow::Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let directory = natsway_testkit::repository_root().join(target).join("bench").join(part);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("empty {}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}
