//! What the entry of a group means for a member: which filter subjects it has, and which changes it
//! can follow.

use async_nats::jetstream;

use crate::error::{Error, ErrorKind};
use crate::group::config::{ElasticConfig, Generation, StaticConfig};
use crate::group::entry;
use crate::group::kind::GroupKind;
use crate::group::name::GroupName;

/// The group that a member takes part in, read once at the start.
pub(super) enum GroupConfig {
    Static(StaticConfig),
    Elastic(ElasticConfig),
}

impl GroupConfig {
    /// Reads the entry of a group.
    pub(super) async fn read(
        context: &jetstream::Context,
        kind: GroupKind,
        name: &GroupName,
    ) -> Result<Self, Error> {
        Ok(match kind {
            GroupKind::Static => {
                Self::Static(entry::read(context, kind, name, StaticConfig::from_json).await?)
            }
            GroupKind::Elastic => {
                Self::Elastic(entry::read(context, kind, name, ElasticConfig::from_json).await?)
            }
        })
    }

    pub(super) fn kind(&self) -> GroupKind {
        match self {
            Self::Static(_) => GroupKind::Static,
            Self::Elastic(_) => GroupKind::Elastic,
        }
    }
}

/// What an entry means for one member.
pub(crate) struct Assignment {
    pub(super) group: GroupConfig,
    pub(super) member: String,
}

impl Assignment {
    /// Reads a new value of the entry: the filter subjects that the member has by it, none while it
    /// has no partitions.
    ///
    /// # Errors
    /// For an entry that cannot be read, or that a running member cannot follow.
    pub(crate) fn read(&self, json: &[u8]) -> Result<(Generation, Vec<String>), Error> {
        match &self.group {
            GroupConfig::Static(first) => {
                let now = StaticConfig::from_json(json)?;
                if now != *first {
                    return Err(changed(
                        "a static group's configuration was changed; delete and create it to \
                         change it",
                    ));
                }
                Ok((now.generation, now.partition_filters(&self.member)))
            }
            GroupConfig::Elastic(first) => {
                let now = ElasticConfig::from_json(json)?;
                if !first.same_shape(&now) {
                    return Err(changed(
                        "the group's partitions, filters or limits were changed; start the member \
                         again",
                    ));
                }
                Ok((now.generation, now.partition_filters(&self.member)))
            }
        }
    }
}

fn changed(text: &str) -> Error {
    ErrorKind::ConfigChanged.with(text)
}
