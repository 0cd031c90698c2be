//! The provisioner beside other autoscalers, by a virtual clock: a table and a picture.

use std::path::Path;

use anyhow::Context;
use natsway_provisioner::simulate::{TraceKind, compare, plot, table};

/// Seeds that no parameter was chosen on.
const SEEDS: std::ops::Range<u64> = 1_001..1_011;

/// Writes what the documentation shows.
///
/// # Errors
/// A file cannot be written.
pub fn publish() -> anyhow::Result<()> {
    write(&[&Path::new(natsway_testkit::repository_root()).join("docs")])
}

/// Writes `autoscalers.md` and `autoscalers.svg` into each of the directories.
///
/// # Errors
/// A file cannot be written.
pub fn write(directories: &[&Path]) -> anyhow::Result<()> {
    let seeds: Vec<u64> = SEEDS.collect();
    let standings = compare(&TraceKind::ALL, &seeds);
    for directory in directories {
        for (name, text) in
            [("autoscalers.md", table(&standings)), ("autoscalers.svg", plot(&standings, SEEDS.start))]
        {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}
