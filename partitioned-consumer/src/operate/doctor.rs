//! What is wrong with a group.

use async_nats::jetstream::{self, stream};
use serde::Serialize;

use super::report::base;
use crate::api::{self, code};
use crate::error::Error;
use crate::group::config::{ElasticConfig, Generation};
use crate::group::consumers::consumers_or_none;
use crate::group::dead_letter::{DeadLetterFault, check_shared};
use crate::group::elastic_group::{ElasticGroup, partitions_of_stream};
use crate::group::filter::filters_overlap;
use crate::group::kind::GroupKind;
use crate::group::membership::Membership;
use crate::group::name::GroupName;
use crate::group::source_loss::{self, SourceLoss};
use crate::group::static_group::{StaticGroup, StreamPartitions, no_partitions};

/// Something that is wrong with a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A short name for scripts: `uncovered`, `orphan`, `partitions-mismatch`,
    /// `overlapping-filters`, `old-generation`, `unmatched-filter`, `no-instance`,
    /// `surplus-member`, `stream-missing`, `paused`, `repartition-unfinished`, `copying-stopped`,
    /// `source-dropped`, `source-keeps-little`, `no-partitions`, `dead-letter-subject`,
    /// `dead-letter-loop`, `dead-letter-unstored`.
    pub code: &'static str,
    /// What it is, and what to do.
    pub text: String,
}

impl From<DeadLetterFault> for Finding {
    fn from(fault: DeadLetterFault) -> Self {
        let code = match fault {
            DeadLetterFault::Subject(_) => "dead-letter-subject",
            DeadLetterFault::Unstored(_) => "dead-letter-unstored",
            DeadLetterFault::Loop(_) => "dead-letter-loop",
        };
        Self { code, text: fault.text() }
    }
}

impl StaticGroup {
    /// What is wrong with the group; nothing, if all is well.
    ///
    /// # Errors
    /// As [`StaticGroup::config`].
    pub async fn doctor(&self) -> Result<Vec<Finding>, Error> {
        let config = self.config().await?;
        let mut findings = common(
            &self.context,
            GroupKind::Static,
            self.name(),
            &config.membership,
            config.partitions,
        )
        .await?;
        old_generation(config.generation, &mut findings);
        overlaps(config.filters.iter().map(String::as_str), &mut findings);
        let stream = api::check_stream(&self.context, self.name().stream()).await?;
        match StreamPartitions::of(&stream.config) {
            StreamPartitions::Written(written) if written != config.partitions => {
                findings.push(Finding {
                    code: "partitions-mismatch",
                    text: format!(
                        "the stream writes {written} partitions, the group has {}: some are never \
                     handled or always empty",
                        config.partitions
                    ),
                })
            }
            StreamPartitions::Impossible => {
                findings.push(Finding {
                    code: "no-partitions",
                    text: no_partitions(self.name().stream()),
                });
            }
            StreamPartitions::Written(_) | StreamPartitions::Unknown => {}
        }
        findings.extend(check_shared(self).await?.map(Finding::from));
        Ok(findings)
    }
}

impl ElasticGroup {
    /// What is wrong with the group; nothing, if all is well.
    ///
    /// # Errors
    /// As [`ElasticGroup::config`].
    pub async fn doctor(&self) -> Result<Vec<Finding>, Error> {
        let config = self.config().await?;
        let name = self.name();
        let queue = match api::stream_info(&self.context, &name.work_queue()).await {
            Ok(info) => info,
            Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => {
                let text = format!(
                    "stream {:?} is missing: delete the group and create it anew",
                    name.work_queue()
                );
                return Ok(vec![Finding { code: "stream-missing", text }]);
            }
            Err(error) => return Err(error.into_error("the work queue could not be looked up")),
        };
        let mut findings =
            common(&self.context, GroupKind::Elastic, name, &config.membership, config.partitions)
                .await?;
        old_generation(config.generation, &mut findings);
        overlaps(config.filters.iter().map(|f| f.filter.as_str()), &mut findings);
        match api::stream_info(&self.context, name.stream()).await {
            Ok(source) => unmatched(name, &config, &source.config, &mut findings),
            Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => {
                let text = format!("stream {:?} is missing: nothing new is copied", name.stream());
                findings.push(Finding { code: "stream-missing", text });
            }
            Err(error) => return Err(error.into_error("the source stream could not be looked up")),
        }
        if partitions_of_stream(&queue.config).is_some_and(|p| p != config.partitions) {
            findings.push(Finding {
                code: "partitions-mismatch",
                text: format!(
                    "stream {:?} writes another number of partitions than the group's {}: finish \
                     the repartition, or delete the group",
                    name.work_queue(),
                    config.partitions
                ),
            });
        }
        if queue.config.sources.as_ref().is_none_or(Vec::is_empty) {
            findings.push(Finding {
                code: "copying-stopped",
                text: format!(
                    "stream {:?} copies from nowhere: a reset or a repartition was cut off, give \
                     the same command again",
                    name.work_queue()
                ),
            });
        }
        self.find_losses(&mut findings).await?;
        findings.extend(check_shared(self).await?.map(Finding::from));
        if self.settings().await?.repartition.is_some() {
            findings.push(Finding {
                code: "repartition-unfinished",
                text:
                    "a change of the number of partitions was cut off: give the same command again"
                        .into(),
            });
        }
        Ok(findings)
    }
}

