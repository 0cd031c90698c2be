//! The provisioner beside other autoscalers, by a virtual clock: a table and a picture.

use std::path::Path;

use anyhow::Context;
use natsway_provisioner::simulate::{TraceKind, compare as stand, plot, table};
use natsway_testkit::repository_root;
use serde::{Deserialize, Serialize};

/// Seeds that no parameter was chosen on.
const SEEDS: std::ops::Range<u64> = 3_001..3_011;

/// The comparison for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Markdown.
    pub table: String,
    /// SVG.
    pub plot: String,
    /// How much traffic of each kind it was; fewer than all make figures that the documentation
    /// must not show.
    #[serde(default)]
    pub seeds: usize,
}

impl Comparison {
    /// Whether it is the long form, which the documentation shows and a test compares it with.
    pub fn is_whole(&self) -> bool {
        self.seeds == SEEDS.count()
    }

    /// Writes `autoscalers.md` and `autoscalers.svg`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        for (name, text) in [("autoscalers.md", &self.table), ("autoscalers.svg", &self.plot)] {
            let path = directory.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Writes what the documentation shows.
///
/// # Errors
/// A file cannot be written.
pub fn publish() -> anyhow::Result<()> {
    compare(false).write(&repository_root().join("docs"))
}

/// Has every autoscaler follow every kind of traffic; the short form on one seed of ten.
pub fn compare(quick: bool) -> Comparison {
    let seeds: Vec<u64> = SEEDS.take(if quick { 1 } else { SEEDS.count() }).collect();
    let standings = stand(&TraceKind::ALL, &seeds);
    Comparison { table: table(&standings), plot: plot(&standings, SEEDS.start), seeds: seeds.len() }
}
