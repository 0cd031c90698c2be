//! Taking part in a group: what a member is told before it starts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;

use super::config::{MemberConfig, OrderBy};
use super::handle::MemberHandle;
use super::handler::{HandlerOutcome, run_handler};
use super::message::Message;
use super::messages::Messages;
use super::start::start;
use crate::error::Error;
use crate::group::handle::Group;
use crate::group::kind::GroupKind;
use crate::group::name::GroupName;
use crate::group::settings::DeadLetter;

impl Group {
    /// Takes part as a member. A member of an elastic group that is none yet waits until it is
    /// added.
    pub fn consume(&self, member: impl Into<String>) -> Consume {
        Consume::new(
            self.context.clone(),
            self.api_prefix.clone(),
            self.kind,
            self.name.clone(),
            member.into(),
        )
    }
}

/// How a member takes part; made by [`Group::consume`](crate::Group::consume).
#[must_use = "a builder does nothing until `handle` or `messages`"]
pub struct Consume {
    context: jetstream::Context,
    config: MemberConfig,
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
        let config = MemberConfig {
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
        Self { context, config, retry_delay: DEFAULT_RETRY }
    }

    /// The consumer's configuration; names, filters, pinning and (elastic) the inactive threshold
    /// are filled in.
    ///
    /// Every instance of a member has to give the same. An `ack_wait` of zero means 5 s. It
    /// replaces what [`Consume::max_ack_pending`] and [`Consume::ack_wait`] have set, so give it
    /// before them.
    pub fn template(mut self, template: pull::Config) -> Self {
        self.config.template = template;
        self
    }

    /// Most messages that the broker hands out unacknowledged; 1 is one at a time, as with any
    /// client. 0 stands for the broker's own default (1,000), and -1 for no limit.
    pub fn max_ack_pending(mut self, messages: i64) -> Self {
        self.config.template.max_ack_pending = messages;
        self
    }

    /// How long the broker waits for an acknowledgement. It also is how long a crashed instance
    /// keeps the pin.
    pub fn ack_wait(mut self, wait: Duration) -> Self {
        self.config.template.ack_wait = wait;
        self
    }

    /// Most handlers at once (1 by default); what `order_by` keeps apart runs in parallel.
    ///
    /// # Panics
    /// When it is 0.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        assert!(handlers > 0, "a member needs at least one handler");
        self.config.concurrency = handlers;
        self
    }

    /// What stays in order; partitions by default.
    pub fn order_by(mut self, order: OrderBy) -> Self {
        self.config.order_by = order;
        self
    }

    /// Most messages in hand, where the consumer's `max_ack_pending` is higher (1,024 by default).
    ///
    /// # Panics
    /// When it is 0.
    pub fn buffer(mut self, messages: usize) -> Self {
        assert!(messages > 0, "a member needs room for at least one message");
        self.config.buffer = messages;
        self
    }

    /// How long running handlers may take at a stop or a change of membership before they are
    /// cancelled (30 s).
    ///
    /// Partitions that move to another member wait for it.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.config.drain_timeout = limit;
        self
    }

    /// How long a message waits after its handler returned an error (1 s); its partition waits with
    /// it.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.retry_delay = delay;
        self
    }

    /// Moves messages that keep failing out of the way. The setting of
    /// [`GroupSettings`](crate::GroupSettings) is used without it.
    pub fn dead_letter(mut self, dead_letter: DeadLetter) -> Self {
        self.config.dead_letter = Some(dead_letter);
        self
    }

    /// Starts the member, with a handler for its messages.
    ///
    /// The handler returns `()` and settles each message itself, or a `Result`: then `Ok`
    /// acknowledges what it has not settled and `Err` has it delivered again after the retry delay.
    /// An `async` handler is dropped when the pin is lost; blocking work belongs on
    /// `spawn_blocking` and has to watch [`Message::cancellation`].
    ///
    /// # Errors
    /// [`ErrorKind::StreamNotFound`], [`ErrorKind::GroupNotFound`], [`ErrorKind::CorruptEntry`],
    /// [`ErrorKind::InvalidConfig`] (a dead-letter subject that cannot be one, too). For a static
    /// group also [`ErrorKind::NotAMember`] and [`ErrorKind::ConsumerMismatch`]. A member of an
    /// elastic group waits until it is added.
    ///
    /// [`ErrorKind::StreamNotFound`]: crate::ErrorKind::StreamNotFound
    /// [`ErrorKind::GroupNotFound`]: crate::ErrorKind::GroupNotFound
    /// [`ErrorKind::CorruptEntry`]: crate::ErrorKind::CorruptEntry
    /// [`ErrorKind::InvalidConfig`]: crate::ErrorKind::InvalidConfig
    /// [`ErrorKind::NotAMember`]: crate::ErrorKind::NotAMember
    /// [`ErrorKind::ConsumerMismatch`]: crate::ErrorKind::ConsumerMismatch
    ///
    /// # Cancel safety
    /// A dropped call starts nothing; the consumer of a static member may exist already, which is
    /// harmless.
    pub async fn handle<H, F, O>(self, handler: H) -> Result<MemberHandle, Error>
    where
        H: Fn(Message) -> F + Send + Sync + 'static,
        F: Future<Output = O> + Send + 'static,
        O: HandlerOutcome,
    {
        let (retry_delay, handlers) = (self.retry_delay, self.config.concurrency);
        let (handle, work) = start(self.context, self.config).await?;
        let handler = Arc::new(handler);
        for _ in 0..handlers {
            let (work, handler, events) =
                (Arc::clone(&work), Arc::clone(&handler), handle.events.clone());
            tokio::spawn(run_handler(work, handler, retry_delay, events));
        }
        Ok(handle)
    }

    /// Starts the member, with its messages as a stream.
    ///
    /// The stream yields the next message of a partition only after the one before was settled or
    /// dropped, and ends when the member ends. At most `concurrency` messages are out at once.
    /// Dropping the stream stops the member.
    ///
    /// ```
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup};
    /// # let broker = natsway_testkit::TestBroker::builder().jetstream().start().await;
    /// # let jetstream = async_nats::jetstream::new(broker.connect().await);
    /// # let subjects = vec!["orders.*".to_owned()];
    /// # let name = "ORDERS".into();
    /// # let config =
    /// #     async_nats::jetstream::stream::Config { name, subjects, ..Default::default() };
    /// # jetstream.create_stream(config).await?;
    /// # jetstream.publish("orders.anne", "new".into()).await?.await?;
    /// # let group = ElasticGroup::new(jetstream, "ORDERS", "billing")?;
    /// # group.create(&ElasticConfig::new(10).filter("orders.*", [1])).await?;
    /// # group.add_members(["m1"]).await?;
    /// let (mut messages, member) = group.consume("m1").concurrency(8).messages().await?;
    /// while let Some(message) = messages.next().await {
    ///     println!("{} {:?}", message.subject(), message.payload());
    ///     message.ack().await?;
    ///     member.stop(); // the stream ends when what is out is settled
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Consume::handle`].
    pub async fn messages(self) -> Result<(Messages, MemberHandle), Error> {
        let (handle, work) = start(self.context, self.config).await?;
        let stop = handle.stop.clone();
        Ok((Messages::new(work, stop), handle))
    }
}
