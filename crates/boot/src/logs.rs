//! Log lines on standard error, for people or for machines.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to log; `#[command(flatten)]` it into a binary's arguments.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// What to log: a level, or a filter such as `info,natsway_worker=debug`
    #[arg(long, env = "NATSWAY_LOG", value_name = "FILTER", default_value = "info")]
    log: String,

    /// How to write it
    #[arg(long, env = "NATSWAY_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line for people
    Text,
    /// One JSON object a line
    Json,
}

impl LogArgs {
    /// Starts logging for the whole process.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the filter.
    pub fn init(&self) -> Result<(), String> {
        // async-nats reports each connection event, and takes the planned end of a session for an error; Natsway says
        // what they mean itself.
        let filter = EnvFilter::try_new(format!("async_nats=warn,async_nats::connector=off,{}", self.log))
            .map_err(|error| format!("log filter {:?}: {error}", self.log))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
            Format::Json => builder.json().flatten_event(true).init(),
        }
        Ok(())
    }
}
