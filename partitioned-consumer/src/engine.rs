//! The driver of one instance of a member: it feeds the pure machines and does what they say.
//!
//! Handlers run in tasks of their own (or in the user's, for the stream form) and take what they handle from
//! [`crate::work`], so neither the pin's renewal nor the progress of what is in hand waits for them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::{Client, Subject, Subscriber, jetstream};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Generation;
use crate::consume::{DeadLetter, MemberState, Notice, Notices, OrderBy};
use crate::copied::{Copied, SourceLoss};
use crate::error::{Error, ErrorKind};
use crate::flow::{self, FlowConfig, Position, Pull};
use crate::lifecycle::{self, End, Lifecycle, LifecycleConfig, Report};
use crate::message::{Received, nak_verb, split_partition};
use crate::name::GroupName;
use crate::plan::{ConsumerPlan, GroupKind};
use crate::watch::News;
use crate::work::Work;

mod inbox;
mod remote;

use remote::Answer;

/// What the member is and how it works; checked by the builder.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) kind: GroupKind,
    pub(crate) name: GroupName,
    pub(crate) member: String,
    pub(crate) api_prefix: String,
    pub(crate) template: pull::Config,
    pub(crate) buffer: usize,
    pub(crate) concurrency: usize,
    pub(crate) order_by: OrderBy,
    pub(crate) drain_timeout: Duration,
    pub(crate) dead_letter: Option<DeadLetter>,
    /// The dead letters are the builder's; otherwise they follow the group's settings.
    pub(crate) own_dead_letter: bool,
}

impl Settings {
    /// The flow's settings until a consumer exists, which decides most of them.
    pub(crate) fn flow(&self) -> FlowConfig {
        let acks = self.template.ack_policy != AckPolicy::None;
        FlowConfig {
            pinned_ttl: Duration::from_secs(5),
            redelivery_after: Duration::from_secs(5),
            max_ack_pending: None,
            buffer: self.buffer,
            concurrency: self.concurrency,
            acks,
            dead_letter_after: self.dead_letter.as_ref().filter(|_| acks).map(|d| d.after_deliveries),
        }
    }
}

/// The ends of the engine that others hold.
pub(crate) struct Channels {
    pub(crate) work: Arc<Work>,
    pub(crate) config: mpsc::Receiver<News>,
    pub(crate) settings: mpsc::Receiver<News>,
    pub(crate) state: watch::Sender<MemberState>,
    pub(crate) notices: Notices,
    /// What the group lost before it was copied, as of the last look.
    pub(crate) source_loss: watch::Sender<SourceLoss>,
    pub(crate) stop: CancellationToken,
}

/// Reads a configuration; the engine needs to know nothing more about either kind.
pub(crate) trait Assign: Send + 'static {
    /// What a new value of the entry means for the member.
    fn assign(&mut self, json: &[u8]) -> Result<(Generation, Vec<String>), Error>;
}

pub(crate) struct Engine<A> {
    settings: Settings,
    context: jetstream::Context,
    client: Client,
    assign: A,
    generation: Generation,
    plan: Option<ConsumerPlan>,
    work: Arc<Work>,
    life: Lifecycle,
    life_actions: Vec<lifecycle::Action>,
    inbox: String,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    channels: Channels,
    end: Option<Result<End, Error>>,
    hand_over: bool,
    paused: bool,
    /// When the broker made the consumer that we pull from.
    made_at: Option<DateTime>,
    /// The pin of the last message, so that every message of it shares one.
    pin: Arc<str>,
    /// The newest copy that came in (elastic).
    copied: Option<Copied>,
    next_look: Duration,
    looking: bool,
    /// What the log says about how few messages the source keeps.
    kept_told: Option<u64>,
}

/// How often the connection is looked at, whatever else happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a pinned instance compares the source stream with what was copied.
const COMPARE_EVERY_MS: u64 = 5_000;

