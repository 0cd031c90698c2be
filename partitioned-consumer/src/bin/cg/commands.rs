//! Does what was asked.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::stream;
use natsway_partitioned_consumer::{
    ElasticConfig, ElasticGroup, Group, GroupKind, MemberMapping, Membership, StaticConfig, StaticGroup,
};
use tokio_util::sync::CancellationToken;

use crate::args::{
    Common, CreateStatic, ElasticCommand, Group as Names, Mode, NewElastic, NewStatic, StaticCommand,
};
use crate::connect::Connection;
use crate::{consume, print, prompt, traffic};

/// What every command needs.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) json: bool,
    pub(crate) sleep: Duration,
    /// Ends `consume`; where there is none, a signal to the process does.
    pub(crate) stop: Option<CancellationToken>,
}

impl Session {
    pub(crate) fn group(&self, kind: GroupKind, group: &Names) -> Result<Group> {
        let Connection { jetstream, api_prefix } = &self.connection;
        Ok(Group::new(jetstream.clone(), kind, &group.stream, &group.group)?.api_prefix(api_prefix))
    }

    pub(crate) fn fixed(&self, group: &Names) -> Result<StaticGroup> {
        let Connection { jetstream, api_prefix } = &self.connection;
        Ok(StaticGroup::new(jetstream.clone(), &group.stream, &group.group)?.api_prefix(api_prefix))
    }

    pub(crate) fn elastic(&self, group: &Names) -> Result<ElasticGroup> {
        let Connection { jetstream, api_prefix } = &self.connection;
        Ok(ElasticGroup::new(jetstream.clone(), &group.stream, &group.group)?.api_prefix(api_prefix))
    }
}

/// Runs one invocation.
pub(crate) async fn run(connection: Connection, json: bool, command: Mode) -> Result<ExitCode> {
    let session = |sleep| Session { connection: connection.clone(), json, sleep, stop: None };
    match command {
        Mode::Static { work, command: StaticCommand::Common(Common::Prompt) } => {
            prompt::run(session(work.sleep), GroupKind::Static).await
        }
        Mode::Elastic { work, command: ElasticCommand::Common(Common::Prompt) } => {
            prompt::run(session(work.sleep), GroupKind::Elastic).await
        }
        Mode::Static { work, command } => fixed(&session(work.sleep), command).await,
        Mode::Elastic { work, command } => elastic(&session(work.sleep), command).await,
        Mode::Traffic(wanted) => traffic::run(&connection, &wanted).await,
    }
}

