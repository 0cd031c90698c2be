//! How a group stands: lag and activity per partition and per member.

use async_nats::jetstream;
use async_nats::jetstream::stream::RetentionPolicy;
use futures_util::TryStreamExt;
use serde::Serialize;

use super::count::count_from;
use crate::api;
use crate::error::{Error, ErrorKind};
use crate::group::config::{Generation, StaticConfig};
use crate::group::consumers::{consumers_or_none, is_active};
use crate::group::elastic_group::ElasticGroup;
use crate::group::filter::{PartitioningFilter, subject_matches};
use crate::group::kind::GroupKind;
use crate::group::membership::{MemberMapping, Membership};
use crate::group::name::GroupName;
use crate::group::partition::{owners, partitions_of, split_partition};
use crate::group::settings::{self, GroupSettings};
use crate::group::source_loss::SourceLoss;
use crate::group::static_group::StaticGroup;

/// A group as it stands now.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    /// `static` or `elastic`.
    pub kind: &'static str,
    /// The source stream.
    pub stream: String,
    /// The group.
    pub group: String,
    /// Which library generation wrote the entry.
    pub generation: Generation,
    /// How many partitions there are.
    pub partitions: u32,
    /// What is taken, without the partition; empty takes everything.
    pub filters: Vec<PartitioningFilter>,
    /// Limit of the work-queue stream, in messages; 0 for none.
    pub max_buffered_messages: i64,
    /// Limit of the work-queue stream, in bytes; 0 for none.
    pub max_buffered_bytes: i64,
    /// Names of a balanced group.
    pub balanced: Vec<String>,
    /// Mappings of a mapped group.
    pub mappings: Vec<MemberMapping>,
    /// Settings that only members of this library know.
    pub settings: GroupSettings,
    /// Messages of the source stream that were not copied yet (elastic).
    pub uncopied_messages: Option<u64>,
    /// What the source stream dropped before it was copied (elastic).
    pub source_loss: Option<SourceLoss>,
    /// Each member, in the order of the configuration.
    pub members: Vec<MemberReport>,
    /// Each partition.
    pub by_partition: Vec<PartitionReport>,
}

/// A member as it stands now.
#[derive(Clone, Debug, Serialize)]
pub struct MemberReport {
    /// Its name.
    pub member: String,
    /// Its partitions.
    pub partitions: Vec<u32>,
    /// Whether its consumer exists.
    pub joined: bool,
    /// Whether an instance waits for messages, or is pinned.
    pub active: bool,
    /// The pinned instance.
    pub pinned: Option<String>,
    /// Messages that wait, those that were delivered and not acknowledged included.
    pub lag_messages: u64,
    /// Messages that were delivered and not acknowledged.
    pub unacknowledged_messages: u64,
    /// When it last acknowledged something, in seconds since 1970.
    pub last_active_unix_s: Option<i64>,
}

/// A partition as it stands now.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionReport {
    /// Its number.
    pub partition: u32,
    /// Who owns it.
    pub owner: Option<String>,
    /// Messages that wait.
    pub lag_messages: u64,
    /// When its newest waiting (elastic) or stored (static) message was stored, in seconds since
    /// 1970.
    pub last_active_unix_s: Option<i64>,
}

impl GroupReport {
    /// A member without a consumer has what waits in its partitions all the same.
    fn add_up_absent_members(&mut self) {
        for member in self.members.iter_mut().filter(|member| !member.joined) {
            let theirs =
                member.partitions.iter().filter_map(|p| self.by_partition.get(*p as usize));
            member.lag_messages = theirs.map(|partition| partition.lag_messages).sum();
        }
    }
}

impl StaticGroup {
    /// How the group stands. It makes a short-lived consumer per partition to count what waits,
    /// unless the stream is a work queue.
    ///
    /// # Errors
    /// As [`StaticGroup::config`].
    pub async fn report(&self) -> Result<GroupReport, Error> {
        let config = self.config().await?;
        let filters = config.filters.iter().map(|f| PartitioningFilter::new(f, [])).collect();
        let mut report = base(
            &self.context,
            GroupKind::Static,
            self.name(),
            &config.membership,
            config.partitions,
        )
        .await?;
        report.generation = config.generation;
        report.filters = filters;
        let stream = self.name().stream().to_owned();
        let retention = api::check_stream(&self.context, &stream).await?.config.retention;
        if retention == RetentionPolicy::WorkQueue {
            // No consumer may be made to count, and whatever is there waits.
            let ours = |partition, subject: &str| {
                config
                    .filters_of_partition(partition)
                    .iter()
                    .any(|filter| subject_matches(filter, subject))
            };
            count_all(&self.context, &stream, &mut report, ours).await?;
        } else {
            self.count_by_consumers(&config, &mut report).await?;
        }
        add_newest(&self.context, &stream, &mut report).await?;
        report.add_up_absent_members();
        Ok(report)
    }

