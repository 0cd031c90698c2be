//! `apiproxy stand-in`: what gateways do for leaving workers of their account, for the workers of
//! another one.
//!
//! A gateway's membership in a queue group of its own account is no membership in that of the
//! workers, where these live in another: the broker gives a request to both. So whoever stands in
//! has to be in the workers' account.

use std::process::ExitCode;

use anyhow::Context;
use async_nats::connection::State;
use clap::Args;
use natsway_boot::logs::LogArgs;
use natsway_boot::{BrokerArgs, BrokerConfig, shutdown};
use tracing::info;

use crate::tombstone;

/// Where its inboxes are.
const INBOX_PREFIX: &str = "_INBOX_stand_in";

/// Arguments of `stand-in`.
#[derive(Args)]
pub struct StandInArgs {
    /// The broker, as a user of the workers' account.
    #[command(flatten)]
    broker: BrokerArgs,

    /// The logs.
    #[command(flatten)]
    logs: LogArgs,
}

impl StandInArgs {
    /// Checks what was asked for, and begins to log.
    ///
    /// # Errors
    /// A sentence with what has to be changed.
    pub fn prepare(self) -> anyhow::Result<BrokerConfig> {
        self.logs.init().map_err(anyhow::Error::msg)?;
        Ok(self.broker.into_config()?)
    }
}

/// Stands in whenever a worker that is the last of its subject asks for it, until told to stop. Two
/// of them leave no gap when one is restarted.
///
/// # Errors
/// The system does not give signals, or the broker's certificates cannot be read.
pub async fn serve(broker: BrokerConfig) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signal()?;
    let client = broker
        .connect("apiproxy stand-in", INBOX_PREFIX)
        .await
        .context("the broker cannot be reached")?;
    while client.connection_state() != State::Connected {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        }
    }
    info!(%broker, "standing by");
    tokio::select! {
        () = tombstone::keep(client) => anyhow::bail!("the broker took no subscription"),
        () = stop.cancelled() => Ok(ExitCode::SUCCESS),
    }
}

/// How often it looks whether the broker is there.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);
