//! The driver of one instance of a member: it feeds the pure machines and does what they say.
//!
//! One task owns everything. Handlers run in another task (or in the user's, for the stream form), so neither the
//! pin's renewal nor the progress of what is in hand waits for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
use crate::error::{Error, ErrorKind};
use crate::flow::{self, Delivery, Flow, FlowConfig, Position, Pull, PullStatus};
use crate::lifecycle::{self, End, Lifecycle, LifecycleConfig, Report};
use crate::message::{Message, Meta, Received, RunEvent, Ticket, nak_verb, split_partition};
use crate::name::GroupName;
use crate::plan::{ConsumerPlan, GroupKind};
use crate::watch::News;

mod remote;

use remote::Answer;

/// A message on its way to a handler, with the means to follow its run.
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) ticket: Arc<Ticket>,
}

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
}

/// The ends of the engine that others hold.
pub(crate) struct Channels {
    pub(crate) jobs: mpsc::UnboundedSender<Job>,
    pub(crate) config: mpsc::Receiver<News>,
    pub(crate) settings: mpsc::Receiver<News>,
    pub(crate) state: watch::Sender<MemberState>,
    pub(crate) notices: Notices,
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
    flow: Flow<Received>,
    life: Lifecycle,
    flow_actions: Vec<flow::Action<Received>>,
    life_actions: Vec<lifecycle::Action>,
    inbox: String,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    run_events: (mpsc::UnboundedSender<RunEvent>, mpsc::UnboundedReceiver<RunEvent>),
    /// Acknowledgement subjects of what is in hand, for progress.
    replies: HashMap<u64, Subject>,
    run_seq: HashMap<u64, u64>,
    last_reply: Option<Subject>,
    session: CancellationToken,
    statistics: Arc<async_nats::Statistics>,
    connects: u64,
    connected: bool,
    started: Instant,
    channels: Channels,
    end: Option<Result<End, Error>>,
    hand_over: bool,
}