/// One command on a static group.
pub(crate) async fn fixed(session: &Session, command: StaticCommand) -> Result<ExitCode> {
    match command {
        StaticCommand::Common(command) => common(session, GroupKind::Static, command).await,
        StaticCommand::Create { command } => {
            let (new, mapped) = match command {
                CreateStatic::Balanced(new) => (new, false),
                CreateStatic::Mapped(new) => (new, true),
            };
            let config = static_config(&new, mapped)?;
            session.fixed(&new.group)?.create(&config).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn static_config(new: &NewStatic, mapped: bool) -> Result<StaticConfig> {
    // A wildcard can be no member's name; the published walk-through gives the filter there.
    let is_filter = |argument: &&String| argument.contains(['*', '>']);
    let filters = new.filters.iter().chain(new.members.iter().filter(is_filter));
    let members: Vec<String> = new.members.iter().filter(|m| !is_filter(m)).cloned().collect();
    if members.is_empty() {
        bail!("no member given: expected at least one {}", if mapped { "member:0,1,2" } else { "name" });
    }
    let membership =
        if mapped { Membership::Mapped(mappings(&members)?) } else { Membership::balanced(members) };
    // `>` takes everything, which is what no filter means, too.
    let filters: Vec<String> = filters.filter(|filter| *filter != ">").cloned().collect();
    Ok(StaticConfig::new(new.max_members, membership).filters(filters))
}

/// One command on an elastic group.
pub(crate) async fn elastic(session: &Session, command: ElasticCommand) -> Result<ExitCode> {
    match command {
        ElasticCommand::Common(command) => return common(session, GroupKind::Elastic, command).await,
        ElasticCommand::Create(new) => {
            let config = elastic_config(&new)?;
            session.elastic(&new.group)?.create(&config).await?;
        }
        ElasticCommand::Add(change) => {
            let members = session.elastic(&change.group)?.add_members(change.members).await?;
            print::members(session, "added", &members);
        }
        ElasticCommand::Drop(change) => {
            let members = session.elastic(&change.group)?.drop_members(change.members).await?;
            print::members(session, "dropped", &members);
        }
        ElasticCommand::Rebalance(change) => {
            let mappings = session.elastic(&change.group)?.set_members_sticky(change.members).await?;
            print::mappings(session, &mappings);
        }
        ElasticCommand::CreateMapping(change) => {
            let mappings = mappings(&change.mappings)?;
            session.elastic(&change.group)?.set_mappings(mappings.clone()).await?;
            print::mappings(session, &mappings);
        }
        ElasticCommand::DeleteMapping(group) => session.elastic(&group)?.delete_mappings().await?,
        ElasticCommand::Repartition { group, partitions, mappings: texts, limit } => {
            let group = session.elastic(&group)?;
            let done = if texts.is_empty() {
                group.repartition(partitions, limit).await?
            } else {
                group.repartition_mapped(partitions, mappings(&texts)?, limit).await?
            };
            print::repartitioned(session, &done);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Filters and their wildcards as given; what is missing is asked for.
fn elastic_config(new: &NewElastic) -> Result<ElasticConfig> {
    let mut config = ElasticConfig::new(new.max_members)
        .max_buffered_messages(new.max_buffered_msgs)
        .max_buffered_bytes(new.max_buffered_bytes);
    if new.wildcards.len() > new.filters.len() {
        bail!(
            "--wildcards: {} given for {} --filter: expected at most one each",
            new.wildcards.len(),
            new.filters.len()
        );
    }
    let mut given = new.wildcards.iter();
    for filter in &new.filters {
        let indexes = match given.next() {
            Some(indexes) => parse_indexes(indexes)?,
            None => ask_indexes(filter)?,
        };
        config = config.filter(filter, indexes);
    }
    while new.filters.is_empty() {
        let Some(filter) = ask("filter to partition by (empty line for no more)")? else { break };
        let indexes = ask_indexes(&filter)?;
        config = config.filter(filter, indexes);
    }
    Ok(config)
}

fn ask_indexes(filter: &str) -> Result<Vec<u32>> {
    let answer = ask(&format!(
        "wildcards of {filter} that make up the key, as 1 2 (empty line for the whole subject)"
    ))?;
    parse_indexes(&answer.unwrap_or_default())
}

fn parse_indexes(text: &str) -> Result<Vec<u32>> {
    let parts = text.split([' ', ',']).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            part.parse().with_context(|| format!("wildcard index {part:?}: expected a number from 1"))
        })
        .collect()
}

/// Asks a line; an empty one, or the end of the input, is no answer.
pub(crate) fn ask(question: &str) -> Result<Option<String>> {
    eprint!("{question}: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(Some(line.trim().to_owned()).filter(|line| !line.is_empty()))
}

fn mappings(texts: &[String]) -> Result<Vec<MemberMapping>> {
    let parse = |text: &String| {
        let expected = || format!("mapping {text:?}: expected member:0,1,2");
        let (member, partitions) = text.split_once(':').with_context(expected)?;
        let partitions: Result<Vec<u32>, _> = partitions.split(',').map(str::parse).collect();
        Ok(MemberMapping::new(member, partitions.with_context(expected)?))
    };
    texts.iter().map(parse).collect()
}

async fn common(session: &Session, kind: GroupKind, command: Common) -> Result<ExitCode> {
    let fixed = kind == GroupKind::Static;
    match command {
        Common::Ls { stream } => {
            let jetstream = &session.connection.jetstream;
            let groups = if fixed {
                StaticGroup::list(jetstream, &stream).await?
            } else {
                ElasticGroup::list(jetstream, &stream).await?
            };
            print::groups(session, kind, &groups);
        }
        Common::Info(group) => {
            let report = if fixed {
                session.fixed(&group)?.report().await?
            } else {
                session.elastic(&group)?.report().await?
            };
            print::report(session, &report)?;
        }
        Common::Doctor(group) => {
            let findings = if fixed {
                session.fixed(&group)?.doctor().await?
            } else {
                session.elastic(&group)?.doctor().await?
            };
            print::findings(session, &findings)?;
            return Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Common::Delete(delete) => {
            let question = format!(
                "delete {} group {} of stream {}? (y)",
                kind.as_str(),
                delete.group.group,
                delete.group.stream
            );
            if !delete.force && ask(&question)?.as_deref() != Some("y") {
                bail!("not deleted");
            }
            if fixed {
                session.fixed(&delete.group)?.delete().await?
            } else {
                session.elastic(&delete.group)?.delete().await?
            }
        }
        Common::MemberInfo(member) => {
            let (name, group) = (&member.member, session.group(kind, &member.group)?);
            let (included, active) = group.is_in_membership_and_active(name).await?;
            print::member(session, name, included, active);
        }
        Common::StepDown(member) => session.group(kind, &member.group)?.step_down(&member.member).await?,
        Common::Consume(wanted) => return consume::run(session, kind, &wanted).await,
        Common::Pause(group) => session.group(kind, &group)?.pause().await?,
        Common::Resume(group) => session.group(kind, &group)?.resume().await?,
        Common::DeadLetter(wanted) => {
            let edit = |settings: &mut natsway_partitioned_consumer::GroupSettings| {
                settings.dead_letter_subject = wanted.subject.clone().filter(|_| !wanted.off);
                settings.dead_letter_after = if wanted.off { 0 } else { wanted.after };
            };
            session.group(kind, &wanted.group)?.change_settings(edit).await?;
        }
        Common::Setup(wanted) => {
            let (source, partitions) = (format!("{}.*", wanted.stream), wanted.partitions);
            let destination =
                format!("{{{{partition({partitions},1)}}}}.{}.{{{{wildcard(1)}}}}", wanted.stream);
            let config = stream::Config {
                name: wanted.stream,
                subjects: vec![source.clone()],
                subject_transform: fixed.then_some(stream::SubjectTransform { source, destination }),
                ..Default::default()
            };
            let name = config.name.clone();
            session.connection.jetstream.create_stream(config).await.with_context(|| {
                format!(
                    "stream {name:?} could not be created; one of that name may be there for something else"
                )
            })?;
        }
        Common::Prompt => bail!("the prompt is open already"),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(members: &[&str]) -> NewStatic {
        let group = Names { stream: "foo".into(), group: "cg".into() };
        NewStatic {
            group,
            max_members: 3,
            members: members.iter().map(ToString::to_string).collect(),
            filters: Vec::new(),
        }
    }

    #[test]
    fn a_wildcard_among_the_members_is_a_filter() {
        let config = static_config(&new(&[">", "m1", "m2"]), false).unwrap();
        assert_eq!(config, StaticConfig::new(3, Membership::balanced(["m1", "m2"])));
        let config = static_config(&new(&["foo.*", "m1"]), false).unwrap();
        assert_eq!(config.filters, ["foo.*"]);
        assert!(static_config(&new(&[">"]), false).is_err());
    }

    #[test]
    fn mappings_say_what_is_wrong_with_them() {
        let config = static_config(&new(&["m1:0,2", "m2:1"]), true).unwrap();
        assert_eq!(config.partition_filters("m1"), ["0.>", "2.>"]);
        let error = static_config(&new(&["m1:0,x"]), true).unwrap_err();
        assert!(error.to_string().contains("\"m1:0,x\": expected member:0,1,2"), "{error}");
    }
}
