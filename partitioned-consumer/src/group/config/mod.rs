//! The configuration of a group, as it is stored: both kinds, both generations, and the rules they
//! must keep.

use serde::{Deserialize, Serialize};

use super::filter::{PartitioningFilter, check_filter_subject, filters_overlap};
use super::json::null_as_default;
use super::membership::{MemberMapping, Membership, MembershipFields};
use super::name::check_member;
use super::partition::{MAX_PARTITIONS, partition_of_key, partitions_of};
use crate::error::{Error, ErrorKind};

mod document;

pub(crate) use document::Document;

/// Which library generation wrote an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// One `filter` per group; members pin under their own name. Read and consumed, never
    /// rewritten.
    First,
    /// Lists of filters; members pin under one constant name.
    #[default]
    Current,
}

/// A static group: its stream's subjects already begin with the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticConfig {
    /// How many partitions the stream's subjects carry.
    pub partitions: u32,
    /// Subjects, without the partition; empty takes all.
    pub filters: Vec<String>,
    /// Who gets what.
    pub membership: Membership,
    /// Which library generation wrote it.
    pub generation: Generation,
}

/// An elastic group: members come and go, and a work-queue stream carries the partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElasticConfig {
    /// How many partitions the work-queue stream's subjects carry.
    pub partitions: u32,
    /// What is taken from the stream; empty takes every subject, hashed whole.
    pub filters: Vec<PartitioningFilter>,
    /// Messages the work-queue stream holds before copying pauses; 0 or less is no limit.
    pub max_buffered_messages: i64,
    /// Bytes the work-queue stream holds before copying pauses; 0 or less is no limit.
    pub max_buffered_bytes: i64,
    /// Who gets what.
    pub membership: Membership,
    /// Which library generation wrote it.
    pub generation: Generation,
}

impl StaticConfig {
    /// A group of `partitions` spread by `membership`, taking every subject.
    pub fn new(partitions: u32, membership: Membership) -> Self {
        Self { partitions, filters: Vec::new(), membership, generation: Generation::Current }
    }