impl<A: Assign> Engine<A> {
    pub(crate) fn new(
        settings: Settings,
        context: jetstream::Context,
        assign: A,
        channels: Channels,
    ) -> Self {
        let client = context.client();
        let life = Lifecycle::new(LifecycleConfig {
            fixed: settings.kind == GroupKind::Static,
            drain_timeout: settings.drain_timeout,
            lease: crate::plan::longest_lease(&settings.template),
            seed: fastrand::u64(..),
        });
        Self {
            inbox: client.new_inbox(),
            work: Arc::clone(&channels.work),
            life,
            settings,
            context,
            client,
            assign,
            generation: Generation::Current,
            plan: None,
            life_actions: Vec::new(),
            answers: FuturesUnordered::new(),
            channels,
            end: None,
            hand_over: false,
            paused: false,
            made_at: None,
            pin: Arc::default(),
            copied: None,
            next_look: Duration::ZERO,
            looking: false,
            kept_told: None,
        }
    }

    /// Runs until the member ends, and says why.
    pub(crate) async fn run(mut self) -> Result<End, Error> {
        let subscribed = self.client.subscribe(format!("{}.*", self.inbox)).await;
        let mut inbox = subscribed
            .map_err(|error| ErrorKind::Broker.caused("the pull inbox could not be opened", error))?;
        let sleep = sleep_until(Instant::now());
        tokio::pin!(sleep);
        let (stop, work) = (self.channels.stop.clone(), Arc::clone(&self.work));
        let _closed_at_the_end = Closed(Arc::clone(&work));
        let mut stopping = false;
        loop {
            self.act().await;
            if let Some(end) = self.end.take() {
                self.leave(inbox).await;
                return end;
            }
            self.set_alarm(sleep.as_mut());
            tokio::select! {
                message = inbox.next() => match message {
                    Some(message) => self.received(message, &mut inbox),
                    None => self.closed(),
                },
                () = work.due() => {}
                Some(news) = self.channels.config.recv() => self.config_news(news),
                Some(news) = self.channels.settings.recv() => self.settings_news(&news),
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => self.answered(answer),
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.life_step(lifecycle::Event::Stop);
                }
                () = sleep.as_mut() => self.tick(),
            }
        }
    }

    fn set_alarm(&self, mut sleep: std::pin::Pin<&mut Sleep>) {
        let now = self.work.now();
        let latest = now + LOOK_EVERY;
        let latest = self.life.wake_at().map_or(latest, |at| at.min(latest));
        let at = Instant::now() + self.work.set_alarm(latest).saturating_sub(now);
        // Moving the alarm costs; one that rings up to a millisecond early only ticks once more.
        let set = sleep.deadline();
        if at < set || set <= Instant::now() || at > set + Duration::from_millis(400) {
            sleep.as_mut().reset(at);
        }
    }

    fn flow_step(&mut self, event: flow::Event<Box<Received>>) {
        self.work.step(event);
    }

    fn life_step(&mut self, event: lifecycle::Event) {
        let now = self.work.now();
        self.life.step(event, now, &mut self.life_actions);
    }

    fn tick(&mut self) {
        self.flow_step(flow::Event::Tick);
        self.life_step(lifecycle::Event::Tick);
        let now = self.work.now();
        let elastic = self.settings.kind == GroupKind::Elastic;
        if elastic && !self.looking && now >= self.next_look && self.work.is_pinned() {
            // Members of a group look at different times, and what one has counted the next need not.
            let spread = COMPARE_EVERY_MS + fastrand::u64(0..COMPARE_EVERY_MS / 2);
            self.next_look = now + Duration::from_millis(spread);
            self.look_at_source();
        }
    }

    fn closed(&mut self) {
        self.flow_step(flow::Event::Abort);
        self.end = Some(Err(ErrorKind::Closed.with("the connection to the broker was closed")));
    }

    fn config_news(&mut self, news: News) {
        let event = match news {
            News::Value(json) => match self.assign.assign(&json) {
                Ok((generation, filters)) => {
                    self.generation = generation;
                    lifecycle::Event::Assigned(filters)
                }
                Err(error) => lifecycle::Event::Broken(error),
            },
            News::Absent => lifecycle::Event::GroupDeleted,
            News::BucketGone => lifecycle::Event::Broken(
                ErrorKind::BucketNotFound
                    .with(format!("the bucket {:?} was deleted", self.settings.kind.bucket())),
            ),
        };
        self.life_step(event);
    }

    fn settings_news(&mut self, news: &News) {
        let settings = match news {
            News::Value(json) => crate::settings::GroupSettings::from_json(json).unwrap_or_default(),
            News::Absent | News::BucketGone => crate::settings::GroupSettings::default(),
        };
        if !self.settings.own_dead_letter {
            self.settings.dead_letter = settings.dead_letter();
            let after = self.settings.dead_letter.as_ref().map(|d| d.after_deliveries);
            self.work.configure(|config| config.dead_letter_after = after.filter(|_| config.acks));
        }
        self.flow_step(flow::Event::Pause(settings.paused));
        if std::mem::replace(&mut self.paused, settings.paused) != settings.paused {
            self.channels.notices.tell(if settings.paused { Notice::Paused } else { Notice::Resumed });
        }
    }

    /// Does everything that the machines have asked for, and what that leads to.
    async fn act(&mut self) {
        loop {
            if let Some(defect) = self.work.defect() {
                self.end = Some(Err(ErrorKind::Defect.with(format!(
                    "the member's order of messages broke, which is a defect of this library ({defect}): report it, \
                     and start the member again"
                ))));
                return;
            }
            let asked = self.work.actions();
            if asked.is_empty() && self.life_actions.is_empty() {
                return;
            }
            for action in asked {
                self.flow_action(action).await;
            }
            for action in std::mem::take(&mut self.life_actions) {
                self.life_action(action).await;
            }
        }
    }

    async fn flow_action(&mut self, action: flow::Action<Box<Received>>) {
        match action {
            flow::Action::Pull(pull) => self.pull(&pull).await,
            flow::Action::Bury(run) => self.bury(run),
            flow::Action::Confirm(content) => {
                self.publish(content.reply, Bytes::from_static(b"+ACK")).await;
            }
            flow::Action::Return(content) => self.publish(content.reply, nak_verb(None)).await,
            flow::Action::Progress => {
                for reply in self.work.replies() {
                    self.publish(reply, Bytes::from_static(b"+WPI")).await;
                }
            }
            flow::Action::AskPosition(question) => self.ask_position(question),
            // Done by whoever found out.
            flow::Action::Cancel => {}
            flow::Action::Pinned => {
                self.life_step(lifecycle::Event::Pinned(true));
                self.channels.state.send_replace(MemberState::Pinned);
                self.channels.notices.tell(Notice::Pinned);
            }
            flow::Action::PinLost(why) => {
                self.life_step(lifecycle::Event::Pinned(false));
                self.channels.state.send_replace(MemberState::Standby);
                self.channels.notices.tell(Notice::PinLost(why));
            }
            flow::Action::Reset => self.channels.notices.tell(Notice::ConsumerReset),
            flow::Action::Drained => self.life_step(lifecycle::Event::Drained),
        }
    }

    async fn life_action(&mut self, action: lifecycle::Action) {
        match action {
            lifecycle::Action::Create(filters) => self.create(filters),
            lifecycle::Action::Inspect(filters) => self.inspect(filters),
            lifecycle::Action::Delete => self.delete(),
            lifecycle::Action::Attach => {
                self.channels.state.send_replace(MemberState::Standby);
                self.flow_step(flow::Event::Attach);
            }
            lifecycle::Action::Drain => self.flow_step(flow::Event::Drain),
            lifecycle::Action::Abort => self.flow_step(flow::Event::Abort),
            lifecycle::Action::HandOver => self.hand_over = true,
            lifecycle::Action::Report(report) => self.report(report),
            lifecycle::Action::End(end) => self.end = Some(end),
        }
    }

    fn report(&mut self, report: Report) {
        let notice = match report {
            Report::Joined { filters } => Notice::Joined { filter_subjects: filters },
            Report::Waiting => {
                self.channels.state.send_replace(MemberState::Waiting);
                Notice::Waiting
            }
            Report::Retrying(error) => Notice::Retrying(Arc::new(error)),
        };
        self.channels.notices.tell(notice);
    }

    async fn publish(&mut self, subject: Subject, payload: Bytes) {
        // A connection that is closed for good is noticed where the inbox ends.
        if let Err(error) = self.client.publish(subject, payload).await {
            tracing::debug!(%error, "not published");
        }
    }

    async fn pull(&mut self, pull: &Pull) {
        let Some(plan) = &self.plan else { return };
        let mut body = format!(
            "{{\"batch\":{},\"expires\":{},\"group\":\"{}\"",
            pull.batch,
            pull.expires.as_nanos(),
            plan.priority_group
        );
        if let Some(pin) = &pull.pin {
            body.push_str(&format!(",\"id\":\"{pin}\""));
        }
        if !pull.heartbeat.is_zero() {
            body.push_str(&format!(",\"idle_heartbeat\":{}", pull.heartbeat.as_nanos()));
        }
        if pull.probe {
            body.push_str(",\"max_bytes\":1");
        }
        body.push('}');
        let subject =
            format!("{}.CONSUMER.MSG.NEXT.{}.{}", self.settings.api_prefix, plan.stream, plan.consumer);
        let reply = format!("{}.{}", self.inbox, pull.number);
        if let Err(error) = self.client.publish_with_reply(subject, reply, body.into()).await {
            tracing::debug!(%error, "pull not published");
        }
    }

    /// The last steps: give back what is buffered, give up the pin, so that a standby goes on within milliseconds.
    async fn leave(&mut self, mut inbox: Subscriber) {
        self.channels.state.send_replace(MemberState::Ended);
        if self.hand_over && self.work.is_pinned() {
            let fence = self.fence(&mut inbox);
            if timeout(Duration::from_secs(1), fence).await.is_err() {
                tracing::debug!("what was on its way stays unacknowledged until ack_wait");
            }
            for reply in self.work.take_buffered() {
                self.publish(reply, nak_verb(None)).await;
            }
            self.barrier().await;
            self.unpin().await;
        }
        self.flow_step(flow::Event::Abort);
        self.act().await;
    }

    /// Stops the broker from delivering here and takes what it had sent before.
    async fn fence(&mut self, inbox: &mut Subscriber) {
        let mark = format!("{}.fence.mark", self.inbox);
        let Ok(mut echo) = self.client.subscribe(mark.clone()).await else { return };
        // The server drops the subscription at once (it refuses so large a maximum), the client keeps listening.
        if inbox.unsubscribe_after(u64::MAX).await.is_err()
            || self.client.publish(mark, Bytes::new()).await.is_err()
        {
            return;
        }
        if echo.next().await.is_none() {
            return;
        }
        while let Some(Some(message)) = tokio::task::unconstrained(inbox.next()).now_or_never() {
            self.received(message, inbox);
        }
        self.act().await;
    }

    /// Returns when the broker has processed every acknowledgement sent before.
    async fn barrier(&mut self) {
        if let Some(reply) = self.work.any_reply() {
            remote::barrier(&self.client, reply).await;
        }
    }

    fn position_of(question: u64, info: &jetstream::consumer::Info, group: &str) -> Position {
        Position {
            question,
            delivered_stream_seq: info.delivered.stream_sequence,
            delivered_consumer_seq: info.delivered.consumer_sequence,
            ack_floor_stream_seq: info.ack_floor.stream_sequence,
            ack_pending: info.num_ack_pending,
            pinned: crate::api::pinned(info, group),
        }
    }
}

/// Lets the handlers go, however the engine ends.
struct Closed(Arc<Work>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl OrderBy {
    fn lane(self, subject: &str) -> u64 {
        let (partition, rest) = split_partition(subject);
        match self {
            Self::Partition => partition.map_or(u64::MAX, u64::from),
            Self::Subject => fnv64(rest),
            Self::Stream => 0,
        }
    }
}

/// Which lane a subject gets; two that share one only wait for each other.
fn fnv64(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
