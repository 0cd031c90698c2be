//! The `bench` binary: what is promised, proven.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use natsway_bench::prove;

/// Measures and proves Natsway end to end, on real processes
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Break things on purpose and check what is promised; the last line is JSON, exit code 1 when a promise is broken
    Prove {
        #[command(subcommand)]
        promise: Promise,
    },
}

#[derive(Subcommand)]
enum Promise {
    /// Restarts, kills, freezes and cuts around the gateway, under load
    Gateway(prove::Size),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Prove { promise: Promise::Gateway(size) } = Cli::parse().command;
    match prove::gateway::prove(&size).await {
        Ok(report) => report.conclude(),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}
