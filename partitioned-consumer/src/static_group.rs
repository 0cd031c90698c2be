//! A static group: administration, and the way in for its members.

use async_nats::jetstream;

use crate::admin::{self, Written};
use crate::api;
use crate::config::StaticConfig;
use crate::consume::Consume;
use crate::error::{Error, ErrorKind};
use crate::name::GroupName;
use crate::plan::GroupKind;
use crate::settings::{self, GroupSettings};

const KIND: GroupKind = GroupKind::Static;

/// A group with a fixed membership, on a stream whose subjects begin with the partition.
///
/// A handle is cheap to clone and holds nothing but the names and the connection.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use natsway_partitioned_consumer::{Membership, StaticConfig, StaticGroup};
///
/// let jetstream = async_nats::jetstream::new(async_nats::connect("127.0.0.1").await?);
/// let group = StaticGroup::new(jetstream, "ORDERS", "billing")?;
/// group.create(&StaticConfig::new(10, Membership::balanced(["m1", "m2"]))).await?;
/// let member = group.consume("m1").handle(|message| async move { message.ack().await }).await?;
/// member.stopped().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StaticGroup {
    context: jetstream::Context,
    api_prefix: String,
    name: GroupName,
}

impl StaticGroup {
    /// Names a group; it need not exist yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub fn new(context: jetstream::Context, stream: &str, group: &str) -> Result<Self, Error> {
        Ok(Self { context, api_prefix: "$JS.API".into(), name: GroupName::new(stream, group)? })
    }

    /// The prefix of the JetStream API, where the context was made with another than `$JS.API`.
    #[must_use]
    pub fn api_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.api_prefix = prefix.into();
        self
    }

    pub(crate) fn context(&self) -> &jetstream::Context {
        &self.context
    }

    /// The stream and the group.
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// The static groups of a stream, in order of their names.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`], [`ErrorKind::Timeout`].
    pub async fn list(context: &jetstream::Context, stream: &str) -> Result<Vec<String>, Error> {
        admin::list(context, KIND, stream).await
    }

    /// Creates the group; one that exists with the same configuration is fine.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], [`ErrorKind::InvalidName`], [`ErrorKind::StreamNotFound`], [`ErrorKind::GroupExists`],
    /// and [`ErrorKind::NameCollision`] where a consumer would have the name of another group's (`a` with member `b-c`,
    /// and `a-b` with member `c`).
    pub async fn create(&self, config: &StaticConfig) -> Result<(), Error> {
        config.check_new()?;
        let info = admin::check_stream(&self.context, self.name.stream()).await?;
        self.check_collisions(config).await?;
        let store = admin::bucket_or_new(&self.context, KIND, info.config.num_replicas).await?;
        match admin::write_new(&store, &self.name, config.to_json()).await? {
            Written::New => Ok(()),
            Written::Present(json) if StaticConfig::from_json(&json)? == *config => Ok(()),
            Written::Present(_) => Err(admin::exists_differently(&self.name)),
        }
    }

    async fn check_collisions(&self, config: &StaticConfig) -> Result<(), Error> {
        let ours: Vec<String> =
            config.membership.names().iter().map(|member| self.name.durable(member)).collect();
        for group in Self::list(&self.context, self.name.stream()).await? {
            if group == self.name.group() {
                continue;
            }
            let Ok(other) = Self::new(self.context.clone(), self.name.stream(), &group) else { continue };
            let Ok(members) = other.config().await.map(|c| c.membership.names()) else { continue };
            let theirs = |name: &String| members.iter().any(|member| other.name.durable(member) == *name);
            if let Some(consumer) = ours.iter().find(|name| theirs(name)) {
                return Err(ErrorKind::NameCollision.with(format!(
                    "consumer {consumer:?} belongs to group {group:?} already: choose another group or member name"
                )));
            }
        }
        Ok(())
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`], [`ErrorKind::CorruptEntry`], [`ErrorKind::InvalidConfig`].
    pub async fn config(&self) -> Result<StaticConfig, Error> {
        admin::read(&self.context, KIND, &self.name, StaticConfig::from_json).await
    }

    /// Deletes the group, its members' consumers and with them their positions. Running members end without an error.
    ///
    /// Only consumers of members are deleted, never those of a group whose name begins alike.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`]; [`ErrorKind::Broker`] naming the first consumer that could not be deleted.
    pub async fn delete(&self) -> Result<(), Error> {
        let store = admin::bucket(&self.context, KIND).await?;
        let Some(store) = store else {
            return Err(ErrorKind::GroupNotFound.with(format!("there is no group {}", self.name)));
        };
        let (json, _) = admin::entry(&store, &self.name).await?;
        let deleted = store.delete(self.name.key()).await;
        deleted.map_err(|error| ErrorKind::Broker.caused("the group's entry could not be deleted", error))?;
        let members =
            StaticConfig::from_json(&json).map(|config| config.membership.names()).unwrap_or_default();
        for member in members {
            let consumer = self.name.durable(&member);
            let gone = api::delete_consumer(&self.context, self.name.stream(), &consumer).await;
            gone.map_err(|error| error.into_error(&format!("consumer {consumer:?} could not be deleted")))?;
        }
        settings::delete(&self.context, KIND, &self.name).await
    }

    /// The members that have an instance at work, in the order of the configuration.
    ///
    /// # Errors
    /// As [`StaticGroup::config`].
    pub async fn active_members(&self) -> Result<Vec<String>, Error> {
        let names = self.config().await?.membership.names();
        let consumers = admin::consumers(&self.context, self.name.stream()).await?;
        let active = |member: &String| {
            consumers.iter().any(|c| c.name == self.name.durable(member) && admin::is_active(c))
        };
        Ok(names.into_iter().filter(active).collect())
    }

    /// Whether a name is a member, and whether an instance of it is at work.
    ///
    /// # Errors
    /// As [`StaticGroup::config`].
    pub async fn is_in_membership_and_active(&self, member: &str) -> Result<(bool, bool), Error> {
        let included = self.config().await?.membership.contains(member);
        let active = included && self.active_members().await?.iter().any(|name| name == member);
        Ok((included, active))
    }

    /// Makes the pinned instance of a member step down, so that another takes over.
    ///
    /// # Errors
    /// [`ErrorKind::NotActive`] when the member has no consumer.
    pub async fn step_down(&self, member: &str) -> Result<(), Error> {
        admin::step_down(&self.context, KIND, &self.name, member).await
    }

    /// Settings that only members of this library know.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`], [`ErrorKind::CorruptEntry`].
    pub async fn settings(&self) -> Result<GroupSettings, Error> {
        settings::read(&self.context, KIND, &self.name).await
    }

    /// Changes settings that only members of this library know.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`], [`ErrorKind::Conflict`], [`ErrorKind::Broker`].
    pub async fn change_settings(
        &self,
        edit: impl Fn(&mut GroupSettings) + Send,
    ) -> Result<GroupSettings, Error> {
        self.config().await?;
        settings::change(&self.context, KIND, &self.name, edit).await
    }

    /// Stops handling: running handlers end, nothing new begins, until [`StaticGroup::resume`].
    ///
    /// # Errors
    /// As [`StaticGroup::change_settings`].
    pub async fn pause(&self) -> Result<(), Error> {
        self.change_settings(|settings| settings.paused = true).await.map(|_| ())
    }

    /// Goes on after [`StaticGroup::pause`].
    ///
    /// # Errors
    /// As [`StaticGroup::change_settings`].
    pub async fn resume(&self) -> Result<(), Error> {
        self.change_settings(|settings| settings.paused = false).await.map(|_| ())
    }

    /// Takes part as a member.
    pub fn consume(&self, member: impl Into<String>) -> Consume {
        Consume::new(self.context.clone(), self.api_prefix.clone(), KIND, self.name.clone(), member.into())
    }
}
