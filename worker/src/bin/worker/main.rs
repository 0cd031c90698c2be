//! A worker that serves an app, or a few demonstration endpoints, over NATS; see `worker --help`.

mod args;
mod call_route;
mod demo;
mod form;
mod misbehave;
mod problem;
mod run;
mod run_log;
mod sidecar;
mod streaming;
mod sum;
mod work;

use std::process::ExitCode;

use clap::Parser;
use tracing::error;

use crate::args::Args;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Something has to be changed before another start; also clap's own code for arguments that it
/// refuses.
const MISTAKE: u8 = 2;

fn main() -> ExitCode {
    if let Some(code) = sidecar::become_other() {
        return code;
    }
    let args = Args::parse();
    let traces = match args.logs.init_with(&args.traces, env!("CARGO_BIN_NAME")) {
        Ok(traces) => traces,
        Err(error) => return mistake(&[error]),
    };
    natsway_worker::log_panics_once();
    let (threads, form) = (args.threads(), args.form());
    let (options, served) = match args.into_options() {
        Ok(ready) => ready,
        Err(error) => return mistake(&[format!("{error:#}")]),
    };
    let outcome = run::run(threads, options, served, form);
    traces.finish();
    let error = match outcome {
        Ok(code) => return ExitCode::from(code),
        Err(error) => error,
    };
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
