//! `consumer`: writes the lines that producers ship to files, one directory for each host.

use std::process::ExitCode;

use clap::Parser;
use natsway_boot::{logs::LogArgs, shutdown};
use natsway_shipper::consumer::{self, ConsumerArgs, status};
use natsway_shipper::program::{self, Ended, Question};

/// Writes the lines that producers ship to files, each once and in order
#[derive(Parser)]
#[command(version, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    question: Option<Question>,

    #[command(flatten)]
    consumer: ConsumerArgs,

    #[command(flatten)]
    logs: LogArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::exit("consumer", run(Cli::parse()).await)
}

async fn run(cli: Cli) -> Ended {
    cli.logs.init()?;
    if let Some(question) = cli.question {
        let config = cli.consumer.for_status().into_config().map_err(program::faults)?;
        return Ok(question.answer(&status::read(&config).await?, status::table)?);
    }
    let config = cli.consumer.into_config().map_err(program::faults)?;
    Ok(consumer::run(config, shutdown::on_signal()?).await?)
}
