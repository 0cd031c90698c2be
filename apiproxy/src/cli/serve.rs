//! The gateway itself: from arguments to one that serves.

use std::process::ExitCode;

use anyhow::Context;
use natsway_boot::traces::Traces;
use natsway_boot::{BrokerConfig, shutdown};
use natsway_routes::watch::Bucket;
use tokio::runtime::Builder;

use super::RunArgs;
use crate::gateway::{self, Routes};
use crate::route_file::{RouteFile, read_routes};
use crate::settings::Settings;

/// What a gateway starts from.
pub struct Start {
    settings: Settings,
    routes: Routes,
    broker: BrokerConfig,
    traces: Traces,
}

impl Start {
    /// Checks everything that was asked for before anything is started; `None` when that was all.
    ///
    /// # Errors
    /// What has to be changed before another start.
    pub fn prepare(args: RunArgs) -> anyhow::Result<Option<Self>> {
        let traces = args.logs.init_with(&args.traces, "apiproxy").map_err(anyhow::Error::msg)?;
        let file = args.routes.as_ref().map(|path| {
            let shown = path.display();
            let text =
                std::fs::read_to_string(path).with_context(|| format!("route file {shown}"))?;
            read_routes(&text).with_context(|| format!("route file {shown} is refused"))
        });
        let file: Option<RouteFile> = file.transpose()?;
        if args.check {
            println!("{} routes, sound", file.map_or(0, |file| file.documents.len()));
            return Ok(None);
        }
        let settings = args.settings()?;
        let routes = match file {
            Some(file) if args.static_routes => Routes::Fixed(file.table),
            file => Routes::Bucket(Bucket {
                name: args.routes_bucket,
                replicas: args.routes_replicas.get(),
                seed: file.map(|file| file.documents).unwrap_or_default(),
            }),
        };
        let broker = args.broker.into_config()?;
        Ok(Some(Self { settings, routes, broker, traces }))
    }

    /// Serves until a signal says to stop.
    ///
    /// # Errors
    /// What keeps a gateway from starting.
    pub fn serve(self) -> anyhow::Result<ExitCode> {
        let Self { settings, routes, broker, traces } = self;
        let outcome = one_thread()?.block_on(async {
            let stop = shutdown::on_signal()?;
            gateway::run(settings, routes, broker, stop).await?;
            Ok(ExitCode::SUCCESS)
        });
        traces.finish();
        outcome
    }
}

/// The control plane has little to do, so one thread does it. The shards have threads of their own.
///
/// # Errors
/// The system's.
pub fn one_thread() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}
