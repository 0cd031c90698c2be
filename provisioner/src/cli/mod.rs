//! The command line.

mod ask;
mod record;
mod run;
mod simulate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use natsway_boot::BrokerArgs;
use natsway_boot::logs::LogArgs;

/// The provisioner: starts and stops instances as the traffic asks for, and kills no work in hand
#[derive(Parser)]
#[command(name = "provisioner", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Scale what a configuration file says, until told to stop; instances stay
    Run(run::RunArgs),
    /// Say how the last decision about a target came to be: what was seen, each policy's answer,
    /// what limited it
    Explain {
        /// The target; all of them by default
        target: Option<String>,
    },
    /// Show who leads and how each target stands
    Status,
    /// Draw rate, lag and instances over time
    Top(ask::TopArgs),
    /// Write decisions down as they are made, with what was seen: one JSON object a line
    Record(record::RecordArgs),
    /// Decide about a recording once more, by the rules of a configuration file
    Replay(record::ReplayArgs),
    /// Compare autoscalers on seeded traffic by a virtual clock
    Simulate(simulate::SimulateArgs),
}

const EXAMPLES: &str = "Examples:
  provisioner run --config provisioner.toml
  provisioner explain orders
  provisioner record --out monday.jsonl
  provisioner replay monday.jsonl --config other.toml
  provisioner simulate step --svg step.svg
  provisioner simulate --trace monday.jsonl --service-rate 40

A configuration file:
  [[target]]
  name = \"orders\"
  signal = { kind = \"consumer\", stream = \"ORDERS\", consumer = \"WORKERS\" }
  backend = { kind = \"processes\", command = [\"orders-worker\"], state = \"/var/lib/natsway/orders\" }
  scale = { min = 1, max = 20 }";

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// What to tell the user.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        self.logs.init().map_err(anyhow::Error::msg)?;
        match self.command {
            Command::Run(args) => args.run(self.broker.into_config()?).await,
            Command::Explain { target } => {
                ask::explain(self.broker.into_config()?, target.as_deref()).await
            }
            Command::Status => ask::status(self.broker.into_config()?).await,
            Command::Top(args) => args.run(self.broker.into_config()?).await,
            Command::Record(args) => args.run(self.broker.into_config()?).await,
            Command::Replay(args) => args.run(),
            Command::Simulate(args) => args.run(),
        }
    }
}

/// What to say of a configuration that is none.
fn refused(path: &Path) -> String {
    format!("the configuration {} is refused", path.display())
}

/// A file as its text.
fn read(path: &PathBuf) -> anyhow::Result<String> {
    use anyhow::Context;
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
