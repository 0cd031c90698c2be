//! The two kinds of groups, and what each calls its things.

use natsway_stores::definitions;

use super::name::GroupName;

/// The two kinds of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// Fixed membership, consumers on the stream itself.
    Static,
    /// Membership that changes, consumers on a work-queue stream.
    Elastic,
}

impl GroupKind {
    /// `static` or `elastic`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Elastic => "elastic",
        }
    }

    /// The bucket that holds the groups of this kind.
    pub fn bucket(self) -> &'static str {
        match self {
            Self::Static => definitions::STATIC_GROUPS,
            Self::Elastic => definitions::ELASTIC_GROUPS,
        }
    }

    /// The stream that members consume.
    pub(crate) fn consumed_stream(self, name: &GroupName) -> String {
        match self {
            Self::Static => name.stream().to_owned(),
            Self::Elastic => name.work_queue(),
        }
    }

    /// The consumer of a member on that stream.
    pub(crate) fn consumer(self, name: &GroupName, member: &str) -> String {
        match self {
            Self::Static => name.durable(member),
            Self::Elastic => member.to_owned(),
        }
    }
}
