//! `producer`: ships the lines of files to NATS.

use std::process::ExitCode;

use clap::Parser;
use natsway_boot::{logs::LogArgs, shutdown};
use natsway_shipper::producer::{self, ProducerArgs, status};
use natsway_shipper::program::{self, Ended, Question};

/// Ships the lines of files to NATS, each once and in order
#[derive(Parser)]
#[command(version, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    question: Option<Question>,

    #[command(flatten)]
    producer: ProducerArgs,

    #[command(flatten)]
    logs: LogArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::exit("producer", run(Cli::parse()).await)
}

async fn run(cli: Cli) -> Ended {
    if let Some(question) = cli.question {
        let reports = status::read(&cli.producer.state_directory().map_err(program::faults)?)?;
        return Ok(question.answer(reports.as_slice(), status::table)?);
    }
    cli.logs.init()?;
    let config = cli.producer.into_config().map_err(program::faults)?;
    Ok(producer::run(config, shutdown::on_signal()?).await?)
}
