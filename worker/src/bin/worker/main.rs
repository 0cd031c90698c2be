//! A worker that serves a few demonstration endpoints over NATS; see `worker --help`.

mod args;
mod demo;
mod forward;
mod misbehave;
mod run_log;
mod sum;

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use clap::Parser;
use natsway_worker::Options;
use tokio::runtime::Runtime;
use tracing::error;

use crate::args::{Args, Form};
use crate::forward::Forward;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Handlers that block past the drain timeout are not waited for.
const LAST_CALL: Duration = Duration::from_millis(100);

/// Something has to be changed before another start; also clap's own code for arguments that it
/// refuses.
const MISTAKE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let traces = match args.logs.init_with(&args.traces, env!("CARGO_BIN_NAME")) {
        Ok(traces) => traces,
        Err(error) => return mistake(&[error]),
    };
    natsway_worker::log_panics_once();
    let (threads, form) = (args.threads(), args.form());
    let (options, service, forward) = match args.into_options() {
        Ok(ready) => ready,
        Err(error) => return mistake(&[format!("{error:#}")]),
    };
    let outcome = runtime(threads).and_then(|runtime| {
        let outcome = runtime.block_on(run(options, service, forward, form));
        runtime.shutdown_timeout(LAST_CALL);
        outcome
    });
    traces.finish();
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    match error.downcast_ref() {
        Some(natsway_worker::Error::Options(mistakes)) => mistake(mistakes),
        _ => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what has to be changed, a sentence a line.
fn mistake(mistakes: &[String]) -> ExitCode {
    for mistake in mistakes {
        eprintln!("worker: {mistake}");
    }
    ExitCode::from(MISTAKE)
}

fn runtime(threads: Option<NonZeroUsize>) -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.get());
    }
    builder.enable_all().build().context("starting the runtime")
}

async fn run(
    options: Options,
    service: Router,
    forward: Option<Forward>,
    form: Form,
) -> anyhow::Result<()> {
    let shutdown = natsway_worker::shutdown_signal().context("installing signal handlers")?;
    let (service, client) = match forward {
        Some(forward) => {
            let (service, client) = forward.connect().await?;
            (service, Some(client))
        }
        None => (service, None),
    };
    match form {
        Form::PerCore => natsway_worker::serve_local(options, move || service, shutdown).await?,
        Form::Scaled(most) => {
            natsway_worker::serve_scaled(options, most, service, shutdown).await?
        }
        Form::Plain => natsway_worker::serve(options, service, shutdown).await?,
    };
    if let Some(client) = client {
        client.close().await;
    }
    Ok(())
}