    /// Takes only subjects that match one of the filters (given without the partition).
    #[must_use]
    pub fn filters<S: Into<String>>(mut self, filters: impl IntoIterator<Item = S>) -> Self {
        self.filters = filters.into_iter().map(Into::into).collect();
        self
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptEntry`] for text that is not such an entry, [`ErrorKind::InvalidConfig`]
    /// for one that breaks a rule.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let stored: Stored = parse(json)?;
        let (filters, generation) = match stored.filter {
            Some(filter) => {
                (Some(filter).filter(|f| !f.is_empty()).into_iter().collect(), Generation::First)
            }
            None => (stored.filters, Generation::Current),
        };
        check_one_distribution(&stored.members, &stored.member_mappings)?;
        let membership = Membership::from_parts(stored.members, stored.member_mappings);
        let config = Self { partitions: stored.max_members, filters, membership, generation };
        config.check().map(|()| config)
    }

    /// The entry in the current generation's JSON.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Entry<'a> {
            max_members: u32,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            filters: &'a [String],
            #[serde(flatten)]
            membership: MembershipFields<'a>,
        }
        let membership = MembershipFields::of(&self.membership);
        to_json(&Entry { max_members: self.partitions, filters: &self.filters, membership })
    }

    /// Checks every rule that applies on each read and on each watched change.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming every fault at once.
    pub fn check(&self) -> Result<(), Error> {
        report(
            partition_faults(self.partitions)
                .unwrap_or_else(|| self.membership.faults(self.partitions)),
        )
    }

    /// What creating a group also asks for: usable filters that do not overlap, and member names.
    pub(crate) fn check_new(&self) -> Result<(), Error> {
        self.check()?;
        check_each_once(&self.membership)?;
        self.filters.iter().try_for_each(|f| check_filter_subject(f))?;
        // Members of a mapped group take whole partitions, whatever the filters say.
        if !matches!(self.membership, Membership::Mapped(_)) {
            check_apart(
                self.filters.iter().map(String::as_str),
                "the broker refuses consumers with both",
            )?;
        }
        self.membership.names().iter().try_for_each(|name| check_member(name))
    }

    /// The filter subjects of a member's consumer, in the order in which every implementation lists
    /// them.
    pub fn partition_filters(&self, member: &str) -> Vec<String> {
        let filters: Vec<&str> = self.filters.iter().map(String::as_str).collect();
        partition_filters(self.generation, self.partitions, &filters, &self.membership, member)
    }

    /// Lists the subjects of one partition that the group takes.
    pub(crate) fn filters_of_partition(&self, partition: u32) -> Vec<String> {
        if self.filters.is_empty() || matches!(self.membership, Membership::Mapped(_)) {
            return vec![format!("{partition}.>")];
        }
        self.filters.iter().map(|filter| format!("{partition}.{filter}")).collect()
    }
}

impl ElasticConfig {
    /// A group of `partitions` without members, taking every subject of its stream.
    pub fn new(partitions: u32) -> Self {
        Self {
            partitions,
            filters: Vec::new(),
            max_buffered_messages: 0,
            max_buffered_bytes: 0,
            membership: Membership::Empty,
            generation: Generation::Current,
        }
    }

    /// Also takes subjects that match `filter`, keyed by the given `*` tokens (counted from 1; none
    /// hashes the whole subject).
    #[must_use]
    pub fn filter(
        mut self,
        filter: impl Into<String>,
        wildcards: impl IntoIterator<Item = u32>,
    ) -> Self {
        self.filters.push(PartitioningFilter::new(filter, wildcards));
        self
    }

    /// Pauses copying while the work-queue stream holds this many messages.
    #[must_use]
    pub fn max_buffered_messages(mut self, messages: i64) -> Self {
        self.max_buffered_messages = messages;
        self
    }

    /// Pauses copying while the work-queue stream holds this many bytes.
    #[must_use]
    pub fn max_buffered_bytes(mut self, bytes: i64) -> Self {
        self.max_buffered_bytes = bytes;
        self
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptEntry`] for text that is not such an entry, [`ErrorKind::InvalidConfig`]
    /// for one that breaks a rule.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let stored: Stored = parse(json)?;
        let (filters, generation) = match stored.filter {
            Some(filter) => (
                vec![PartitioningFilter { filter, wildcards: stored.partitioning_wildcards }],
                Generation::First,
            ),
            None => (stored.partitioning_filters, Generation::Current),
        };
        check_one_distribution(&stored.members, &stored.member_mappings)?;
        let config = Self {
            partitions: stored.max_members,
            filters,
            max_buffered_messages: stored.max_buffered_msg,
            max_buffered_bytes: stored.max_buffered_bytes,
            membership: Membership::from_parts(stored.members, stored.member_mappings),
            generation,
        };
        config.check().map(|()| config)
    }

    /// The entry in the current generation's JSON.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Entry<'a> {
            max_members: u32,
            partitioning_filters: Option<&'a [PartitioningFilter]>,
            #[serde(skip_serializing_if = "is_zero")]
            max_buffered_msg: i64,
            #[serde(skip_serializing_if = "is_zero")]
            max_buffered_bytes: i64,
            #[serde(flatten)]
            membership: MembershipFields<'a>,
        }
        to_json(&Entry {
            max_members: self.partitions,
            // The other implementation writes null here, and tells null from an empty list.
            partitioning_filters: Some(self.filters.as_slice()).filter(|f| !f.is_empty()),
            max_buffered_msg: self.max_buffered_messages,
            max_buffered_bytes: self.max_buffered_bytes,
            membership: MembershipFields::of(&self.membership),
        })
    }

    /// Checks every rule that applies on each read and on each watched change.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming every fault at once.
    pub fn check(&self) -> Result<(), Error> {
        let mut faults = partition_faults(self.partitions)
            .unwrap_or_else(|| self.membership.faults(self.partitions));
        faults.extend(self.filters.iter().flat_map(PartitioningFilter::faults));
        report(faults)
    }

    /// What creating a group also asks for: well-formed filters that do not overlap, and usable
    /// member names.
    pub(crate) fn check_new(&self) -> Result<(), Error> {
        self.check()?;
        check_each_once(&self.membership)?;
        self.filters.iter().try_for_each(|f| check_filter_subject(&f.filter))?;
        let filters = self.filters.iter().map(|f| f.filter.as_str());
        check_apart(filters, "a message that both match would have two keys")?;
        self.membership.names().iter().try_for_each(|name| check_member(name))
    }

    /// The filter subjects of a member's consumer, in the order in which every implementation lists
    /// them.
    pub fn partition_filters(&self, member: &str) -> Vec<String> {
        let filters: Vec<&str> = self.filters.iter().map(|f| f.filter.as_str()).collect();
        partition_filters(self.generation, self.partitions, &filters, &self.membership, member)
    }

    /// Which partition a subject of the source stream belongs to; `None` when no filter takes it.
    pub fn partition_of(&self, subject: &str) -> Option<u32> {
        if self.filters.is_empty() {
            return Some(partition_of_key([subject], self.partitions));
        }
        self.filters.iter().find_map(|filter| filter.partition_of(subject, self.partitions))
    }

    /// Whether a running member can follow the change from `self` to `other`: only the membership
    /// may differ.
    pub(crate) fn same_shape(&self, other: &Self) -> bool {
        Self { membership: Membership::Empty, ..self.clone() }
            == Self { membership: Membership::Empty, ..other.clone() }
    }
}

