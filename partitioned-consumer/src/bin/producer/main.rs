//! `producer`: ships the lines of files to NATS.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use natsway_boot::{logs::LogArgs, shutdown};
use natsway_partitioned_consumer::shipper::producer::{self, ProducerArgs, status};

/// Ships the lines of files to NATS, each once and in order
#[derive(Parser)]
#[command(version, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    producer: ProducerArgs,

    #[command(flatten)]
    logs: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Show each file: how far it is shipped, what is left, what went wrong last
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
            eprintln!("producer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let faults = |faults: Vec<String>| anyhow::Error::msg(faults.join("\n          "));
    if let Some(Command::Status { json }) = cli.command {
        let reports = status::read(&cli.producer.state_directory().map_err(faults)?)?;
        let text =
            if json { serde_json::to_string_pretty(&reports)? + "\n" } else { status::table(&reports) };
        print!("{text}");
        return Ok(());
    }
    cli.logs.init().map_err(anyhow::Error::msg)?;
    let config = cli.producer.into_config().map_err(faults)?;
    producer::run(config, shutdown::on_signal()?).await
}
