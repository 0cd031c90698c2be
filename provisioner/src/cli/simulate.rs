//! `provisioner simulate`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::simulate::{TraceKind, compare, plot, table, verdict};

#[derive(Args)]
pub(super) struct SimulateArgs {
    /// The traffic: step, ramp, sine, spike, flash-crowd, on-off, noise or lying; all of them by default
    traces: Vec<String>,

    /// The first seed; our parameters were chosen on seeds below 1000
    #[arg(long, env = "SEED", value_name = "NUMBER", default_value = "2001")]
    seed: u64,

    /// How many seeds, one after the other
    #[arg(long, value_name = "COUNT", default_value = "10")]
    seeds: u64,

    /// Also draw the instances of everybody into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Print JSON in place of a table
    #[arg(long)]
    json: bool,
}

impl SimulateArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let named = |name: &String| {
            let kind = TraceKind::ALL.into_iter().find(|kind| kind.name() == name);
            let known: Vec<&str> = TraceKind::ALL.iter().map(|kind| kind.name()).collect();
            kind.with_context(|| format!("trace {name:?}: expected one of {}", known.join(", ")))
        };
        let mut kinds = self.traces.iter().map(named).collect::<anyhow::Result<Vec<_>>>()?;
        if kinds.is_empty() {
            kinds = TraceKind::ALL.to_vec();
        }
        let seeds: Vec<u64> = (self.seed..self.seed + self.seeds.max(1)).collect();
        let standings = compare(&kinds, &seeds);
        if let Some(path) = &self.svg {
            std::fs::write(path, plot(&standings, self.seed)).with_context(|| path.display().to_string())?;
        }
        if self.json {
            let verdict = verdict(&standings);
            println!("{}", serde_json::json!({ "standings": standings, "verdict": verdict }));
        } else {
            print!("{}", table(&standings));
        }
        Ok(ExitCode::SUCCESS)
    }
}
