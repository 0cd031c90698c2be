//! One line of the prompt, read as a command line is.

use anyhow::Result;
use clap::Subcommand;
use natsway_partitioned_consumer::GroupKind;

use crate::args::{Common, Consume, ElasticCommand, StaticCommand};
use crate::ask::ask;
use crate::commands::{elastic, fixed};
use crate::session::Session;

/// Runs one line; arguments that are missing are asked for one by one.
pub(super) async fn run(session: &Session, kind: GroupKind, words: &[&str]) -> Result<()> {
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
    let command = C::augment_subcommands(
        clap::Command::new("cg").no_binary_name(true).disable_version_flag(true),
    );
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
        let time = session.sleep;
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
