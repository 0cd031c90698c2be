//! A static group: administration, and the way in for its members.

use async_nats::jetstream::{self, stream};

use super::config::StaticConfig;
use super::entry::{self, Written};
use super::handle::{Group, group_of_kind};
use super::kind::GroupKind;
use super::settings;
use crate::api;
use crate::error::{Error, ErrorKind};

const KIND: GroupKind = GroupKind::Static;

/// Which partitions a stream's subjects begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamPartitions {
    /// The stream itself writes so many.
    Written(u32),
    /// Publishers, or another stream, may write them.
    Unknown,
    /// No subject can begin with a number, so no member would ever get a message.
    Impossible,
}

impl StreamPartitions {
    pub(crate) fn of(config: &stream::Config) -> Self {
        if let Some(transform) = &config.subject_transform {
            let destination = transform.destination.to_ascii_lowercase();
            let written = destination.strip_prefix("{{partition(");
            let written = written.and_then(|rest| rest.split([',', ')']).next()?.parse().ok());
            return written.map_or(Self::Unknown, Self::Written);
        }
        let may_begin = |subject: &String| {
            let first = subject.split('.').next().unwrap_or_default();
            matches!(first, "*" | ">") || first.parse::<u32>().is_ok()
        };
        let copies = config.sources.is_some() || config.mirror.is_some();
        if copies || config.subjects.is_empty() || config.subjects.iter().any(may_begin) {
            return Self::Unknown;
        }
        Self::Impossible
    }
}

pub(crate) fn no_partitions(stream: &str) -> String {
    format!(
        "no subject of stream {stream:?} begins with a partition: give it a subject transform such \
         as {{{{partition(10,1)}}}}.orders.{{{{wildcard(1)}}}}, or make an elastic group"
    )
}

/// A group with a fixed membership, on a stream whose subjects begin with the partition.
///
/// What it has in common with elastic groups is in [`Group`].
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = natsway_testkit::TestBroker::builder().jetstream().start().await;
/// # let jetstream = async_nats::jetstream::new(broker.connect().await);
/// use async_nats::jetstream::stream::{Config, SubjectTransform};
/// use natsway_partitioned_consumer::{Membership, StaticConfig, StaticGroup};
///
/// let source = "orders.*".to_owned();
/// let destination = "{{partition(10,1)}}.orders.{{wildcard(1)}}".to_owned();
/// let stream = Config {
///     name: "ORDERS".into(),
///     subjects: vec![source.clone()],
///     subject_transform: Some(SubjectTransform { source, destination }),
///     ..Default::default()
/// };
/// jetstream.create_stream(stream).await?;
/// let group = StaticGroup::new(jetstream, "ORDERS", "billing")?;
/// group.create(&StaticConfig::new(10, Membership::balanced(["m1", "m2"]))).await?;
/// let member = group.consume("m1").handle(|message| async move { message.ack().await }).await?;
/// member.stopped().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StaticGroup(pub(crate) Group);

group_of_kind!(StaticGroup, Static, "The static groups of a stream, in order of their names.");

impl StaticGroup {
    /// Creates the group; one that exists with the same configuration is fine.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] (a stream without partitions, or with more, too),
    /// [`ErrorKind::InvalidName`], [`ErrorKind::StreamNotFound`], [`ErrorKind::GroupExists`], and
    /// [`ErrorKind::NameCollision`] where a consumer would have the name of another group's (`a`
    /// with member `b-c`, and `a-b` with member `c`).
    pub async fn create(&self, config: &StaticConfig) -> Result<(), Error> {
        config.check_new()?;
        let info = api::check_stream(&self.context, self.name.stream()).await?;
        self.check_collisions(config).await?;
        let store = entry::bucket_or_new(&self.context, KIND, info.config.num_replicas).await?;
        // One that is there already is what it is; the doctor tells.
        if entry::entry(&store, &self.name).await.is_err() {
            self.check_partitions(config, &info.config)?;
        }
        match entry::write_new(&store, &self.name, config.to_json()).await? {
            Written::New => Ok(()),
            Written::Present(json) if StaticConfig::from_json(&json)? == *config => Ok(()),
            Written::Present(_) => Err(entry::exists_differently(&self.name)),
        }
    }

    fn check_partitions(
        &self,
        config: &StaticConfig,
        stream: &stream::Config,
    ) -> Result<(), Error> {
        match StreamPartitions::of(stream) {
            StreamPartitions::Impossible => {
                Err(ErrorKind::InvalidConfig.with(no_partitions(self.name.stream())))
            }
            StreamPartitions::Written(written) if written > config.partitions => {
                Err(ErrorKind::InvalidConfig.with(format!(
                    "partitions {}: stream {:?} writes {written}, and nobody would handle the rest",
                    config.partitions,
                    self.name.stream()
                )))
            }
            StreamPartitions::Written(_) | StreamPartitions::Unknown => Ok(()),
        }
    }

    async fn check_collisions(&self, config: &StaticConfig) -> Result<(), Error> {
        let ours: Vec<String> =
            config.membership.names().iter().map(|member| self.name.durable(member)).collect();
        for group in Self::list(&self.context, self.name.stream()).await? {
            if group == self.name.group() {
                continue;
            }
            let Ok(other) = Self::new(self.context.clone(), self.name.stream(), &group) else {
                continue;
            };
            let Ok(members) = other.config().await.map(|c| c.membership.names()) else { continue };
            let theirs =
                |name: &String| members.iter().any(|member| other.name.durable(member) == *name);
            if let Some(consumer) = ours.iter().find(|name| theirs(name)) {
                return Err(ErrorKind::NameCollision.with(format!(
                    "consumer {consumer:?} belongs to group {group:?} already: choose another \
                     group or member name"
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
        entry::read(&self.context, KIND, &self.name, StaticConfig::from_json).await
    }

    /// Deletes the group, its members' consumers and with them their positions. Running members end
    /// without an error.
    ///
    /// Only consumers of members are deleted, never those of a group whose name begins alike.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`]; [`ErrorKind::Broker`] naming the first consumer that could not
    /// be deleted.
    pub async fn delete(&self) -> Result<(), Error> {
        let store = entry::bucket(&self.context, KIND).await?;
        let Some(store) = store else {
            return Err(ErrorKind::GroupNotFound.with(format!("there is no group {}", self.name)));
        };
        let (json, _) = entry::entry(&store, &self.name).await?;
        let deleted = store.delete(self.name.key()).await;
        deleted.map_err(|error| {
            ErrorKind::Broker.caused("the group's entry could not be deleted", error)
        })?;
        let members = StaticConfig::from_json(&json)
            .map(|config| config.membership.names())
            .unwrap_or_default();
        for member in members {
            let consumer = self.name.durable(&member);
            let gone = api::delete_consumer(&self.context, self.name.stream(), &consumer).await;
            gone.map_err(|error| {
                error.into_error(&format!("consumer {consumer:?} could not be deleted"))
            })?;
        }
        settings::delete(&self.context, KIND, &self.name).await
    }
}