fn partition_filters(
    generation: Generation,
    partitions: u32,
    filters: &[&str],
    membership: &Membership,
    member: &str,
) -> Vec<String> {
    let owned = partitions_of(partitions, membership, member);
    // Mappings take whole partitions whatever the filters say; one subject each, or the server
    // refuses the list.
    let whole = filters.is_empty()
        || generation == Generation::First
        || matches!(membership, Membership::Mapped(_));
    let filters = if whole { &[">"][..] } else { filters };
    filters.iter().flat_map(|filter| owned.iter().map(move |p| format!("{p}.{filter}"))).collect()
}

/// The text form of either kind: what the two generations write, unknown fields ignored, null read
/// as absent.
#[derive(Deserialize)]
struct Stored {
    max_members: u32,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    filters: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    partitioning_filters: Vec<PartitioningFilter>,
    #[serde(default, deserialize_with = "null_as_default")]
    partitioning_wildcards: Vec<u32>,
    #[serde(default)]
    max_buffered_msg: i64,
    #[serde(default)]
    max_buffered_bytes: i64,
    #[serde(default, deserialize_with = "null_as_default")]
    members: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    member_mappings: Vec<MemberMapping>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn parse(json: &[u8]) -> Result<Stored, Error> {
    serde_json::from_slice(json).map_err(|error| {
        ErrorKind::CorruptEntry.caused("the entry is not the JSON of a consumer group", error)
    })
}

fn to_json(entry: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(entry).expect("plain structs with string keys serialize")
}

fn check_one_distribution(members: &[String], mappings: &[MemberMapping]) -> Result<(), Error> {
    if members.is_empty() || mappings.is_empty() {
        return Ok(());
    }
    Err(ErrorKind::InvalidConfig
        .with("both members and member_mappings are set: expected at most one of them"))
}

/// Refuses a name that is given twice: somebody meant two.
fn check_each_once(membership: &Membership) -> Result<(), Error> {
    let Membership::Balanced(names) = membership else { return Ok(()) };
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some((_, name)) => Err(ErrorKind::InvalidConfig
            .with(format!("members: {name:?} is given twice: expected each once"))),
        None => Ok(()),
    }
}

/// Refuses filters of which two match the same subject.
fn check_apart<'a>(filters: impl Iterator<Item = &'a str> + Clone, why: &str) -> Result<(), Error> {
    for (at, filter) in filters.clone().enumerate() {
        if let Some(other) = filters.clone().take(at).find(|other| filters_overlap(other, filter)) {
            let text = format!("filters {other:?} and {filter:?} overlap: {why}");
            return Err(ErrorKind::InvalidConfig.with(text));
        }
    }
    Ok(())
}

fn partition_faults(partitions: u32) -> Option<Vec<String>> {
    let bad = partitions == 0 || partitions > MAX_PARTITIONS;
    bad.then(|| vec![format!("max_members {partitions}: expected 1..={MAX_PARTITIONS}")])
}

fn report(faults: Vec<String>) -> Result<(), Error> {
    if faults.is_empty() { Ok(()) } else { Err(ErrorKind::InvalidConfig.with(faults.join("; "))) }
}
