//! An elastic group: administration, and the way in for its members.

use std::time::Duration;

use async_nats::jetstream::{self, stream};

use super::config::{Document, ElasticConfig, Generation};
use super::entry::{self, Written};
use super::filter::transforms;
use super::handle::{Group, group_of_kind};
use super::kind::GroupKind;
use super::membership::{MemberMapping, Membership};
use super::name::{GroupName, check_member};
use super::partition::sticky_mappings;
use super::settings;
use super::source_loss::{self, Account, Holes, Observation, SourceLoss};
use crate::api::{self, code};
use crate::error::{Error, ErrorKind};

const KIND: GroupKind = GroupKind::Elastic;

/// A group whose members come and go, on any stream: a work-queue stream copies from it and adds
/// the partition.
///
/// What it has in common with static groups is in [`Group`].
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = natsway_testkit::TestBroker::builder().jetstream().start().await;
/// # let jetstream = async_nats::jetstream::new(broker.connect().await);
/// # let subjects = vec!["orders.*".to_owned()];
/// # let name = "ORDERS".into();
/// # let config =
/// #     async_nats::jetstream::stream::Config { name, subjects, ..Default::default() };
/// # jetstream.create_stream(config).await?;
/// use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup};
///
/// let group = ElasticGroup::new(jetstream, "ORDERS", "billing")?;
/// group.create(&ElasticConfig::new(10).filter("orders.*", [1])).await?;
/// let member = group.consume("m1").max_ack_pending(1000).concurrency(8);
/// let member = member.handle(|message| async move { message.ack().await }).await?;
/// assert_eq!(group.add_members(["m1"]).await?, ["m1"]);
/// member.stopped().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ElasticGroup(pub(crate) Group);

group_of_kind!(ElasticGroup, Elastic, "The elastic groups of a stream, in order of their names.");

impl ElasticGroup {
    /// Creates the group and its work-queue stream; one that exists with the same shape is fine,
    /// and keeps its members.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] (overlapping filters too), [`ErrorKind::StreamNotFound`],
    /// [`ErrorKind::GroupExists`], and [`ErrorKind::NameCollision`] when a stream of the work
    /// queue's name exists for something else. A failed call leaves no entry behind.
    pub async fn create(&self, config: &ElasticConfig) -> Result<(), Error> {
        config.check_new()?;
        let source = api::check_stream(&self.context, self.name.stream()).await?;
        let store = entry::bucket_or_new(&self.context, KIND, source.config.num_replicas).await?;
        let written = entry::write_new(&store, &self.name, config.to_json()).await?;
        if let Written::Present(json) = &written
            && !ElasticConfig::from_json(json)?.same_shape(config)
        {
            return Err(entry::exists_differently(&self.name));
        }
        let mut wanted = work_queue(&self.name, &source.config, config);
        wanted.duplicate_window = duplicate_window(&self.context);
        let made = api::request::<_, stream::Info>(
            &self.context,
            format!("STREAM.CREATE.{}", wanted.name),
            &wanted,
        )
        .await;
        let error = match made {
            Ok(queue) => {
                self.begin_account(&source, &queue).await;
                return Ok(());
            }
            Err(error) => error,
        };
        if matches!(written, Written::Present(_)) {
            return self.check_work_queue(config).await;
        }
        if store.delete(self.name.key()).await.is_err() {
            tracing::warn!(group = %self.name, "the entry of a group without a work queue stays \
                                                behind");
        }
        Err(match error.code() {
            Some(code::STREAM_NAME_IN_USE) => ErrorKind::NameCollision.with(format!(
                "a stream {:?} exists already, for something else: choose another group name",
                wanted.name
            )),
            _ => error.into_error("the work-queue stream could not be created"),
        })
    }

    /// Notes that copying begins with what the source stream held when the work queue was made.
    async fn begin_account(&self, source: &stream::Info, queue: &stream::Info) {
        // Asked again after another has created it, the queue has copies, and they have been
        // counted from the first on.
        if queue.state.last_sequence > 0 {
            return;
        }
        let observation = Observation::new(source, queue, None);
        let begun = async {
            let store = settings::open(&self.context, &self.name).await?;
            let holes = Holes::counted(source.state.deleted_count.unwrap_or(0), &observation);
            let beginning = Account::beginning(&observation, source.state.first_sequence, holes);
            source_loss::write(&store, &self.name, |account| account.clone_from(&beginning)).await
        };
        if let Err(error) = begun.await {
            tracing::debug!(%error, "what is lost is counted from the first observation of a \
                                     member on");
        }
    }

