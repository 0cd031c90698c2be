//! The gateway's binary: arguments in, exit code out.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use natsway_apiproxy::cli::Cli;
use natsway_apiproxy::{config, gateway};
use natsway_boot::shutdown;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(reason) = cli.logs.init() {
        eprintln!("apiproxy: {reason}");
        return ExitCode::from(2);
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("apiproxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let path = cli.routes.display().to_string();
    let text = std::fs::read_to_string(&cli.routes).with_context(|| format!("route file {path}"))?;
    let table = config::read_routes(&text).with_context(|| format!("route file {path} is refused"))?.table;
    if cli.check {
        println!("{path}: {} routes, sound", table.routes().len());
        return Ok(());
    }
    let settings = cli.settings();
    let broker = cli.broker.into_broker()?;
    // The control plane: little to do, so one thread does it. The cores have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = shutdown::on_signal()?;
        gateway::run(settings, table, broker, stop).await?;
        Ok(())
    })
}
