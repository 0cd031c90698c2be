//! The provisioner's binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use natsway_provisioner::cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = Cli::parse().run().await;
    done.unwrap_or_else(|error| {
        eprintln!("provisioner: {error:#}");
        ExitCode::FAILURE
    })
}
