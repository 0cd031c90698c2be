//! `cg traffic`: a message every now and then, each key numbered from 1.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::args::Traffic;
use crate::connect::Connection;

/// Publishes until the count is reached or the user has enough.
pub(crate) async fn run(connection: &Connection, wanted: &Traffic) -> Result<ExitCode> {
    let stop = natsway_boot::shutdown::on_signal()?;
    let mut every = tokio::time::interval(wanted.every.max(std::time::Duration::from_micros(1)));
    let mut sent = 0_u64;
    while wanted.count.is_none_or(|count| sent < count) {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = every.tick() => {}
        }
        let subject = format!("{}.{}", wanted.subject, sent % wanted.keys);
        let number = (sent / wanted.keys + 1).to_string();
        let ack = connection.jetstream.publish(subject.clone(), number.into()).await?;
        ack.await.with_context(|| {
            format!(
                "no stream takes {subject:?}; create one with `cg elastic setup {}`",
                wanted.subject
            )
        })?;
        sent += 1;
    }
    eprintln!("{sent} messages published");
    Ok(ExitCode::SUCCESS)
}
