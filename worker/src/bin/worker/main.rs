//! A worker that serves a few demonstration endpoints over NATS; see `worker --help`.

mod args;
mod demo;
mod run_log;
mod sum;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tracing::error;

use crate::args::Args;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Handlers that block past the drain limit are not waited for.
const LAST_CALL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = args.logs.init() {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = args.threads() {
        builder.worker_threads(threads.get());
    }
    let runtime = builder.enable_all().build().context("starting the runtime")?;
    let outcome = runtime.block_on(run(args));
    runtime.shutdown_timeout(LAST_CALL);
    outcome
}

async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = natsway_worker::shutdown_signal().context("installing signal handlers")?;
    let (per_core, max_sets) = (args.per_core(), args.max_sets());
    let (options, service) = args.into_options()?;
    if per_core {
        natsway_worker::serve_local(options, move || service, shutdown).await?;
    } else if max_sets.get() > 1 {
        natsway_worker::serve_scaled(options, max_sets, service, shutdown).await?;
    } else {
        natsway_worker::serve(options, service, shutdown).await?;
    }
    Ok(())
}
