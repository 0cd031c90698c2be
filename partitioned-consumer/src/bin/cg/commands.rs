//! Does what was asked.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::stream;
use natsway_partitioned_consumer::{
    DeadLetter, ElasticConfig, ElasticGroup, Group, GroupKind, MemberMapping, Membership, ResetTo,
    StaticConfig, StaticGroup,
};
use tokio_util::sync::CancellationToken;

use crate::args::{
    Common, CreateStatic, ElasticCommand, Group as Names, Mode, NewElastic, NewStatic, Place, StaticCommand,
};
use crate::connect::Connection;
use crate::{Mistake, consume, print, prompt, traffic};

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
        Mode::Completions { .. } => Ok(ExitCode::SUCCESS),
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
        let one = if mapped { "member:0,1,2" } else { "name" };
        return Err(Mistake(format!("no member given: expected at least one {one}")).into());
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
            let group = session.elastic(&new.group)?;
            group.create(&config).await?;
            warn_of_losses(&group, &config).await?;
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
        let (indexes, filters) = (new.wildcards.len(), new.filters.len());
        let text = format!("--wildcards: {indexes} given for {filters} --filter: expected at most one each");
        return Err(Mistake(text).into());
    }
    let mut given = new.wildcards.iter();
    for filter in &new.filters {
        let indexes = match given.next() {
            Some(indexes) => parse_indexes(indexes)?,
            None => ask_indexes(filter)?,
        };
        config = config.filter(filter, indexes);
    }
    let mut nobody = "no --filter is given, and nobody is there to ask: give --filter and --wildcards, or --filter '>' \
                      --wildcards '' to take everything by its whole subject";
    while new.filters.is_empty() {
        let question = "filter to partition by (empty line for no more)";
        let Some(filter) = answer(question, nobody)? else { break };
        nobody = "";
        let indexes = ask_indexes(&filter)?;
        config = config.filter(filter, indexes);
    }
    Ok(config)
}

fn ask_indexes(filter: &str) -> Result<Vec<u32>> {
    // Without a `*` the whole subject is all that there is.
    if !filter.split('.').any(|token| token == "*") {
        return Ok(Vec::new());
    }
    let question =
        format!("wildcards of {filter} that make up the key, as 1 2 (empty line for the whole subject)");
    let nobody = format!(
        "no --wildcards are given for {filter}, and nobody is there to ask: give --wildcards 1, say, or --wildcards '' for \
         the whole subject"
    );
    parse_indexes(&answer(&question, &nobody)?.unwrap_or_default())
}

/// Asks a line, of somebody who has to be there; without `nobody`, the end of the input is an empty line.
fn answer(question: &str, nobody: &str) -> Result<Option<String>> {
    match ask_line(question)? {
        None if !nobody.is_empty() => Err(Mistake(nobody.to_owned()).into()),
        line => Ok(line.filter(|line| !line.is_empty())),
    }
}

fn parse_indexes(text: &str) -> Result<Vec<u32>> {
    let parts = text.split([' ', ',']).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            part.parse()
                .map_err(|_| Mistake(format!("wildcard index {part:?}: expected a number from 1")).into())
        })
        .collect()
}

/// Asks a line; an empty one, or the end of the input, is no answer.
pub(crate) fn ask(question: &str) -> Result<Option<String>> {
    Ok(ask_line(question)?.filter(|line| !line.is_empty()))
}

/// Asks a line; `None` at the end of the input.
fn ask_line(question: &str) -> Result<Option<String>> {
    eprint!("{question}: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim().to_owned()))
}

fn mappings(texts: &[String]) -> Result<Vec<MemberMapping>> {
    let parse = |text: &String| {
        let expected = format!("mapping {text:?}: expected member:0,1,2");
        let Some((member, partitions)) = text.split_once(':') else { return Err(Mistake(expected).into()) };
        let partitions: Result<Vec<u32>, _> = partitions.split(',').map(str::parse).collect();
        let partitions = partitions.map_err(|error| Mistake(format!("{expected}: {error}")))?;
        Ok(MemberMapping::new(member, partitions))
    };
    texts.iter().map(parse).collect()
}

/// A limit that drops messages before they are copied shows late, and then it is too late.
async fn warn_of_losses(group: &ElasticGroup, config: &ElasticConfig) -> Result<()> {
    let Some(limits) = group.source_may_drop().await? else { return Ok(()) };
    let stream = group.name().stream();
    let pauses = config.max_buffered_messages > 0 || config.max_buffered_bytes > 0;
    let when = if pauses {
        "copying pauses while the work queue is at its limit, and"
    } else {
        "where the group is further behind with copying,"
    };
    eprintln!(
        "cg: warning: stream {stream} {limits}; {when} what it drops before it is copied is never handled (`cg elastic doctor` \
         tells how much)"
    );
    Ok(())
}

fn place(place: &Place) -> Result<ResetTo> {
    match (place.to_seq, place.to_time, place.to_new) {
        (Some(sequence), None, false) => Ok(ResetTo::Sequence(sequence)),
        (None, Some(time), false) => Ok(ResetTo::Time(time)),
        (None, None, true) => Ok(ResetTo::New),
        _ => Err(Mistake("expected one of --to-seq, --to-time and --to-new".into()).into()),
    }
}

async fn common(session: &Session, kind: GroupKind, command: Common) -> Result<ExitCode> {
    let fixed = kind == GroupKind::Static;
    match command {
        Common::Ls { stream: None } => {
            let groups = Group::list_all(&session.connection.jetstream, kind).await?;
            print::groups_of_all(session, kind, &groups);
        }
        Common::Ls { stream: Some(stream) } => {
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
            let subject = wanted.subject.filter(|_| !wanted.off);
            let letter = subject.map(|subject| DeadLetter { after_deliveries: wanted.after, subject });
            session.group(kind, &wanted.group)?.set_dead_letter(letter).await?;
        }
        Common::Reset(wanted) => {
            let to = place(&wanted.place)?;
            let report = if fixed {
                session.fixed(&wanted.group)?.reset(to, wanted.dry_run).await?
            } else {
                session.elastic(&wanted.group)?.reset(to, wanted.dry_run).await?
            };
            print::reset(session, &report, wanted.dry_run)?;
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
