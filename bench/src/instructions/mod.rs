//! Instructions of a whole request in the programs on its way, by callgrind: the same on a busy
//! machine and a quiet one.
//!
//! For each path one program runs under callgrind and the others as they are. Starting and warming
//! up is left out; what its timers do meanwhile is counted. How many requests are done at once
//! depends on how busy the machine is, and with it the count, so that only counts over one
//! connection are exact enough for a bound of a few percent.

mod callgrind;
mod load;
mod path;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use natsway_testkit::workspace_binary;
use serde::{Deserialize, Serialize};

use self::path::CountedPath;
use crate::raw_directory;

/// Asked before anything is counted, so that pools and buffers have their sizes.
const WARM_UP: u64 = 500;

/// What is counted, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Requests that are counted of each path
    #[arg(long, value_name = "COUNT", default_value = "1000")]
    pub requests: u64,

    /// Connections that ask, each one request at a time; with one, nothing is done for several
    /// requests at once, and counts repeat within a quarter of a percent
    #[arg(long, value_name = "COUNT", default_value = "1")]
    pub connections: u32,

    /// Only the paths whose name holds this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub only: String,

    /// Fail when a path takes more than in this file, which is the output of an earlier run
    #[arg(long, value_name = "JSON")]
    pub against: Option<PathBuf>,

    /// By how many percent a path may take more than there
    #[arg(long, value_name = "PERCENT", default_value = "3", requires = "against")]
    pub bound: f64,
}

/// Instructions of a request, by path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    requests: u64,
    connections: u32,
    instructions: BTreeMap<String, f64>,
}

/// Counts every path that is asked for. Callgrind's files stay in `target/bench/instructions`, for
/// callgrind_annotate.
///
/// # Errors
/// Valgrind is not installed, a request is not answered as it should, or a file cannot be written.
pub async fn count(args: &Args) -> anyhow::Result<Counts> {
    ensure!(
        args.requests > 0 && args.connections > 0,
        "expected 1 request and 1 connection at least"
    );
    callgrind::find()?;
    // Now, so that no compiler runs while something starts.
    for program in ["apiproxy", "worker"] {
        workspace_binary(program);
    }
    let mut instructions = BTreeMap::new();
    for path in CountedPath::ALL.into_iter().filter(|path| path.name().contains(&args.only)) {
        let directory = raw_directory(&format!("instructions/{}", path.name().replace(' ', "-")))?;
        let total = Box::pin(path.count(args, &directory)).await.with_context(|| path.name())?;
        let each = total as f64 / args.requests as f64;
        eprintln!("{}: {each:.0} instructions a request; see {}", path.name(), directory.display());
        instructions.insert(path.name().to_owned(), each.round());
    }
    ensure!(!instructions.is_empty(), "no path's name holds {:?}", args.only);
    Ok(Counts { requests: args.requests, connections: args.connections, instructions })
}

impl Counts {
    /// Reads the output of an earlier run.
    ///
    /// # Errors
    /// There is no such file, or it is none.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{}: expected counts of a run", file.display()))
    }

    /// Says how each path has changed since `before`, and whether it takes more than `bound`
    /// percent more.
    ///
    /// # Errors
    /// The loads differ, or a path was not counted before.
    pub fn against(&self, before: &Self, bound: f64) -> anyhow::Result<Vec<Change>> {
        ensure!(
            (self.requests, self.connections) == (before.requests, before.connections),
            "counted with {} requests over {} connections, before with {} over {}",
            self.requests,
            self.connections,
            before.requests,
            before.connections
        );
        let change = |(path, now): (&String, &f64)| {
            let before = before.instructions.get(path);
            let before = before.with_context(|| format!("{path:?} was not counted before"))?;
            let percent = (now / before - 1.0) * 100.0;
            let exceeds = *now > before * (1.0 + bound / 100.0);
            Ok(Change { path: path.clone(), before: *before, now: *now, percent, exceeds })
        };
        self.instructions.iter().map(change).collect()
    }
}

/// How a path has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    path: String,
    before: f64,
    now: f64,
    percent: f64,
    /// Whether it takes more than it may.
    pub exceeds: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, before, now, percent, exceeds } = self;
        let verdict = if *exceeds { ": more than it may" } else { "" };
        write!(
            f,
            "{path}: {before:.0} -> {now:.0} instructions a request, {percent:+.1} %{verdict}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(gateway: f64) -> Counts {
        let instructions = BTreeMap::from([("gateway by broker".to_owned(), gateway)]);
        Counts { requests: 3000, connections: 64, instructions }
    }

    #[test]
    fn more_than_the_bound_is_told() {
        let exceeds = |now| counts(now).against(&counts(20_000.0), 3.0).unwrap()[0].exceeds;
        assert!(!exceeds(20_600.0) && exceeds(20_601.0) && !exceeds(10_000.0));
        let change = &counts(21_000.0).against(&counts(20_000.0), 3.0).unwrap()[0];
        assert_eq!(
            change.to_string(),
            "gateway by broker: 20000 -> 21000 instructions a request, +5.0 %: more than it may"
        );
    }

    #[test]
    fn other_loads_and_paths_are_not_compared() {
        let other_load = Counts { connections: 1, ..counts(1.0) };
        assert!(
            counts(1.0)
                .against(&other_load, 3.0)
                .unwrap_err()
                .to_string()
                .contains("64 connections")
        );
        let nothing = Counts { instructions: BTreeMap::new(), ..counts(1.0) };
        assert!(
            counts(1.0)
                .against(&nothing, 3.0)
                .unwrap_err()
                .to_string()
                .contains("not counted before")
        );
    }
}
