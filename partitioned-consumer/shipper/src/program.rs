//! What the programs `producer` and `consumer` do alike: answer a question, or say why they end.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use crate::error::{Error, ErrorKind, whole};

/// How a program ended.
pub type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What a program may be asked instead of shipping.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Question {
    /// Show how far everything is, what is left, what went wrong last
    Status {
        /// As JSON, for machines
        #[arg(long)]
        json: bool,
    },
}

impl Question {
    /// Prints a report, as JSON or as a `table`.
    ///
    /// # Errors
    /// None in practice: reports are plain data.
    pub fn answer<T: Serialize + ?Sized>(
        self,
        report: &T,
        table: impl FnOnce(&T) -> String,
    ) -> serde_json::Result<()> {
        let Self::Status { json } = self;
        let text = if json { serde_json::to_string_pretty(report)? + "\n" } else { table(report) };
        print!("{text}");
        Ok(())
    }
}

/// All faults of what the user typed, one below the other.
pub fn faults(faults: Vec<String>) -> Error {
    ErrorKind::InvalidConfig.with(faults.join("\n          "))
}

/// Says why a program ends, when it is not well.
pub fn exit(program: &str, ended: Ended) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {}", whole(&*error));
            ExitCode::FAILURE
        }
    }
}