impl ElasticGroup {
    /// What the source stream dropped, and whether it will again.
    async fn find_losses(&self, findings: &mut Vec<Finding>) -> Result<(), Error> {
        let (context, name) = (&self.context, self.name());
        let Some(observation) = source_loss::observe(context, name, None).await? else {
            return Ok(());
        };
        let account = source_loss::read(context, name, &observation).await?;
        let SourceLoss { messages, exact, largest_lag_messages } = account.loss();
        if messages > 0 {
            findings.push(Finding {
                code: "source-dropped",
                text: format!(
                    "stream {:?} dropped {}{messages} messages before they were copied, and nobody \
                     handles them: let it keep more, or the group copy faster",
                    name.stream(),
                    if exact { "" } else { "about " },
                ),
            });
        }
        if let Some(kept) = account.keeps_too_few(&observation) {
            findings.push(Finding {
                code: "source-keeps-little",
                text: format!(
                    "the group was {largest_lag_messages} messages behind with copying once, and \
                     stream {:?} keeps {kept}: the next such lag loses messages",
                    name.stream()
                ),
            });
        }
        Ok(())
    }
}

async fn common(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
    membership: &Membership,
    partitions: u32,
) -> Result<Vec<Finding>, Error> {
    let report = base(context, kind, name, membership, partitions).await?;
    let mut findings = Vec::new();
    let mut find = |code, text| findings.push(Finding { code, text });
    let uncovered: Vec<u32> =
        report.by_partition.iter().filter(|p| p.owner.is_none()).map(|p| p.partition).collect();
    if !uncovered.is_empty() {
        find(
            "uncovered",
            format!("nobody handles {}: add members or mappings", listed(&uncovered)),
        );
    }
    for member in &report.members {
        if member.partitions.is_empty() {
            find(
                "surplus-member",
                format!(
                    "member {:?} has no partition: there are more members than partitions",
                    member.member
                ),
            );
        } else if !member.active {
            let wait = if member.partitions.len() == 1 { "waits" } else { "wait" };
            let text = format!(
                "member {:?} has no instance: {} {wait}",
                member.member,
                listed(&member.partitions)
            );
            find("no-instance", text);
        }
    }
    if report.settings.paused {
        find("paused", "the group is paused: resume it when its members may go on".into());
    }
    let names = membership.names();
    for info in consumers_or_none(context, &kind.consumed_stream(name)).await? {
        let ours = names.iter().any(|member| kind.consumer(name, member) == info.name);
        let orphan = match kind {
            GroupKind::Elastic => !ours,
            // Another group's name may begin with ours; only an entry can tell.
            GroupKind::Static => {
                let begins = info.name.starts_with(&format!("{}-", name.group()))
                    && !info.config.priority_groups.is_empty();
                begins && !ours && !owned_by_another(context, name, &info.name).await?
            }
        };
        if orphan {
            find(
                "orphan",
                format!(
                    "consumer {:?} belongs to no member: delete it, it holds messages back",
                    info.name
                ),
            );
        }
    }
    Ok(findings)
}

/// `partition 3`, or `partitions 3, 4`.
fn listed(partitions: &[u32]) -> String {
    let numbers = partitions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    format!("partition{} {numbers}", if partitions.len() == 1 { "" } else { "s" })
}

async fn owned_by_another(
    context: &jetstream::Context,
    name: &GroupName,
    consumer: &str,
) -> Result<bool, Error> {
    for group in StaticGroup::list(context, name.stream()).await? {
        let other = StaticGroup::new(context.clone(), name.stream(), &group)?;
        let Ok(config) = other.config().await else { continue };
        if group != name.group()
            && config
                .membership
                .names()
                .iter()
                .any(|member| other.name().durable(member) == consumer)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Filters that can never take anything. A stream that copies or renames its messages may hold any
/// subject.
fn unmatched(
    name: &GroupName,
    group: &ElasticConfig,
    source: &stream::Config,
    findings: &mut Vec<Finding>,
) {
    if source.subjects.is_empty() || source.sources.is_some() || source.subject_transform.is_some()
    {
        return;
    }
    for filter in group.filters.iter().map(|filter| &filter.filter) {
        if !source.subjects.iter().any(|subject| filters_overlap(subject, filter)) {
            let text =
                format!("filter {filter:?} matches no subject of stream {:?}", name.stream());
            findings.push(Finding { code: "unmatched-filter", text });
        }
    }
}

fn old_generation(generation: Generation, findings: &mut Vec<Finding>) {
    if generation == Generation::First {
        findings.push(Finding {
            code: "old-generation",
            text: "the entry was written by the older generation: its members pin under other \
                   names, do not mix them"
                .into(),
        });
    }
}

fn overlaps<'a>(filters: impl Iterator<Item = &'a str>, findings: &mut Vec<Finding>) {
    let filters: Vec<&str> = filters.collect();
    for (at, one) in filters.iter().enumerate() {
        for other in filters[..at].iter().filter(|other| filters_overlap(one, other)) {
            let text = format!(
                "filters {other:?} and {one:?} overlap: a message that both match is handled twice \
                 or refused"
            );
            findings.push(Finding { code: "overlapping-filters", text });
        }
    }
}
