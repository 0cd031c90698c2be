//! The time of each operation, by criterion.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use criterion::Criterion;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::all as every_micro;

/// Of the time that an operation gets, for the processor and the allocator to get used to it.
const WARM_UP: f64 = 0.3;

/// Samples of each operation, and what criterion draws from them: enough for an interval of a few
/// percent.
const SAMPLES: usize = 30;
const RESAMPLES: usize = 20_000;

/// Seconds for each operation, in the long form and in the short one.
const SECONDS: [f64; 2] = [1.0, 0.15];

/// Nanoseconds that an operation takes, with the interval that criterion is 95 % sure of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nanoseconds {
    /// The median.
    pub median: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Times the operations whose names have `filter` in them, and prints what criterion says; its data
/// goes to `directory`.
pub fn run(filter: Option<&str>, seconds: f64, directory: &Path) {
    let seconds = seconds.clamp(0.05, 60.0);
    let mut criterion = Criterion::default()
        .without_plots()
        .output_directory(directory)
        .sample_size(SAMPLES)
        .nresamples(RESAMPLES)
        .warm_up_time(Duration::from_secs_f64(seconds * WARM_UP))
        .measurement_time(Duration::from_secs_f64(seconds));
    for micro in every_micro() {
        if filter.is_none_or(|filter| micro.name.contains(filter)) {
            let mut operation = micro.make();
            criterion.bench_function(&micro.name, |bencher| bencher.iter(&mut operation));
        }
    }
    criterion.final_summary();
}

/// Times every operation in a process of its own.
///
/// # Errors
/// The process fails, or its data cannot be read.
pub async fn all(directory: &Path, quick: bool) -> anyhow::Result<BTreeMap<String, Nanoseconds>> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command
        .args(["micro", "--seconds", &SECONDS[usize::from(quick)].to_string(), "--directory"])
        .arg(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "criterion failed ({}): {complaint}", output.status);
    let times = read(directory)?;
    ensure!(
        times.len() == every_micro().len(),
        "criterion left figures of {} operations",
        times.len()
    );
    Ok(times)
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// What criterion left below a directory.
fn read(directory: &Path) -> anyhow::Result<BTreeMap<String, Nanoseconds>> {
    let mut times = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        let entries =
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?;
        directories
            .extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
        let estimates = next.join("estimates.json");
        if next.ends_with("new") && estimates.exists() {
            let Benchmark { full_id } = json(next.join("benchmark.json"))?;
            let Estimates { median } = json(estimates)?;
            let Interval { lower_bound: low, upper_bound: high } = median.confidence_interval;
            times.insert(full_id, Nanoseconds { median: median.point_estimate, low, high });
        }
    }
    Ok(times)
}

fn json<T: DeserializeOwned>(path: PathBuf) -> anyhow::Result<T> {
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criterions_figures_are_found_by_their_names() {
        let directory = tempfile::tempdir().unwrap();
        run(Some("groups/partition of a key"), 0.05, directory.path());
        let times = read(directory.path()).unwrap();
        let Nanoseconds { median, low, high } = times["groups/partition of a key"];
        assert!(times.len() == 1 && 0.0 < low && low <= median && median <= high, "{times:?}");
    }
}
