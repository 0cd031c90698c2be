//! Taking part in a group: the builder, the running member, and what it tells.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{ElasticConfig, Generation, StaticConfig};
use crate::copied::SourceLoss;
use crate::engine::{Assign, Channels, Engine, Settings};
use crate::error::{Error, ErrorKind};
use crate::flow::PinLoss;
use crate::lifecycle::End;
use crate::message::Message;
use crate::name::GroupName;
use crate::plan::{ConsumerPlan, GroupKind};
use crate::runner::{HandlerOutcome, run_handler};
use crate::work::{Job, Work};
use crate::{api, maker, settings};

/// What runs one at a time and in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrderBy {
    /// Messages of one partition: safe for every key.
    #[default]
    Partition,
    /// Messages of one subject: more in parallel, where the whole subject is the key.
    Subject,
    /// All messages of the member.
    Stream,
}

/// Where poison messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Deliveries that a message gets before it is moved; hand-overs and take-overs count as deliveries too.
    pub after_deliveries: u64,
    /// The subject to publish to. It needs a stream: a message is only given up once it is stored there.
    pub subject: String,
}

/// What a member is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It has no partitions, or cannot have its consumer yet.
    Waiting,
    /// It has a consumer; another instance may be at work with it.
    Standby,
    /// It is the instance that gets the messages.
    Pinned,
    /// It has stopped.
    Ended,
}

/// Something that happened to a member, for logs and dashboards.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// The member's consumer exists, with this many filter subjects.
    Joined {
        /// Partitions times filters.
        filter_subjects: usize,
    },
    /// The member has no partitions at present.
    Waiting,
    /// This instance gets the messages from now on.
    Pinned,
    /// Another instance may get the messages from now on; running handlers were cancelled.
    PinLost(PinLoss),
    /// Somebody has set the member's consumer to another place in its stream: what comes from there is handled, again too.
    ConsumerReset,
    /// The group was paused: running handlers end, nothing new begins.
    Paused,
    /// The group goes on.
    Resumed,
    /// A handler returned an error, or panicked; the message will be delivered again.
    HandlerFailed {
        /// The message.
        stream_sequence: u64,
        /// What it said.
        error: String,
    },
    /// A message was moved to the dead letters.
    DeadLettered {
        /// The message.
        stream_sequence: u64,
    },
    /// The source stream has dropped messages before they were copied: nobody handles them.
    SourceDropped(SourceLoss),
    /// Something went wrong that will be tried again.
    Retrying(Arc<Error>),
}

/// Notices that a slow reader misses are dropped, oldest first, above this many.
const NOTICES_KEPT: usize = 256;

#[derive(Clone)]
pub(crate) struct Notices {
    sender: broadcast::Sender<Notice>,
    /// Whose they are, for the log: a process may run members of several groups.
    group: Arc<str>,
    member: Arc<str>,
}

impl Notices {
    fn new(group: &GroupName, member: &str) -> Self {
        let sender = broadcast::channel(NOTICES_KEPT).0;
        Self { sender, group: group.to_string().into(), member: member.into() }
    }

    pub(crate) fn tell(&self, notice: Notice) {
        let Self { group, member, .. } = self;
        match &notice {
            Notice::Retrying(error) => tracing::warn!(%group, %member, %error, "will be tried again"),
            Notice::SourceDropped(SourceLoss { messages, exact, .. }) => tracing::error!(
                %group, %member, messages, exact,
                "the source stream has dropped messages before they were copied: let it keep more"
            ),
            Notice::ConsumerReset => {
                tracing::info!(%group, %member, "the consumer was reset: messages come again from there")
            }
            Notice::HandlerFailed { stream_sequence, error } => {
                tracing::warn!(%group, %member, stream_sequence, error, "handler failed")
            }
            other => tracing::debug!(%group, %member, notice = ?other, "member"),
        }
        // Nobody has to listen.
        drop(self.sender.send(notice));
    }
}

/// The group that a member takes part in, read once at the start.
#[derive(Clone)]
pub(crate) enum Group {
    Static(StaticConfig),
    Elastic(ElasticConfig),
}

impl Group {
    fn kind(&self) -> GroupKind {
        match self {
            Self::Static(_) => GroupKind::Static,
            Self::Elastic(_) => GroupKind::Elastic,
        }
    }
}

struct Follow {
    group: Group,
    member: String,
}

