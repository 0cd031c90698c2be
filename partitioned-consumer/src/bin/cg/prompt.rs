//! `cg … prompt`: commands one by one, with history and completion.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use natsway_partitioned_consumer::GroupKind;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Context, Editor, Helper, Highlighter, Hinter, Validator};

use crate::args::{Common, Consume, ElasticCommand, StaticCommand, duration};
use crate::commands::{Session, ask, elastic, fixed};

/// First words, with what follows them, for `help` and for completion.
const COMMANDS: &[(&str, &str)] = &[
    ("help", ""),
    ("exit", ""),
    ("static", "switch to static groups"),
    ("elastic", "switch to elastic groups"),
    ("processing-time", "DURATION"),
    ("ls", "STREAM"),
    ("info", "STREAM GROUP"),
    ("doctor", "STREAM GROUP"),
    ("create", "static: balanced|mapped STREAM GROUP MAX-MEMBERS MEMBER…; elastic: STREAM GROUP MAX-MEMBERS"),
    ("delete", "STREAM GROUP"),
    ("memberinfo", "STREAM GROUP MEMBER"),
    ("add", "STREAM GROUP MEMBER…"),
    ("drop", "STREAM GROUP MEMBER…"),
    ("rebalance", "STREAM GROUP MEMBER…"),
    ("createmapping", "STREAM GROUP MEMBER:0,1,2…"),
    ("deletemapping", "STREAM GROUP"),
    ("stepdown", "STREAM GROUP MEMBER"),
    ("consume", "STREAM GROUP MEMBER"),
    ("pause", "STREAM GROUP"),
    ("resume", "STREAM GROUP"),
    ("dead-letter", "STREAM GROUP SUBJECT"),
    ("repartition", "STREAM GROUP PARTITIONS"),
    ("setup", "STREAM"),
];

#[derive(Helper, Highlighter, Hinter, Validator)]
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..at];
        let fits = COMMANDS.iter().filter(|(word, _)| !begun.contains(' ') && word.starts_with(begun));
        Ok((0, fits.map(|(word, _)| format!("{word} ")).collect()))
    }
}

/// Asks until `exit` or the end of the input.
pub(crate) async fn run(mut session: Session, mut kind: GroupKind) -> Result<ExitCode> {
    let mut editor: Editor<Words, FileHistory> = Editor::new()?;
    editor.set_helper(Some(Words));
    let history = std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".cg_history"));
    if let Some(path) = &history {
        // None yet, on the first time.
        drop(editor.load_history(path));
    }
    loop {
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
            ["help" | "?"] => COMMANDS.iter().for_each(|(word, rest)| println!("{word:<16} {rest}")),
            ["static"] => kind = GroupKind::Static,
            ["elastic"] => kind = GroupKind::Elastic,
            ["processing-time", time] => match duration(time) {
                Ok(time) => session.sleep = time,
                Err(error) => eprintln!("{error}"),
            },
            words => {
                if let Err(error) = one(&session, kind, words).await {
                    eprintln!("{error:#}");
                }
            }
        }
    }
    if let Some(path) = &history {
        editor.save_history(path)?;
    }
    Ok(ExitCode::SUCCESS)
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
