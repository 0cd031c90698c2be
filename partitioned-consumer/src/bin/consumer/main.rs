//! `consumer`: writes the lines that producers ship to files, one directory for each host.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use natsway_boot::{logs::LogArgs, shutdown};
use natsway_partitioned_consumer::shipper::consumer::{self, ConsumerArgs, status};

/// Writes the lines that producers ship to files, each once and in order
#[derive(Parser)]
#[command(version, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    consumer: ConsumerArgs,

    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Show partitions and sources: how far they are written, what is left, what went wrong last
    Status {
        /// As JSON, for machines
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("consumer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    cli.logs.init().map_err(anyhow::Error::msg)?;
    let faults = |faults: Vec<String>| anyhow::Error::msg(faults.join("\n          "));
    let config = cli.consumer.into_config().map_err(faults)?;
    if let Some(Command::Status { json }) = cli.command {
        let report = status::read(&config).await?;
        let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { status::table(&report) };
        print!("{text}");
        return Ok(());
    }
    consumer::run(config, shutdown::on_signal()?).await
}
