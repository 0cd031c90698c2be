//! Does what one command asks.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::stream;
use natsway_partitioned_consumer::{
    DeadLetter, ElasticConfig, ElasticGroup, Group, GroupKind, ResetTo,
};

use crate::args::{
    Common, CreateStatic, Delete, ElasticCommand, ResetPosition, Setup, StaticCommand,
};
use crate::ask::ask;
use crate::failure::Mistake;
use crate::new_group::{elastic_config, mappings, static_config};
use crate::session::Session;
use crate::{consume, print};

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

/// One command on an elastic group.
pub(crate) async fn elastic(session: &Session, command: ElasticCommand) -> Result<ExitCode> {
    match command {
        ElasticCommand::Common(command) => {
            return common(session, GroupKind::Elastic, command).await;
        }
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
            let mappings =
                session.elastic(&change.group)?.set_members_sticky(change.members).await?;
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

fn place(place: &ResetPosition) -> Result<ResetTo> {
    match (place.to_seq, place.to_time, place.to_new) {
        (Some(sequence), None, false) => Ok(ResetTo::Sequence(sequence)),
        (None, Some(time), false) => Ok(ResetTo::Time(time)),
        (None, None, true) => Ok(ResetTo::New),
        _ => Err(Mistake("expected one of --to-seq, --to-time and --to-new".into()).into()),
    }
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
        "cg: warning: stream {stream} {limits}; {when} what it drops before it is copied is never \
         handled (`cg elastic doctor` tells how much)"
    );
    Ok(())
}

/// One command that groups of both kinds have.
async fn common(session: &Session, kind: GroupKind, command: Common) -> Result<ExitCode> {
    let jetstream = &session.connection.jetstream;
    match command {
        Common::Ls { stream: None } => {
            print::groups_of_all(session, kind, &Group::list_all(jetstream, kind).await?);
        }
        Common::Ls { stream: Some(stream) } => {
            print::groups(session, kind, &Group::list(jetstream, kind, &stream).await?);
        }
        Common::Info(group) => {
            print::report(session, &session.group(kind, &group)?.report().await?)?
        }
        Common::Doctor(group) => {
            let findings = session.group(kind, &group)?.doctor().await?;
            print::findings(session, &findings)?;
            return Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Common::Delete(wanted) => delete(session, kind, &wanted).await?,
        Common::MemberInfo(member) => {
            let (name, group) = (&member.member, session.group(kind, &member.group)?);
            let (included, active) = group.is_in_membership_and_active(name).await?;
            print::member(session, name, included, active);
        }
        Common::StepDown(member) => {
            session.group(kind, &member.group)?.step_down(&member.member).await?
        }
        Common::Consume(wanted) => return consume::run(session, kind, &wanted).await,
        Common::Pause(group) => session.group(kind, &group)?.pause().await?,
        Common::Resume(group) => session.group(kind, &group)?.resume().await?,
        Common::DeadLetter(wanted) => {
            let subject = wanted.subject.filter(|_| !wanted.off);
            let letter =
                subject.map(|subject| DeadLetter { after_deliveries: wanted.after, subject });
            session.group(kind, &wanted.group)?.set_dead_letter(letter).await?;
        }
        Common::Reset(wanted) => {
            let to = place(&wanted.place)?;
            let report = session.group(kind, &wanted.group)?.reset(to, wanted.dry_run).await?;
            print::reset(session, &report, wanted.dry_run)?;
        }
        Common::Setup(wanted) => set_up(session, kind, wanted).await?,
        Common::Prompt => bail!("the prompt is open already"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn delete(session: &Session, kind: GroupKind, wanted: &Delete) -> Result<()> {
    let Delete { group, force } = wanted;
    let question =
        format!("delete {} group {} of stream {}? (y)", kind.as_str(), group.group, group.stream);
    if !force && ask(&question)?.as_deref() != Some("y") {
        bail!("not deleted");
    }
    Ok(session.group(kind, group)?.delete().await?)
}

/// Creates a stream to try groups with. For a static group it writes the partition itself.
async fn set_up(session: &Session, kind: GroupKind, wanted: Setup) -> Result<()> {
    let (source, partitions) = (format!("{}.*", wanted.stream), wanted.partitions);
    let destination =
        format!("{{{{partition({partitions},1)}}}}.{}.{{{{wildcard(1)}}}}", wanted.stream);
    let subjects = vec![source.clone()];
    let transform = stream::SubjectTransform { source, destination };
    let config = stream::Config {
        name: wanted.stream,
        subjects,
        subject_transform: (kind == GroupKind::Static).then_some(transform),
        ..Default::default()
    };
    let name = config.name.clone();
    session.connection.jetstream.create_stream(config).await.with_context(|| {
        format!(
            "stream {name:?} could not be created; one of that name may be there for something else"
        )
    })?;
    Ok(())
}
