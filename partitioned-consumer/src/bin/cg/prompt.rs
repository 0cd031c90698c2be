//! `cg … prompt`: commands one by one, with history and completion.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;
use natsway_partitioned_consumer::GroupKind;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Common, Consume, ElasticCommand, StaticCommand, duration};
use crate::commands::{Session, ask, elastic, fixed};

mod complete;

use complete::Words;

/// A command, for `help` and for completion.
struct Known {
    name: &'static str,
    alias: &'static str,
    takes: &'static str,
}

impl Known {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.name].into_iter().chain(self.alias.split(' ').filter(|alias| !alias.is_empty()))
    }
}

const fn known(name: &'static str, alias: &'static str, takes: &'static str) -> Known {
    Known { name, alias, takes }
}

const COMMANDS: &[Known] = &[
    known("help", "?", ""),
    known("exit", "quit", ""),
    known("static", "", "(switch to static groups)"),
    known("elastic", "", "(switch to elastic groups)"),
    known("processing-time", "", "DURATION"),
    known("ls", "list", "[STREAM]"),
    known("info", "", "STREAM GROUP"),
    known("doctor", "", "STREAM GROUP"),
    known(
        "create",
        "",
        "static: balanced|mapped STREAM GROUP PARTITIONS MEMBER…; elastic: STREAM GROUP PARTITIONS",
    ),
    known("delete", "rm", "STREAM GROUP"),
    known("memberinfo", "member-info minfo", "STREAM GROUP MEMBER"),
    known("add", "", "STREAM GROUP MEMBER… (elastic)"),
    known("drop", "", "STREAM GROUP MEMBER… (elastic)"),
    known("rebalance", "", "STREAM GROUP MEMBER… (elastic)"),
    known("createmapping", "create-mapping cm", "STREAM GROUP MEMBER:0,1,2… (elastic)"),
    known("deletemapping", "delete-mapping dm", "STREAM GROUP (elastic)"),
    known("stepdown", "step-down sd", "STREAM GROUP MEMBER"),
    known("consume", "join", "STREAM GROUP MEMBER"),
    known("pause", "", "STREAM GROUP"),
    known("resume", "", "STREAM GROUP"),
    known("dead-letter", "", "STREAM GROUP SUBJECT"),
    known("reset", "", "STREAM GROUP --to-seq N|--to-time TIME|--to-new [--dry-run]"),
    known("repartition", "", "STREAM GROUP PARTITIONS (elastic)"),
    known("setup", "", "STREAM"),
];

fn help() {
    for Known { name, alias, takes } in COMMANDS {
        println!("{name:<16} {alias:<18} {takes}");
    }
}

/// Asks until `exit` or the end of the input.
pub(crate) async fn run(mut session: Session, mut kind: GroupKind) -> Result<ExitCode> {
    // As far as all that fits agrees, and then a list of it, as a shell does.
    let settings = Config::builder().completion_type(CompletionType::List).build();
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(settings)?;
    editor.set_helper(Some(Words { session: session.clone(), kind }));
    let history = std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".cg_history"));
    if let Some(path) = &history {
        // None yet, on the first time.
        drop(editor.load_history(path));
    }
    loop {
        if let Some(words) = editor.helper_mut() {
            words.kind = kind;
        }
        let line = match editor.readline(&format!("[{}]> ", kind.as_str())) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        editor.add_history_entry(&line)?;
        match words.as_slice() {
            ["exit" | "quit"] => break,
            ["help" | "?"] => help(),
            ["static"] => kind = GroupKind::Static,
            ["elastic"] => kind = GroupKind::Elastic,
            ["processing-time", time] => match duration(time) {
                Ok(time) => session.sleep = time,
                Err(error) => eprintln!("{error}"),
            },
            words => {
                if let Err(error) = interruptible(&session, kind, words).await {
                    eprintln!("{}", crate::whole(&error));
                }
            }
        }
    }
    if let Some(path) = &history {
        editor.save_history(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one line. Ctrl-C ends `consume` in good order; a second one, or one at any other command, is back at the prompt
/// at once.
async fn interruptible(session: &Session, kind: GroupKind, words: &[&str]) -> Result<()> {
    let stop = CancellationToken::new();
    let session = Session { stop: Some(stop.clone()), ..session.clone() };
    let ends_in_order = matches!(words.first(), Some(&("consume" | "join")));
    let mut interrupts = signal(SignalKind::interrupt())?;
    let command = one(&session, kind, words);
    tokio::pin!(command);
    loop {
        tokio::select! {
            outcome = &mut command => return outcome,
            _ = interrupts.recv() => {
                if !ends_in_order || stop.is_cancelled() {
                    bail!("interrupted");
                }
                stop.cancel();
            }
        }
    }
}

/// Runs one line; arguments that are missing are asked for one by one.
async fn one(session: &Session, kind: GroupKind, words: &[&str]) -> Result<()> {
    let mut words: Vec<String> = words.iter().map(ToString::to_string).collect();
    loop {
        let parsed = match kind {
            GroupKind::Static => parse::<StaticCommand>(&words).map(Line::Static),
            GroupKind::Elastic => parse::<ElasticCommand>(&words).map(Line::Elastic),
        };
        match parsed {
            Ok(Line::Static(command)) => {
                note_consume(session, consumes_static(&command));
                fixed(session, command).await?;
                return Ok(());
            }
            Ok(Line::Elastic(command)) => {
                note_consume(session, consumes_elastic(&command));
                elastic(session, command).await?;
                return Ok(());
            }
            Err(error) if error.kind() == clap::error::ErrorKind::MissingRequiredArgument => {
                let missing = error
                    .get(clap::error::ContextKind::InvalidArg)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let name = missing.split(['<', '>']).nth(1).unwrap_or("argument").to_lowercase();
                let Some(answer) = ask(&name)? else { return Err(error.into()) };
                words.extend(answer.split_whitespace().map(str::to_owned));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

enum Line {
    Static(StaticCommand),
    Elastic(ElasticCommand),
}

fn parse<C: Subcommand>(words: &[String]) -> Result<C, clap::Error> {
    let command =
        C::augment_subcommands(clap::Command::new("cg").no_binary_name(true).disable_version_flag(true));
    command.try_get_matches_from(words).and_then(|matches| C::from_arg_matches(&matches))
}

fn consumes_static(command: &StaticCommand) -> Option<&Consume> {
    match command {
        StaticCommand::Common(Common::Consume(consume)) => Some(consume),
        _ => None,
    }
}

fn consumes_elastic(command: &ElasticCommand) -> Option<&Consume> {
    match command {
        ElasticCommand::Common(Common::Consume(consume)) => Some(consume),
        _ => None,
    }
}

fn note_consume(session: &Session, consume: Option<&Consume>) {
    if let Some(Consume { member, .. }) = consume {
        let time: Duration = session.sleep;
        eprintln!(
            "[{}/{}/{}] processing time {time:?}",
            member.group.stream, member.group.group, member.member
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Delete;

    #[test]
    fn lines_are_read_like_command_lines() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(matches!(
            parse::<StaticCommand>(&words("create balanced foo cg 4 m1 m2")),
            Ok(StaticCommand::Create { .. })
        ));
        assert!(matches!(
            parse::<ElasticCommand>(&words("rm foo cg")),
            Ok(ElasticCommand::Common(Common::Delete(Delete { force: false, .. })))
        ));
        let missing = parse::<ElasticCommand>(&words("add foo")).err().unwrap();
        assert_eq!(missing.kind(), clap::error::ErrorKind::MissingRequiredArgument);
    }
}
