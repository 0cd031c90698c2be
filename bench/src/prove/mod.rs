//! Proofs: each starts what it needs, breaks it on purpose under load, and says what it saw.

/// Runs the scenarios that were asked for, each with an empty directory of its own, and gives the report. Before the modules, which see it so.
macro_rules! scenarios {
    ($proof:literal, $size:expr, $($scenario:ident)*) => {{
        let size = $size;
        let mut scenarios = Vec::new();
        $(
            if stringify!($scenario).contains(&size.only) {
                eprintln!("{} ...", stringify!($scenario));
                let directory = $crate::prove::raw_directory(concat!($proof, "/", stringify!($scenario)))?;
                let finding = Box::pin($scenario(size, &directory)).await?;
                eprintln!("  {}", serde_json::to_string(&finding)?);
                scenarios.push(finding);
            }
        )*
        $crate::prove::Report { proof: $proof, seed: size.seed, scenarios }
    }};
}

pub mod attackers;
pub mod cluster;
pub mod crowd;
pub mod gateway;
pub mod ledger;
pub mod load;
pub mod memory;
pub mod provisioner;
pub mod stand;
pub mod versions;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value};

/// How large a proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of what is chosen by chance: methods, victims, kinds of faults and when they come
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// Requests that each scenario with a fixed number makes at the least
    #[arg(long, env = "REQUESTS", default_value = "10000")]
    pub requests: usize,

    /// How often each scenario repeats its faults
    #[arg(long, env = "ROUNDS", default_value = "3")]
    pub rounds: usize,

    /// Connections of the load
    #[arg(long, env = "CONNECTIONS", default_value = "32")]
    pub connections: usize,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "")]
    pub only: String,
}

/// What one scenario saw.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The scenario.
    pub scenario: &'static str,
    /// What was counted and measured.
    #[serde(flatten)]
    pub figures: Map<String, Value>,
    /// Promises that were broken, a sentence each.
    pub broken: Vec<String>,
}

impl Size {
    /// The choices of one scenario: the same for the same seed, whichever other scenarios run.
    pub fn choices(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }
}

impl Finding {
    /// A scenario that has seen nothing yet.
    pub fn new(scenario: &'static str) -> Finding {
        Finding { scenario, figures: Map::new(), broken: Vec::new() }
    }

    /// Notes a figure.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Notes a broken promise unless `kept`.
    pub fn promise(&mut self, kept: bool, broken: impl FnOnce() -> String) {
        if !kept {
            self.broken.push(broken());
        }
    }
}

/// Everything that a proof saw.
#[derive(Debug, Serialize)]
pub struct Report {
    proof: &'static str,
    seed: u64,
    scenarios: Vec<Finding>,
}

impl Report {
    /// Every broken promise.
    pub fn broken(&self) -> Vec<String> {
        let of = |finding: &Finding| {
            finding.broken.iter().map(|broken| format!("{}: {broken}", finding.scenario)).collect::<Vec<_>>()
        };
        self.scenarios.iter().flat_map(of).collect()
    }

    /// The names of the scenarios that ran.
    pub fn scenarios(&self) -> Vec<&'static str> {
        self.scenarios.iter().map(|finding| finding.scenario).collect()
    }

    /// Prints the figures as one line of JSON and gives the exit code.
    pub fn conclude(self) -> ExitCode {
        for broken in self.broken() {
            eprintln!("BROKEN {broken}");
        }
        println!("{}", serde_json::to_string(&self).expect("figures are plain values"));
        if self.broken().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The directory for a proof's raw data, empty.
///
/// # Errors
/// The system's.
pub fn raw_directory(proof: &str) -> anyhow::Result<PathBuf> {
    let directory = Path::new(natsway_testkit::repository_root()).join("target/prove").join(proof);
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("empty {}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}