    /// Why the source stream may drop messages before they are copied; `None` where it has no limit
    /// that makes it.
    ///
    /// Such a message is never handled. It takes a group that is behind with copying by more than
    /// the stream keeps, which a limit of the work queue or a broker at its limits makes likely.
    ///
    /// # Errors
    /// [`ErrorKind::StreamNotFound`], [`ErrorKind::Broker`], [`ErrorKind::Timeout`].
    pub async fn source_may_drop(&self) -> Result<Option<String>, Error> {
        let source = api::check_stream(&self.context, self.name.stream()).await?;
        Ok(source_loss::may_drop(&source.config))
    }

    /// What the source stream dropped before it was copied, as it stands now; `None` when either
    /// stream is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Broker`], [`ErrorKind::Timeout`].
    pub async fn source_loss(&self) -> Result<Option<SourceLoss>, Error> {
        let Some(observation) = source_loss::observe(&self.context, &self.name, None).await? else {
            return Ok(None);
        };
        Ok(Some(source_loss::read(&self.context, &self.name, &observation).await?.loss()))
    }

    /// Checks that the work-queue stream copies what the configuration says.
    async fn check_work_queue(&self, config: &ElasticConfig) -> Result<(), Error> {
        let info = api::check_stream(&self.context, &self.name.work_queue()).await?;
        if partitions_of_stream(&info.config).is_some_and(|p| p == config.partitions) {
            return Ok(());
        }
        Err(ErrorKind::NameCollision
            .with(format!("stream {:?} is not this group's work queue", self.name.work_queue())))
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`], [`ErrorKind::CorruptEntry`], [`ErrorKind::InvalidConfig`].
    pub async fn config(&self) -> Result<ElasticConfig, Error> {
        entry::read(&self.context, KIND, &self.name, ElasticConfig::from_json).await
    }

    /// Deletes the group with everything that it has not handled yet. Running members end without
    /// an error.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`], [`ErrorKind::Broker`].
    pub async fn delete(&self) -> Result<(), Error> {
        let Some(store) = entry::bucket(&self.context, KIND).await? else {
            return Err(ErrorKind::GroupNotFound.with(format!("there is no group {}", self.name)));
        };
        entry::entry(&store, &self.name).await?;
        let deleted = store.delete(self.name.key()).await;
        deleted.map_err(|error| {
            ErrorKind::Broker.caused("the group's entry could not be deleted", error)
        })?;
        let request = format!("STREAM.DELETE.{}", self.name.work_queue());
        match api::request::<_, serde_json::Value>(&self.context, request, &api::Empty {}).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => {}
            Err(error) => {
                return Err(error.into_error("the work-queue stream could not be deleted"));
            }
        }
        source_loss::delete(&self.context, &self.name).await?;
        settings::delete(&self.context, KIND, &self.name).await
    }

    /// Adds members; gives back all members. Names that are members already change nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::GroupNotFound`], [`ErrorKind::Conflict`], and
    /// [`ErrorKind::NotAllowed`] for a group that uses mappings or was written by the older
    /// generation.
    pub async fn add_members<S: Into<String>>(
        &self,
        members: impl IntoIterator<Item = S>,
    ) -> Result<Vec<String>, Error> {
        let new: Vec<String> = members.into_iter().map(Into::into).collect();
        if new.is_empty() {
            return Err(ErrorKind::InvalidName.with("no member given: expected at least one name"));
        }
        new.iter().try_for_each(|name| check_member(name))?;
        self.change_names(|names| {
            let added: Vec<String> = new.iter().filter(|n| !names.contains(n)).cloned().collect();
            names.extend(added);
        })
        .await
    }

    /// Drops members; gives back those that remain. Unknown names are ignored.
    ///
    /// # Errors
    /// As [`ElasticGroup::add_members`].
    pub async fn drop_members<S: Into<String>>(
        &self,
        members: impl IntoIterator<Item = S>,
    ) -> Result<Vec<String>, Error> {
        let gone: Vec<String> = members.into_iter().map(Into::into).collect();
        if gone.is_empty() {
            return Err(ErrorKind::InvalidName.with("no member given: expected at least one name"));
        }
        self.change_names(|names| names.retain(|name| !gone.contains(name))).await
    }

    async fn change_names(&self, edit: impl Fn(&mut Vec<String>)) -> Result<Vec<String>, Error> {
        self.change_membership(|present| {
            let mut names = match present {
                Membership::Mapped(_) => {
                    return Err(ErrorKind::NotAllowed
                        .with("the group uses mappings: delete them first, or change them"));
                }
                other => other.names(),
            };
            edit(&mut names);
            names.sort();
            names.dedup();
            Ok(if names.is_empty() { Membership::Empty } else { Membership::Balanced(names) })
        })
        .await
        .map(|membership| membership.names())
    }

    /// Gives partitions to members by hand. It replaces members and earlier mappings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] naming every fault (each partition to one member, none left
    /// over), and as [`ElasticGroup::add_members`].
    pub async fn set_mappings(
        &self,
        mappings: impl IntoIterator<Item = MemberMapping>,
    ) -> Result<(), Error> {
        let mappings: Vec<MemberMapping> = mappings.into_iter().collect();
        if mappings.is_empty() {
            return Err(ErrorKind::InvalidConfig.with("no mapping given: expected at least one"));
        }
        mappings.iter().try_for_each(|mapping| check_member(&mapping.member))?;
        self.change_membership(|_| Ok(Membership::Mapped(mappings.clone()))).await.map(|_| ())
    }

    /// Spreads the partitions evenly over `members` by mappings that move as few as possible from
    /// where they are.
    ///
    /// # Errors
    /// As [`ElasticGroup::set_mappings`].
    pub async fn set_members_sticky<S: Into<String>>(
        &self,
        members: impl IntoIterator<Item = S>,
    ) -> Result<Vec<MemberMapping>, Error> {
        let members: Vec<String> = members.into_iter().map(Into::into).collect();
        members.iter().try_for_each(|name| check_member(name))?;
        let partitions = self.config().await?.partitions;
        let plan = |present: &Membership| match sticky_mappings(partitions, present, &members) {
            none if none.is_empty() => Membership::Empty,
            some => Membership::Mapped(some),
        };
        match self.change_membership(|present| Ok(plan(present))).await? {
            Membership::Mapped(mappings) => Ok(mappings),
            _ => Ok(Vec::new()),
        }
    }

    /// Removes the mappings; the group then has no members.
    ///
    /// # Errors
    /// As [`ElasticGroup::add_members`].
    pub async fn delete_mappings(&self) -> Result<(), Error> {
        self.change_membership(|_| Ok(Membership::Empty)).await.map(|_| ())
    }

    pub(crate) async fn change_membership(
        &self,
        edit: impl Fn(&Membership) -> Result<Membership, Error>,
    ) -> Result<Membership, Error> {
        let changed = entry::rewrite(&self.context, KIND, &self.name, |json| {
            let mut config = ElasticConfig::from_json(json)?;
            refuse_first_generation(&config)?;
            let membership = edit(&config.membership)?;
            if membership == config.membership {
                return Ok(None);
            }
            config.membership = membership.clone();
            config.check()?;
            let mut document = Document::parse(json)?;
            document.set_membership(&membership);
            Ok(Some((document.to_json(), membership)))
        });
        match changed.await? {
            Some(membership) => Ok(membership),
            None => self.config().await.map(|config| config.membership),
        }
    }
}

