//! `cg`: consumer groups from the command line.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use natsway_partitioned_consumer::ErrorKind;

mod args;
mod commands;
mod connect;
mod consume;
mod plugin;
mod print;
mod prompt;
mod traffic;

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(plugin::INTROSPECT) {
        println!("{}", plugin::model(args::Cli::command()));
        return ExitCode::SUCCESS;
    }
    let matches = args::Cli::command().get_matches();
    let cli = args::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let args::Mode::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut args::Cli::command(), "cg", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    natsway_boot::logs::init_for_commands();
    let url_given =
        matches.value_source("nats_url").is_some_and(|s| s != clap::parser::ValueSource::DefaultValue);
    let chosen = match connect::choose(cli.broker, url_given, cli.context.as_deref()) {
        Ok(chosen) => chosen,
        Err(mistake) => return fail(&mistake, ExitCode::from(MISTAKE)),
    };
    let outcome = match connect::connect(chosen).await {
        Ok(connection) => commands::run(connection, cli.json, cli.command).await,
        Err(error) => Err(error),
    };
    outcome.unwrap_or_else(|error| {
        let code = if is_mistake(&error) { ExitCode::from(MISTAKE) } else { ExitCode::FAILURE };
        fail(&error, code)
    })
}

/// Something has to be changed before another try; also clap's own code for arguments that it refuses.
const MISTAKE: u8 = 2;

/// What was asked for can never work, whoever asks again.
#[derive(Debug)]
struct Mistake(String);

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

fn is_mistake(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<natsway_partitioned_consumer::Error>().map(|error| error.kind());
    error.is::<Mistake>() || matches!(refused, Some(ErrorKind::InvalidName | ErrorKind::InvalidConfig))
}

fn fail(error: &anyhow::Error, code: ExitCode) -> ExitCode {
    eprintln!("cg: {}", whole(error));
    code
}

/// An error with its causes, each said once: some errors name their cause themselves.
fn whole(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let io = || std::io::Error::other("disk full");
        assert_eq!(whole(&anyhow::Error::new(io()).context("not written")), "not written: disk full");
        assert_eq!(
            whole(&anyhow::Error::new(io()).context("not written: disk full")),
            "not written: disk full"
        );
    }
}
