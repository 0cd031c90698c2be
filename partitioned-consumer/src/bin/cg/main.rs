//! `cg`: consumer groups from the command line.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches};
use natsway_partitioned_consumer::GroupKind;

use args::{Common, ElasticCommand, Mode, StaticCommand};
use connect::Connection;
use failure::{MISTAKE, fail, is_mistake};
use session::Session;

mod args;
mod ask;
mod commands;
mod connect;
mod consume;
mod failure;
mod new_group;
mod plugin;
mod print;
mod prompt;
mod session;
mod traffic;

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(plugin::INTROSPECT) {
        println!("{}", plugin::model(args::Cli::command()));
        return ExitCode::SUCCESS;
    }
    let matches = args::Cli::command().get_matches();
    let cli = args::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Mode::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut args::Cli::command(), "cg", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    natsway_boot::logs::init_for_commands();
    let url_given = matches
        .value_source("nats_url")
        .is_some_and(|s| s != clap::parser::ValueSource::DefaultValue);
    let chosen = match connect::choose(cli.broker, url_given, cli.context.as_deref()) {
        Ok(chosen) => chosen,
        Err(mistake) => return fail(&mistake, ExitCode::from(MISTAKE)),
    };
    let outcome = match connect::connect(chosen).await {
        Ok(connection) => run(connection, cli.json, cli.command).await,
        Err(error) => Err(error),
    };
    outcome.unwrap_or_else(|error| {
        let code = if is_mistake(&error) { ExitCode::from(MISTAKE) } else { ExitCode::FAILURE };
        fail(&error, code)
    })
}

/// Runs one invocation.
async fn run(connection: Connection, json: bool, command: Mode) -> Result<ExitCode> {
    let session = |sleep| Session { connection: connection.clone(), json, sleep, stop: None };
    match command {
        Mode::Static { work, command: StaticCommand::Common(Common::Prompt) } => {
            prompt::run(session(work.sleep), GroupKind::Static).await
        }
        Mode::Elastic { work, command: ElasticCommand::Common(Common::Prompt) } => {
            prompt::run(session(work.sleep), GroupKind::Elastic).await
        }
        Mode::Static { work, command } => commands::fixed(&session(work.sleep), command).await,
        Mode::Elastic { work, command } => commands::elastic(&session(work.sleep), command).await,
        Mode::Traffic(wanted) => traffic::run(&connection, &wanted).await,
        Mode::Completions { .. } => Ok(ExitCode::SUCCESS),
    }
}