pub(crate) fn refuse_first_generation(config: &ElasticConfig) -> Result<(), Error> {
    if config.generation == Generation::Current {
        return Ok(());
    }
    Err(ErrorKind::NotAllowed.with(
        "the group was written by the older generation, whose members stop when its entry is \
         rewritten: stop them, delete the group and create it anew",
    ))
}

/// The shortest time for which a broker remembers ids of messages, where it cannot be told to
/// remember none.
pub(crate) const LEAST_DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// How long a work queue remembers ids: a source has looked for what was published twice, and what
/// it kept must be copied, also once more where the group begins again. Brokers from 2.14 on
/// remember none then. Older ones do for two minutes at the least, unless they are told of another
/// time, and would leave out what has an id that was copied within it.
pub(crate) fn duplicate_window(context: &jetstream::Context) -> Duration {
    if context.client().is_server_compatible(2, 14, 0) {
        Duration::ZERO
    } else {
        LEAST_DUPLICATE_WINDOW
    }
}

/// The work-queue stream of a group.
pub(crate) fn work_queue(
    name: &GroupName,
    source: &stream::Config,
    config: &ElasticConfig,
) -> stream::Config {
    let subject_transforms = transforms(config.partitions, &config.filters)
        .into_iter()
        .map(|(source, destination)| stream::SubjectTransform { source, destination })
        .collect();
    stream::Config {
        name: name.work_queue(),
        retention: stream::RetentionPolicy::WorkQueue,
        discard: stream::DiscardPolicy::New,
        max_messages: unlimited_below_one(config.max_buffered_messages),
        max_bytes: unlimited_below_one(config.max_buffered_bytes),
        num_replicas: source.num_replicas,
        storage: source.storage,
        allow_direct: true,
        sources: Some(vec![stream::Source {
            name: name.stream().to_owned(),
            subject_transforms,
            ..Default::default()
        }]),
        ..Default::default()
    }
}

fn unlimited_below_one(limit: i64) -> i64 {
    if limit < 1 { -1 } else { limit }
}

/// How many partitions a work-queue stream writes into its subjects, as its first transform says.
pub(crate) fn partitions_of_stream(config: &stream::Config) -> Option<u32> {
    let transform = config.sources.as_ref()?.first()?.subject_transforms.first()?;
    let inner = transform.destination.strip_prefix("{{Partition(")?;
    inner.split([',', ')']).next()?.parse().ok()
}