impl Assign for Follow {
    fn assign(&mut self, json: &[u8]) -> Result<(Generation, Vec<String>), Error> {
        match &self.group {
            Group::Static(first) => {
                let now = StaticConfig::from_json(json)?;
                if now != *first {
                    return Err(changed(
                        "a static group's configuration was changed; delete and create it to change it",
                    ));
                }
                Ok((now.generation, now.partition_filters(&self.member)))
            }
            Group::Elastic(first) => {
                let now = ElasticConfig::from_json(json)?;
                if !first.same_shape(&now) {
                    return Err(changed(
                        "the group's partitions, filters or limits were changed; start the member again",
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

/// How a member takes part; made by [`Group::consume`](crate::Group::consume).
#[must_use = "a builder does nothing until `handle` or `messages`"]
pub struct Consume {
    context: jetstream::Context,
    settings: Settings,
    retry_delay: Duration,
}

/// Most messages in hand where the consumer's own limit is higher.
const DEFAULT_BUFFER: usize = 1024;
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
const DEFAULT_RETRY: Duration = Duration::from_secs(1);

impl Consume {
    pub(crate) fn new(
        context: jetstream::Context,
        api_prefix: String,
        kind: GroupKind,
        name: GroupName,
        member: String,
    ) -> Self {
        let settings = Settings {
            kind,
            name,
            member,
            api_prefix,
            template: pull::Config::default(),
            buffer: DEFAULT_BUFFER,
            concurrency: 1,
            order_by: OrderBy::Partition,
            drain_timeout: DEFAULT_DRAIN,
            dead_letter: None,
            own_dead_letter: false,
        };
        Self { context, settings, retry_delay: DEFAULT_RETRY }
    }

    /// The consumer's configuration; names, filters, pinning and (elastic) the inactive threshold are filled in.
    ///
    /// Every instance of a member has to give the same. An `ack_wait` of zero means 5 s. It replaces what
    /// [`Consume::max_ack_pending`] and [`Consume::ack_wait`] have set, so give it before them.
    pub fn template(mut self, template: pull::Config) -> Self {
        self.settings.template = template;
        self
    }

    /// Most messages that the broker hands out unacknowledged; 1 is one at a time, as with any client. 0 stands for the
    /// broker's own default (1,000), and -1 for no limit.
    pub fn max_ack_pending(mut self, messages: i64) -> Self {
        self.settings.template.max_ack_pending = messages;
        self
    }

    /// How long the broker waits for an acknowledgement. It also is how long a crashed instance keeps the pin.
    pub fn ack_wait(mut self, wait: Duration) -> Self {
        self.settings.template.ack_wait = wait;
        self
    }

    /// Most handlers at once (1 by default); what `order_by` keeps apart runs in parallel.
    ///
    /// # Panics
    /// When it is 0.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        assert!(handlers > 0, "a member needs at least one handler");
        self.settings.concurrency = handlers;
        self
    }

    /// What stays in order; partitions by default.
    pub fn order_by(mut self, order: OrderBy) -> Self {
        self.settings.order_by = order;
        self
    }

    /// Most messages in hand, where the consumer's `max_ack_pending` is higher (1,024 by default).
    ///
    /// # Panics
    /// When it is 0.
    pub fn buffer(mut self, messages: usize) -> Self {
        assert!(messages > 0, "a member needs room for at least one message");
        self.settings.buffer = messages;
        self
    }

    /// How long running handlers may take at a stop or a change of membership before they are cancelled (30 s).
    ///
    /// Partitions that move to another member wait for it.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.settings.drain_timeout = limit;
        self
    }

    /// How long a message waits after its handler returned an error (1 s); its partition waits with it.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.retry_delay = delay;
        self
    }

    /// Moves messages that keep failing out of the way. The setting of [`GroupSettings`](crate::GroupSettings) is used without it.
    pub fn dead_letter(mut self, dead_letter: DeadLetter) -> Self {
        self.settings.dead_letter = Some(dead_letter);
        self
    }

    /// Starts the member, with a handler for its messages.
    ///
    /// The handler returns `()` and settles each message itself, or a `Result`: then `Ok` acknowledges what it has not
    /// settled and `Err` has it delivered again after the retry delay. An `async` handler is dropped when the pin is
    /// lost; blocking work belongs on `spawn_blocking` and has to watch [`Message::cancellation`].
    ///
    /// # Errors
    /// [`ErrorKind::StreamNotFound`], [`ErrorKind::GroupNotFound`], [`ErrorKind::CorruptEntry`], [`ErrorKind::InvalidConfig`]
    /// (a dead-letter subject that cannot be one, too); for a static group also [`ErrorKind::NotAMember`] and [`ErrorKind::ConsumerMismatch`]. A member of an elastic group waits
    /// until it is added.
    ///
    /// # Cancel safety
    /// A dropped call starts nothing; the consumer of a static member may exist already, which is harmless.
    pub async fn handle<H, F, O>(self, handler: H) -> Result<Consuming, Error>
    where
        H: Fn(Message) -> F + Send + Sync + 'static,
        F: Future<Output = O> + Send + 'static,
        O: HandlerOutcome,
    {
        let (retry_delay, handlers) = (self.retry_delay, self.settings.concurrency);
        let (consuming, work) = self.start().await?;
        let handler = Arc::new(handler);
        for _ in 0..handlers {
            let (work, handler, notices) =
                (Arc::clone(&work), Arc::clone(&handler), consuming.notices.clone());
            tokio::spawn(run_handler(work, handler, retry_delay, notices));
        }
        Ok(consuming)
    }

    /// Starts the member, with its messages as a stream.
    ///
    /// The stream yields the next message of a partition only after the one before was settled or dropped, and ends
    /// when the member ends. At most `concurrency` messages are out at once. Dropping the stream stops the member.
    ///
    /// ```
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup};
    /// # let broker = natsway_testkit::Broker::builder().jetstream().start().await;
    /// # let jetstream = async_nats::jetstream::new(broker.connect().await);
    /// # let subjects = vec!["orders.*".to_owned()];
    /// # let config = async_nats::jetstream::stream::Config { name: "ORDERS".into(), subjects, ..Default::default() };
    /// # jetstream.create_stream(config).await?;
    /// # jetstream.publish("orders.anne", "new".into()).await?.await?;
    /// # let group = ElasticGroup::new(jetstream, "ORDERS", "billing")?;
    /// # group.create(&ElasticConfig::new(10).filter("orders.*", [1])).await?;
    /// # group.add_members(["m1"]).await?;
    /// let (mut messages, consuming) = group.consume("m1").concurrency(8).messages().await?;
    /// while let Some(message) = messages.next().await {
    ///     println!("{} {:?}", message.subject(), message.payload());
    ///     message.ack().await?;
    ///     consuming.stop(); // the stream ends when what is out is settled
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Consume::handle`].
    pub async fn messages(self) -> Result<(Messages, Consuming), Error> {
        let (consuming, work) = self.start().await?;
        let stop = consuming.stop.clone();
        Ok((Messages { work, stop, waiting: None }, consuming))
    }

    async fn start(mut self) -> Result<(Consuming, Arc<Work>), Error> {
        crate::name::check_member(&self.settings.member)?;
        if self.settings.template.ack_policy == jetstream::consumer::AckPolicy::All {
            // An acknowledgement covers everything before it, so nothing may overtake.
            self.settings.order_by = OrderBy::Stream;
            self.settings.concurrency = 1;
        }
        let group = self.read_group().await?;
        self.check_start(&group).await?;
        self.settings.own_dead_letter = self.settings.dead_letter.is_some();
        if let Some(DeadLetter { subject, .. }) = &self.settings.dead_letter {
            let group = crate::Group {
                context: self.context.clone(),
                api_prefix: self.settings.api_prefix.clone(),
                kind: self.settings.kind,
                name: self.settings.name.clone(),
            };
            crate::dead_letter::check_own(&group, subject).await?;
        }
        if !self.settings.own_dead_letter {
            let shared = settings::read(&self.context, group.kind(), &self.settings.name).await?;
            self.settings.dead_letter = shared.dead_letter();
        }
        Ok(self.spawn(group))
    }

    async fn read_group(&self) -> Result<Group, Error> {
        let (context, name) = (&self.context, &self.settings.name);
        Ok(match self.settings.kind {
            GroupKind::Static => Group::Static(
                crate::admin::read(context, GroupKind::Static, name, StaticConfig::from_json).await?,
            ),
            GroupKind::Elastic => Group::Elastic(
                crate::admin::read(context, GroupKind::Elastic, name, ElasticConfig::from_json).await?,
            ),
        })
    }

    /// Everything that is better said to the caller than found out later.
    async fn check_start(&self, group: &Group) -> Result<(), Error> {
        let Settings { kind, name, member, template, .. } = &self.settings;
        crate::admin::check_stream(&self.context, &kind.consumed_stream(name)).await?;
        match group {
            Group::Elastic(config) => {
                ConsumerPlan::new(*kind, config.generation, name, member, template, Vec::new()).map(|_| ())
            }
            Group::Static(config) => {
                if !config.membership.contains(member) {
                    return Err(ErrorKind::NotAMember.with(format!("{member:?} is not a member of {name}")));
                }
                let filters = config.partition_filters(member);
                if filters.is_empty() {
                    return Ok(());
                }
                let plan = ConsumerPlan::new(*kind, config.generation, name, member, template, filters)?;
                match maker::create(&self.context, &plan).await {
                    Ok(_) => Ok(()),
                    Err(error) if error.code() == Some(api::code::CONSUMER_EXISTS) => Err(ErrorKind::ConsumerMismatch.with(format!(
                        "consumer {:?} exists with other settings: every instance of {member:?} has to give the same",
                        plan.consumer
                    ))),
                    Err(error) => Err(error.into_error("the consumer could not be created")),
                }
            }
        }
    }

    fn spawn(self, group: Group) -> (Consuming, Arc<Work>) {
        // One value each is on its way at most; the followers wait while the engine is busy.
        let (config_sender, config) = mpsc::channel(4);
        let (settings_sender, settings) = mpsc::channel(4);
        let kind = group.kind();
        let key = self.settings.name.key();
        tokio::spawn(crate::watch::follow(self.context.clone(), kind.bucket(), key, config_sender));
        let shared = settings::key(kind, &self.settings.name);
        tokio::spawn(crate::watch::follow(self.context.clone(), settings::BUCKET, shared, settings_sender));
        let notices = Notices::new(&self.settings.name, &self.settings.member);
        let (state_sender, state) = watch::channel(MemberState::Waiting);
        let (loss_sender, source_loss) = watch::channel(SourceLoss::default());
        let stop = CancellationToken::new();
        let work = Work::new(self.context.client(), self.settings.flow());
        let channels = Channels {
            work: Arc::clone(&work),
            config,
            settings,
            state: state_sender,
            notices: notices.clone(),
            source_loss: loss_sender,
            stop: stop.clone(),
        };
        let follow = Follow { group, member: self.settings.member.clone() };
        let engine = Engine::new(self.settings, self.context, follow, channels);
        (Consuming { notices, state, source_loss, stop, task: Some(tokio::spawn(engine.run())) }, work)
    }
}

/// A member at work. Dropping it stops the member without waiting for it.
#[must_use = "dropping it stops the member"]
pub struct Consuming {
    pub(crate) notices: Notices,
    state: watch::Receiver<MemberState>,
    source_loss: watch::Receiver<SourceLoss>,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<End, Error>>>,
}

impl Consuming {
    /// Asks the member to stop: running handlers end (within the drain time-out), buffered messages go back, the pin is
    /// given up so that a standby goes on at once. Wait for [`Consuming::done`] to see it through.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops the member and waits for its end.
    ///
    /// # Errors
    /// What [`Consuming::done`] gives when the member had ended by itself.
    pub async fn stopped(mut self) -> Result<End, Error> {
        self.stop.cancel();
        self.done().await
    }

    /// Waits for the member's end. Call it until it has answered once; after that it gives [`ErrorKind::Closed`].
    ///
    /// # Errors
    /// Why the member could not go on: [`ErrorKind::ConfigChanged`], [`ErrorKind::ConsumerDeleted`],
    /// [`ErrorKind::StreamNotFound`], [`ErrorKind::BucketNotFound`], [`ErrorKind::CorruptEntry`], [`ErrorKind::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; call it again.
    pub async fn done(&mut self) -> Result<End, Error> {
        let Some(task) = &mut self.task else {
            return Err(ErrorKind::Closed.with("the member's end was told before"));
        };
        let end = task.await;
        self.task = None;
        end.unwrap_or_else(|error| Err(ErrorKind::Closed.caused("the member's task ended early", error)))
    }

    /// What the member is doing now, and its changes.
    pub fn state(&self) -> watch::Receiver<MemberState> {
        self.state.clone()
    }

    /// What the source stream of an elastic group dropped before it was copied, for metrics: as of the last look, which a
    /// pinned instance takes every few seconds.
    pub fn source_loss(&self) -> watch::Receiver<SourceLoss> {
        self.source_loss.clone()
    }

    /// What happens to the member from now on; a reader that is 256 notices behind misses the oldest.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.sender.subscribe()
    }
}

impl Drop for Consuming {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The messages of a member, as a stream. Dropping it stops the member.
#[must_use = "dropping it stops the member"]
pub struct Messages {
    work: Arc<Work>,
    stop: CancellationToken,
    /// The wait for the next message, while there is one.
    waiting: Option<BoxFuture<'static, Option<Job>>>,
}

impl Messages {
    /// The next message, or `None` when the member has ended.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Message> {
        StreamExt::next(self).await
    }
}

impl Stream for Messages {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let this = &mut *self;
        let waiting = this.waiting.get_or_insert_with(|| {
            let work = Arc::clone(&this.work);
            async move { work.take().await }.boxed()
        });
        let job = ready!(waiting.poll_unpin(cx));
        this.waiting = None;
        Poll::Ready(job.map(|job| job.message))
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
