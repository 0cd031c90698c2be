//! A group of either kind: its names and the connection, and what both kinds have in common.

use async_nats::jetstream;

use super::config::{ElasticConfig, StaticConfig};
use super::kind::GroupKind;
use super::membership::Membership;
use super::name::GroupName;
use super::settings::{self, GroupSettings};
use super::{consumers, entry};
use crate::error::Error;

/// A group of either kind. [`StaticGroup`](crate::StaticGroup) and
/// [`ElasticGroup`](crate::ElasticGroup) dereference to it.
///
/// It is cheap to clone and holds nothing but the names and the connection.
#[derive(Clone)]
pub struct Group {
    pub(crate) context: jetstream::Context,
    pub(crate) api_prefix: String,
    pub(crate) kind: GroupKind,
    pub(crate) name: GroupName,
}

impl Group {
    /// Names a group; it need not exist yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`](crate::ErrorKind::InvalidName).
    pub fn new(
        context: jetstream::Context,
        kind: GroupKind,
        stream: &str,
        group: &str,
    ) -> Result<Self, Error> {
        Ok(Self {
            context,
            api_prefix: "$JS.API".into(),
            kind,
            name: GroupName::new(stream, group)?,
        })
    }

    /// The prefix of the JetStream API, where the context was made with another than `$JS.API`.
    #[must_use]
    pub fn api_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.api_prefix = prefix.into();
        self
    }

    /// The groups of one kind on a stream, in order of their names.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker),
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout).
    pub async fn list(
        context: &jetstream::Context,
        kind: GroupKind,
        stream: &str,
    ) -> Result<Vec<String>, Error> {
        entry::list(context, kind, stream).await
    }

    /// The groups of one kind on all streams, in order of their names. Entries that are not named
    /// like a group are left out.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker),
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout).
    pub async fn list_all(
        context: &jetstream::Context,
        kind: GroupKind,
    ) -> Result<Vec<GroupName>, Error> {
        entry::list_all(context, kind).await
    }

    /// The stream and the group.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// Which kind it is.
    pub fn kind(&self) -> GroupKind {
        self.kind
    }

    /// Who takes part, as the group's entry says.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`](crate::ErrorKind::GroupNotFound),
    /// [`ErrorKind::CorruptEntry`](crate::ErrorKind::CorruptEntry),
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig).
    pub async fn membership(&self) -> Result<Membership, Error> {
        let membership = |json: &[u8]| match self.kind {
            GroupKind::Static => StaticConfig::from_json(json).map(|config| config.membership),
            GroupKind::Elastic => ElasticConfig::from_json(json).map(|config| config.membership),
        };
        entry::read(&self.context, self.kind, &self.name, membership).await
    }

    /// The members that have an instance at work, in the order of the configuration.
    ///
    /// # Errors
    /// As [`Group::membership`].
    pub async fn active_members(&self) -> Result<Vec<String>, Error> {
        let names = self.membership().await?.names();
        let consumers =
            consumers::consumers(&self.context, &self.kind.consumed_stream(&self.name)).await?;
        let active = |member: &String| {
            let consumer = self.kind.consumer(&self.name, member);
            consumers.iter().any(|c| c.name == consumer && consumers::is_active(c))
        };
        Ok(names.into_iter().filter(active).collect())
    }

    /// Whether a name is a member, and whether an instance of it is at work.
    ///
    /// # Errors
    /// As [`Group::membership`].
    pub async fn is_in_membership_and_active(&self, member: &str) -> Result<(bool, bool), Error> {
        let included = self.membership().await?.contains(member);
        let active = included && self.active_members().await?.iter().any(|name| name == member);
        Ok((included, active))
    }

    /// Makes the pinned instance of a member step down, so that another takes over.
    ///
    /// # Errors
    /// [`ErrorKind::NotActive`](crate::ErrorKind::NotActive) when the member has no consumer.
    pub async fn step_down(&self, member: &str) -> Result<(), Error> {
        consumers::step_down(&self.context, self.kind, &self.name, member).await
    }

    /// Settings that only members of this library know.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker),
    /// [`ErrorKind::CorruptEntry`](crate::ErrorKind::CorruptEntry).
    pub async fn settings(&self) -> Result<GroupSettings, Error> {
        settings::read(&self.context, self.kind, &self.name).await
    }

    /// Changes settings that only members of this library know.
    ///
    /// # Errors
    /// As [`Group::membership`]; [`ErrorKind::Conflict`](crate::ErrorKind::Conflict),
    /// [`ErrorKind::Broker`](crate::ErrorKind::Broker).
    pub async fn change_settings(
        &self,
        edit: impl Fn(&mut GroupSettings) + Send,
    ) -> Result<GroupSettings, Error> {
        self.membership().await?;
        settings::change(&self.context, self.kind, &self.name, edit).await
    }

    /// Stops handling: running handlers end, nothing new begins, until [`Group::resume`].
    ///
    /// # Errors
    /// As [`Group::change_settings`].
    pub async fn pause(&self) -> Result<(), Error> {
        self.change_settings(|settings| settings.paused = true).await.map(|_| ())
    }

    /// Goes on after [`Group::pause`].
    ///
    /// # Errors
    /// As [`Group::change_settings`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.change_settings(|settings| settings.paused = false).await.map(|_| ())
    }
}

/// The way in to a group of one kind, which dereferences to [`Group`]: its name, the prefix of the
/// API, and the list of its kind.
macro_rules! group_of_kind {
    ($group:ident, $kind:ident, $list:literal) => {
        impl std::ops::Deref for $group {
            type Target = Group;

            fn deref(&self) -> &Group {
                &self.0
            }
        }

        impl $group {
            /// Names a group; it need not exist yet.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidName`](crate::ErrorKind::InvalidName).
            pub fn new(
                context: jetstream::Context,
                stream: &str,
                group: &str,
            ) -> Result<Self, Error> {
                Group::new(context, GroupKind::$kind, stream, group).map(Self)
            }

            /// The prefix of the JetStream API, where the context was made with another than
            /// `$JS.API`.
            #[must_use]
            pub fn api_prefix(self, prefix: impl Into<String>) -> Self {
                Self(self.0.api_prefix(prefix))
            }

            #[doc = $list]
            ///
            /// # Errors
            /// [`ErrorKind::Broker`](crate::ErrorKind::Broker),
            /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout).
            pub async fn list(
                context: &jetstream::Context,
                stream: &str,
            ) -> Result<Vec<String>, Error> {
                Group::list(context, GroupKind::$kind, stream).await
            }
        }
    };
}

pub(super) use group_of_kind;