/// How often the connection is looked at, whatever else happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl<A: Assign> Engine<A> {
    pub(crate) fn new(
        settings: Settings,
        context: jetstream::Context,
        assign: A,
        channels: Channels,
    ) -> Self {
        let client = context.client();
        let acks = settings.template.ack_policy != AckPolicy::None;
        let flow = Flow::new(FlowConfig {
            pinned_ttl: Duration::from_secs(5),
            redelivery_after: Duration::from_secs(5),
            max_ack_pending: None,
            buffer: settings.buffer,
            concurrency: settings.concurrency,
            acks,
            dead_letter_after: settings.dead_letter.as_ref().filter(|_| acks).map(|d| d.after_deliveries),
        });
        let life = Lifecycle::new(LifecycleConfig {
            fixed: settings.kind == GroupKind::Static,
            drain_timeout: settings.drain_timeout,
            lease: crate::plan::longest_lease(&settings.template),
            seed: fastrand::u64(..),
        });
        Self {
            inbox: client.new_inbox(),
            connects: client.statistics().connects.load(Ordering::Relaxed),
            statistics: client.statistics(),
            connected: true,
            flow,
            life,
            settings,
            context,
            client,
            assign,
            generation: Generation::Current,
            plan: None,
            flow_actions: Vec::new(),
            life_actions: Vec::new(),
            answers: FuturesUnordered::new(),
            run_events: mpsc::unbounded_channel(),
            replies: HashMap::new(),
            run_seq: HashMap::new(),
            last_reply: None,
            session: CancellationToken::new(),
            started: Instant::now(),
            channels,
            end: None,
            hand_over: false,
        }
    }

    /// Runs until the member ends, and says why.
    pub(crate) async fn run(mut self) -> Result<End, Error> {
        let subscribed = self.client.subscribe(format!("{}.*", self.inbox)).await;
        let mut inbox = subscribed
            .map_err(|error| ErrorKind::Broker.caused("the pull inbox could not be opened", error))?;
        let sleep = sleep_until(self.started);
        tokio::pin!(sleep);
        let stop = self.channels.stop.clone();
        let mut stopping = false;
        loop {
            self.notice_connection();
            self.act().await;
            if let Some(end) = self.end.take() {
                self.leave(inbox).await;
                return end;
            }
            self.set_alarm(sleep.as_mut());
            // Runs first: a position is only judged after what is known of them.
            tokio::select! {
                biased;
                Some(event) = self.run_events.1.recv() => self.run_event(event),
                message = inbox.next() => match message {
                    Some(message) => self.received(message),
                    None => self.closed(),
                },
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

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn set_alarm(&self, mut sleep: std::pin::Pin<&mut Sleep>) {
        let wake = [self.flow.wake_at(), self.life.wake_at()].into_iter().flatten().min();
        let latest = self.now() + LOOK_EVERY;
        let at = self.started + wake.unwrap_or(latest).min(latest);
        // Moving the alarm costs; one that rings up to a millisecond early only ticks once more.
        let set = sleep.deadline();
        if at < set || set <= Instant::now() || at > set + Duration::from_millis(400) {
            sleep.as_mut().reset(at);
        }
    }

    fn flow_step(&mut self, event: flow::Event<Received>) {
        let now = self.now();
        self.flow.step(event, now, &mut self.flow_actions);
    }

    fn life_step(&mut self, event: lifecycle::Event) {
        let now = self.now();
        self.life.step(event, now, &mut self.life_actions);
    }

    /// A connection that is lost, or is back: whoever is on the other side may have given our pin away.
    fn notice_connection(&mut self) {
        let connected = self.client.connection_state() == async_nats::connection::State::Connected;
        if self.connected && !connected {
            self.flow_step(flow::Event::Disconnected);
        }
        self.connected = connected;
        let connects = self.statistics.connects.load(Ordering::Relaxed);
        if connects != self.connects {
            self.connects = connects;
            self.flow_step(flow::Event::Reconnected);
        }
    }

    fn tick(&mut self) {
        self.flow_step(flow::Event::Tick);
        self.life_step(lifecycle::Event::Tick);
    }

    fn closed(&mut self) {
        self.flow_step(flow::Event::Abort);
        self.end = Some(Err(ErrorKind::Closed.with("the connection to the broker was closed")));
    }

    fn run_event(&mut self, event: RunEvent) {
        self.notice_connection();
        let event = match event {
            RunEvent::Settling(run) => flow::Event::Settling { run },
            RunEvent::Settled(run, settlement) => {
                self.forget_reply(run);
                flow::Event::Settled { run, settlement }
            }
            RunEvent::Finished(run) => {
                self.forget_reply(run);
                flow::Event::Finished { run }
            }
        };
        self.flow_step(event);
    }

    fn forget_reply(&mut self, run: u64) {
        if let Some(seq) = self.run_seq.remove(&run) {
            self.replies.remove(&seq);
        }
    }

    fn received(&mut self, message: async_nats::Message) {
        if message.status.is_some() {
            self.status(&message);
            return;
        }
        let Some((meta, reply)) =
            message.reply.and_then(|reply| Meta::parse(&reply).map(|meta| (meta, reply)))
        else {
            return;
        };
        let pin = message.headers.as_ref().and_then(|h| h.get("Nats-Pin-Id")).map(|v| v.as_str().to_owned());
        let delivery = Delivery {
            stream_seq: meta.stream_seq,
            consumer_seq: meta.consumer_seq,
            deliveries: meta.deliveries,
            lane: self.settings.order_by.lane(&message.subject),
            pin,
            content: Received {
                subject: message.subject,
                payload: message.payload,
                headers: message.headers,
                reply: reply.clone(),
                meta,
            },
        };
        self.replies.insert(meta.stream_seq, reply);
        self.flow_step(flow::Event::Delivered(delivery));
    }

    fn status(&mut self, message: &async_nats::Message) {
        let Some(pull) = message.subject.rsplit('.').next().and_then(|n| n.parse().ok()) else { return };
        if !self.flow.knows_pull(pull) {
            // An answer to an earlier consumer's pull, our own deletion of it among them.
            return;
        }
        let code = message.status.map_or(0, |s| s.as_u16());
        let text = message.description.as_deref().unwrap_or_default();
        let status = match code {
            100 => PullStatus::Accepted { ended: false },
            404 | 408 => PullStatus::Accepted { ended: true },
            409 if text.eq_ignore_ascii_case("Message Size Exceeds MaxBytes") => {
                PullStatus::Accepted { ended: true }
            }
            423 => PullStatus::WrongPin,
            503 => {
                self.ask_whether_gone();
                PullStatus::Refused
            }
            409 if text.eq_ignore_ascii_case("Consumer Deleted") => {
                // Somebody else may create it this instant, with our partitions in it.
                self.flow_step(flow::Event::Abort);
                self.ask_whether_gone();
                return;
            }
            _ => PullStatus::Refused,
        };
        let unused = message.headers.as_ref().and_then(|h| h.get("Nats-Pending-Messages"));
        let unused = unused.and_then(|v| v.as_str().parse().ok()).unwrap_or(0);
        self.flow_step(flow::Event::Status { pull, status, unused });
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
        let paused = match news {
            News::Value(json) => crate::settings::GroupSettings::from_json(json).is_ok_and(|s| s.paused),
            News::Absent | News::BucketGone => false,
        };
        self.flow_step(flow::Event::Pause(paused));
        self.channels.notices.tell(if paused { Notice::Paused } else { Notice::Resumed });
    }

    /// Does everything that the machines have asked for, and what that leads to.
    async fn act(&mut self) {
        while !self.flow_actions.is_empty() || !self.life_actions.is_empty() {
            for action in std::mem::take(&mut self.flow_actions) {
                self.flow_action(action).await;
            }
            for action in std::mem::take(&mut self.life_actions) {
                self.life_action(action).await;
            }
        }
    }

    async fn flow_action(&mut self, action: flow::Action<Received>) {
        match action {
            flow::Action::Pull(pull) => self.pull(&pull).await,
            flow::Action::Run { run, stream_seq, bury, content } => {
                self.start(run, stream_seq, bury, content)
            }
            flow::Action::Confirm(content) => {
                self.replies.remove(&content.meta.stream_seq);
                self.publish(content.reply, Bytes::from_static(b"+ACK")).await;
            }
            flow::Action::Return(content) => {
                self.replies.remove(&content.meta.stream_seq);
                self.publish(content.reply, nak_verb(None)).await;
            }
            flow::Action::Progress => {
                for reply in self.replies.values().cloned().collect::<Vec<_>>() {
                    self.publish(reply, Bytes::from_static(b"+WPI")).await;
                }
            }
            flow::Action::AskPosition(question) => self.ask_position(question),
            flow::Action::Cancel => {
                std::mem::take(&mut self.session).cancel();
                self.replies.clear();
                self.run_seq.clear();
            }
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

    fn start(&mut self, run: u64, stream_seq: u64, bury: bool, content: Received) {
        self.last_reply = Some(content.reply.clone());
        self.run_seq.insert(run, stream_seq);
        let ticket = Arc::new(Ticket {
            run,
            client: self.client.clone(),
            reply: content.reply.clone(),
            events: self.run_events.0.clone(),
            settled: AtomicBool::new(false),
            cancelled: self.session.clone(),
            acks: self.settings.template.ack_policy != AckPolicy::None,
        });
        if bury {
            self.bury(content, ticket);
            return;
        }
        let message = Message::new(content, Arc::clone(&ticket));
        // Without a receiver the job is dropped, which ends the run.
        drop(self.channels.jobs.send(Job { message, ticket }));
    }

    /// The last steps: give back what is buffered, give up the pin, so that a standby goes on within milliseconds.
    async fn leave(&mut self, mut inbox: Subscriber) {
        self.channels.state.send_replace(MemberState::Ended);
        if self.hand_over && self.flow.pin().is_some() {
            let fence = self.fence(&mut inbox);
            if timeout(Duration::from_secs(1), fence).await.is_err() {
                tracing::debug!("what was on its way stays unacknowledged until ack_wait");
            }
            for content in self.flow.take_buffered() {
                self.publish(content.reply, nak_verb(None)).await;
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
            self.received(message);
        }
        self.act().await;
    }

    /// Returns when the broker has processed every acknowledgement sent before.
    async fn barrier(&mut self) {
        if let Some(reply) = &self.last_reply {
            remote::barrier(&self.client, reply.clone()).await;
        }
    }

    fn position_of(question: u64, info: &jetstream::consumer::Info, group: &str) -> Position {
        Position {
            question,
            delivered_stream_seq: info.delivered.stream_sequence,
            ack_floor_stream_seq: info.ack_floor.stream_sequence,
            ack_pending: info.num_ack_pending,
            pinned: crate::api::pinned(info, group),
        }
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
