//! Settings of a group that are ours alone: paused or not, and where poison messages go.
//!
//! They live in a bucket of their own, because members written in Go drop fields that they do not
//! know when they rewrite a group's entry, and list every key of the groups' buckets as a group.

use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use natsway_stores::definitions;
use serde::{Deserialize, Serialize};

use super::entry::WRITE_ATTEMPTS;
use super::kind::GroupKind;
use super::membership::MemberMapping;
use super::name::GroupName;
use crate::api;
use crate::error::{Error, ErrorKind};

/// The bucket of the settings; the key is `<kind>.<stream>.<group>`.
pub(crate) use natsway_stores::definitions::GROUP_SETTINGS as BUCKET;

/// Where poison messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Deliveries that a message gets before it is moved; hand-overs and take-overs count as
    /// deliveries too.
    pub after_deliveries: u64,
    /// The subject to publish to. It needs a stream: a message is only given up once it is stored
    /// there.
    pub subject: String,
}

/// What a repartition has to remember to be finished by somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RepartitionJournal {
    pub(crate) partitions: u32,
    pub(crate) members: Vec<String>,
    /// Which partitions they get at the end; balanced where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mappings: Vec<MemberMapping>,
    /// Where copying stopped; absent until it has.
    pub(crate) cut: Option<u64>,
}

/// What only members of this library know about a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSettings {
    /// Nothing new is handled while this is set. Members of this library heed it; members written
    /// in Go do not.
    #[serde(default)]
    pub paused: bool,
    /// Deliveries that a message gets before it is moved to `dead_letter_subject`; 0 for ever.
    #[serde(default)]
    pub dead_letter_after: u64,
    /// Where messages go that were delivered so often.
    #[serde(default)]
    pub dead_letter_subject: Option<String>,
    /// A change of the number of partitions that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repartition: Option<RepartitionJournal>,
}

impl GroupSettings {
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(json).map_err(|error| {
            ErrorKind::CorruptEntry.caused("the group's settings are not JSON", error)
        })
    }

    pub(crate) fn dead_letter(&self) -> Option<DeadLetter> {
        let subject = self.dead_letter_subject.clone()?;
        (self.dead_letter_after > 0)
            .then_some(DeadLetter { after_deliveries: self.dead_letter_after, subject })
    }
}

pub(crate) fn key(kind: GroupKind, name: &GroupName) -> String {
    format!("{}.{}", kind.as_str(), name.key())
}

/// The settings of a group; defaults where nobody ever set any.
pub(crate) async fn read(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
) -> Result<GroupSettings, Error> {
    let Ok(store) = context.get_key_value(BUCKET).await else {
        return Ok(GroupSettings::default());
    };
    let value = store.get(key(kind, name)).await;
    match value.map_err(|error| {
        ErrorKind::Broker.caused("the group's settings could not be read", error)
    })? {
        Some(json) => GroupSettings::from_json(&json),
        None => Ok(GroupSettings::default()),
    }
}

/// Changes the settings of a group; two writers at once lose nothing.
pub(crate) async fn change(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
    edit: impl Fn(&mut GroupSettings) + Send,
) -> Result<GroupSettings, Error> {
    let store = open(context, name).await?;
    for _ in 0..WRITE_ATTEMPTS {
        let failed = |error: kv::EntryError| {
            ErrorKind::Broker.caused("the group's settings could not be read", error)
        };
        let entry = store.entry(key(kind, name)).await.map_err(failed)?;
        let present = entry.as_ref().filter(|e| e.operation == kv::Operation::Put);
        let mut settings = present
            .map_or_else(|| Ok(GroupSettings::default()), |e| GroupSettings::from_json(&e.value))?;
        edit(&mut settings);
        let json = Bytes::from(serde_json::to_vec(&settings).expect("plain fields serialize"));
        let revision = entry.map_or(0, |e| e.revision);
        match store.update(key(kind, name), json, revision).await {
            Ok(_) => return Ok(settings),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => {
                return Err(
                    ErrorKind::Broker.caused("the group's settings could not be written", error)
                );
            }
        }
    }
    Err(ErrorKind::Conflict.with("the group's settings kept changing under the write; try again"))
}

pub(crate) async fn delete(
    context: &jetstream::Context,
    kind: GroupKind,
    name: &GroupName,
) -> Result<(), Error> {
    let Ok(store) = context.get_key_value(BUCKET).await else { return Ok(()) };
    let deleted = store.delete(key(kind, name)).await;
    deleted.map_err(|error| {
        ErrorKind::Broker.caused("the group's settings could not be deleted", error)
    })
}

/// The bucket, made where there is none as safe as the group's stream.
pub(crate) async fn open(
    context: &jetstream::Context,
    name: &GroupName,
) -> Result<kv::Store, Error> {
    let replicas = api::replicas_of(context, name.stream()).await;
    let opened = natsway_stores::open_or_make(context, definitions::group_settings(replicas)).await;
    opened.map_err(|error| {
        ErrorKind::Broker.caused("the bucket of group settings could not be opened", error)
    })
}
