//! `cg`: consumer groups from the command line.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

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
    outcome.unwrap_or_else(|error| fail(&error, ExitCode::FAILURE))
}

/// Something has to be changed before another try; also clap's own code for arguments that it refuses.
const MISTAKE: u8 = 2;

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