    async fn count_by_consumers(
        &self,
        config: &StaticConfig,
        report: &mut GroupReport,
    ) -> Result<(), Error> {
        let stream = self.name().stream();
        for member in report.members.clone() {
            let info =
                api::consumer_info(&self.context, stream, &self.name().durable(&member.member))
                    .await
                    .ok();
            let from = info.map_or(1, |info| info.ack_floor.stream_sequence + 1);
            for partition in member.partitions {
                let wanted = config.filters_of_partition(partition);
                let waiting = count_from(&self.context, stream, wanted, from).await?;
                report.by_partition[partition as usize].lag_messages = waiting;
            }
        }
        Ok(())
    }
}

impl ElasticGroup {
    /// How the group stands.
    ///
    /// # Errors
    /// As [`ElasticGroup::config`].
    pub async fn report(&self) -> Result<GroupReport, Error> {
        let config = self.config().await?;
        let name = self.name();
        let mut report =
            base(&self.context, GroupKind::Elastic, name, &config.membership, config.partitions)
                .await?;
        report.generation = config.generation;
        report.filters.clone_from(&config.filters);
        report.max_buffered_messages = config.max_buffered_messages;
        report.max_buffered_bytes = config.max_buffered_bytes;
        let queue = name.work_queue();
        report.uncopied_messages = api::stream_info(&self.context, &queue)
            .await
            .ok()
            .map(|i| i.sources.iter().map(|s| s.lag).sum());
        report.source_loss = self.source_loss().await?;
        count_all(&self.context, &queue, &mut report, |_, _| true).await?;
        add_newest(&self.context, &queue, &mut report).await?;
        report.add_up_absent_members();
        Ok(report)
    }
}

/// What is known of a group of either kind without counting anything.
pub(super) async fn base(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
    membership: &Membership,
    partitions: u32,
) -> Result<GroupReport, Error> {
    let consumers = consumers_or_none(context, &kind.consumed_stream(name)).await?;
    let members = membership.names().into_iter().map(|member| {
        let info = consumers.iter().find(|c| c.name == kind.consumer(name, &member));
        MemberReport {
            partitions: partitions_of(partitions, membership, &member),
            joined: info.is_some(),
            active: info.is_some_and(is_active),
            pinned: info.and_then(|c| {
                c.priority_groups
                    .iter()
                    .find_map(|g| g.pinned_client_id.clone().filter(|id| !id.is_empty()))
            }),
            lag_messages: info.map_or(0, |c| c.num_pending + c.num_ack_pending as u64),
            unacknowledged_messages: info.map_or(0, |c| c.num_ack_pending as u64),
            last_active_unix_s: info
                .and_then(|c| c.ack_floor.last_active)
                .map(|at| at.unix_timestamp()),
            member,
        }
    });
    let owners = owners(partitions, membership).into_iter().zip(0..);
    Ok(GroupReport {
        kind: kind.as_str(),
        stream: name.stream().to_owned(),
        group: name.group().to_owned(),
        generation: Generation::Current,
        partitions,
        filters: Vec::new(),
        max_buffered_messages: 0,
        max_buffered_bytes: 0,
        balanced: if let Membership::Balanced(names) = membership {
            names.clone()
        } else {
            Vec::new()
        },
        mappings: if let Membership::Mapped(mappings) = membership {
            mappings.clone()
        } else {
            Vec::new()
        },
        settings: settings::read(context, kind, name).await?,
        uncopied_messages: None,
        source_loss: None,
        members: members.collect(),
        by_partition: owners
            .map(|(owner, partition)| PartitionReport {
                partition,
                owner,
                lag_messages: 0,
                last_active_unix_s: None,
            })
            .collect(),
    })
}

/// Counts what is in a work-queue stream: it holds nothing but what waits. `ours` is asked with
/// partition and subject.
async fn count_all(
    context: &jetstream::Context,
    stream: &str,
    report: &mut GroupReport,
    ours: impl Fn(u32, &str) -> bool,
) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| {
        ErrorKind::Broker.with(format!("the work queue could not be counted: {error}"))
    };
    let stream = context.get_stream_no_info(stream).await.map_err(|error| failed(&error))?;
    let mut subjects = stream.info_with_subjects(">").await.map_err(|error| failed(&error))?;
    while let Some((subject, count)) = subjects.try_next().await.map_err(|error| failed(&error))? {
        let (Some(partition), _) = split_partition(&subject) else { continue };
        if let Some(report) = report.by_partition.get_mut(partition as usize)
            && ours(partition, &subject)
        {
            report.lag_messages += count as u64;
        }
    }
    Ok(())
}

async fn add_newest(
    context: &jetstream::Context,
    stream: &str,
    report: &mut GroupReport,
) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| {
        ErrorKind::Broker.with(format!("the stream could not be read: {error}"))
    };
    let stream = context.get_stream_no_info(stream).await.map_err(|error| failed(&error))?;
    for partition in &mut report.by_partition {
        let newest =
            stream.get_last_raw_message_by_subject(&format!("{}.>", partition.partition)).await;
        // An empty partition has none.
        partition.last_active_unix_s = newest.ok().map(|message| message.time.unix_timestamp());
    }
    Ok(())
}
