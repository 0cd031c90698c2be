//! Log lines on standard error, for people or for machines.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::traces::{TraceArgs, Traces};

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

/// Has a command line tell its warnings on standard error, such as what the broker does not permit.
/// `NATSWAY_LOG` is the filter, as for programs that stay.
pub fn init_for_commands() {
    let asked = std::env::var("NATSWAY_LOG").ok().filter(|filter| !filter.is_empty());
    let logs =
        LogArgs { log: asked.unwrap_or_else(|| "warn".to_owned()), log_format: Format::Text };
    // A filter that is none is told by the programs that stay; here it only costs the warnings.
    let Ok(filter) = logs.filter() else { return };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time();
    lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
}

impl LogArgs {
    /// Starts logging for the whole process.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the filter.
    pub fn init(&self) -> Result<(), String> {
        let filter = self.filter()?;
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
            Format::Json => builder.json().flatten_event(true).init(),
        }
        Ok(())
    }

    /// Starts logging, and exporting traces where that is wished for, for the whole process.
    /// `program` is the name that traces bear unless the user gives one. Without traces this is
    /// [`init`](Self::init).
    ///
    /// # Errors
    /// A sentence that says which setting is wrong.
    pub fn init_with(&self, traces: &TraceArgs, program: &'static str) -> Result<Traces, String> {
        let (exporting, tracer) = traces.start(program)?;
        let Some(tracer) = tracer else {
            self.init()?;
            return Ok(exporting);
        };
        let spans = traces.filter();
        let spans = EnvFilter::try_new(&spans)
            .map_err(|error| format!("traces filter {spans:?}: {error}"))?;
        let spans = tracing_opentelemetry::layer().with_tracer(tracer).with_filter(spans);
        tracing_subscriber::registry().with(self.layer()?).with(spans).init();
        Ok(exporting)
    }

    fn layer(&self) -> Result<Box<dyn Layer<Registry> + Send + Sync>, String> {
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        Ok(match self.log_format {
            Format::Text => {
                lines.with_ansi(std::io::stderr().is_terminal()).with_filter(self.filter()?).boxed()
            }
            Format::Json => lines.json().flatten_event(true).with_filter(self.filter()?).boxed(),
        })
    }

    fn filter(&self) -> Result<EnvFilter, String> {
        // async-nats reports each connection event, and takes the planned end of a session for an
        // error; Natsway says what they mean itself.
        EnvFilter::try_new(format!("async_nats=warn,async_nats::connector=off,{}", self.log))
            .map_err(|error| format!("log filter {:?}: {error}", self.log))
    }
}
