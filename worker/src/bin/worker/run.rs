//! Serves what was asked for on a runtime of its own until a signal says to stop.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use natsway_worker::Options;
use tokio::runtime::Runtime;

use crate::args::Served;
use crate::form::Form;

/// Handlers that block past the drain timeout are not waited for.
const LAST_CALL: Duration = Duration::from_millis(100);

/// Serves, in the form that was asked for, ends the runtime, and gives the exit code.
///
/// # Errors
/// Why it could not serve.
pub(crate) fn run(
    threads: Option<NonZeroUsize>,
    options: Options,
    served: Served,
    form: Form,
) -> anyhow::Result<u8> {
    let runtime = runtime(threads)?;
    let outcome = runtime.block_on(async {
        match served {
            Served::Demo(service) => serve(options, service, form).await.map(|()| 0),
            Served::Route(called) => {
                let (service, client) = called.connect().await?;
                serve(options, service, form).await?;
                client.close().await;
                Ok(0)
            }
            Served::App(sidecar) => sidecar.run(options, form).await,
        }
    });
    runtime.shutdown_timeout(LAST_CALL);
    outcome
}

fn runtime(threads: Option<NonZeroUsize>) -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.get());
    }
    builder.enable_all().build().context("starting the runtime")
}

async fn serve(options: Options, service: Router, form: Form) -> anyhow::Result<()> {
    let shutdown = natsway_worker::shutdown_signal().context("installing signal handlers")?;
    form.serve(options, service, shutdown).await?;
    Ok(())
}
