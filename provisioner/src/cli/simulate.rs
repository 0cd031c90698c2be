//! `provisioner simulate`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;

use crate::simulate::{
    SERVICE_RATE, Standing, Trace, TraceKind, compare, compare_on, own, plot_on, table, verdict,
};

#[derive(Args)]
pub(super) struct SimulateArgs {
    /// The traffic: step, ramp, sine, spike, flash-crowd, on-off, noise, lying, bursty,
    /// retry-storm, slow-leak, deploy, slow-starts, sawtooth or double-hump; all of them by default
    traces: Vec<String>,

    /// Traffic of your own in place of these: a CSV of time and messages a second, or what `record`
    /// wrote about one target
    #[arg(long, value_name = "FILE", conflicts_with = "traces")]
    trace: Option<PathBuf>,

    /// Messages a second that one instance of yours does; in the simulator it does 100
    #[arg(long, value_name = "RATE", default_value = "100", requires = "trace")]
    service_rate: f64,

    /// The first seed; our parameters were chosen on seeds below 1000
    #[arg(long, env = "SEED", value_name = "NUMBER", default_value = "3001")]
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
        let seeds: Vec<u64> = (self.seed..self.seed + self.seeds.max(1)).collect();
        if let Some(path) = &self.trace {
            let rates = self.own(path)?;
            let standings =
                compare_on(seeds.iter().map(|seed| Trace::own(&rates, *seed)).collect());
            return self.show(&standings, |_| Trace::own(&rates, self.seed));
        }
        let named = |name: &String| {
            let kind = TraceKind::ALL.into_iter().find(|kind| kind.name() == name);
            let known: Vec<&str> = TraceKind::ALL.iter().map(|kind| kind.name()).collect();
            kind.with_context(|| format!("trace {name:?}: expected one of {}", known.join(", ")))
        };
        let mut kinds = self.traces.iter().map(named).collect::<anyhow::Result<Vec<_>>>()?;
        if kinds.is_empty() {
            kinds = TraceKind::ALL.to_vec();
        }
        self.show(&compare(&kinds, &seeds), |kind| Trace::new(kind, self.seed))
    }

    /// Messages a second of a file, for instances that do as much as the simulator's.
    fn own(&self, path: &Path) -> anyhow::Result<Vec<f64>> {
        ensure!(
            self.service_rate.is_finite() && self.service_rate > 0.0,
            "--service-rate {}: expected messages a second, above 0",
            self.service_rate
        );
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let rates =
            own::read(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Ok(rates.into_iter().map(|rate| rate * SERVICE_RATE / self.service_rate).collect())
    }

    fn show(
        &self,
        standings: &[Standing],
        trace: impl Fn(TraceKind) -> Trace,
    ) -> anyhow::Result<ExitCode> {
        if let Some(path) = &self.svg {
            std::fs::write(path, plot_on(standings, trace))
                .with_context(|| path.display().to_string())?;
        }
        if self.json {
            let verdict = verdict(standings);
            println!("{}", serde_json::json!({ "standings": standings, "verdict": verdict }));
        } else {
            print!("{}", table(standings));
        }
        Ok(ExitCode::SUCCESS)
    }
}
