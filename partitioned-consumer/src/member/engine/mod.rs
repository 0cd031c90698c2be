//! The driver of one instance of a member: it feeds the pure machines and does what they say.
//!
//! Handlers run in tasks of their own (or in the user's, for the stream form) and take what they
//! handle from [`super::work`], so neither the pin's renewal nor the progress of what is in hand
//! waits for them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::{Client, Subject, Subscriber, jetstream};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::answer::Answer;
use super::assignment::Assignment;
use super::config::MemberConfig;
use super::event::{MemberEvent, MemberEvents, MemberState};
use super::lifecycle::{self, End, Lifecycle, LifecycleConfig, Report};
use super::message::nak_verb;
use super::plan::{ConsumerPlan, longest_lease};
use super::received::Received;
use super::watch::WatchUpdate;
use super::work::Work;
use crate::error::{Error, ErrorKind};
use crate::group::config::Generation;
use crate::group::kind::GroupKind;
use crate::group::settings::GroupSettings;
use crate::group::source_loss::{Copied, SourceLoss};
use crate::order::{self as flow, Pull};

mod answer;
mod dead_letter;
mod inbox;
mod remote;

/// The ends of the engine that others hold.
pub(crate) struct Channels {
    pub(crate) work: Arc<Work>,
    /// Changes of the group's entry.
    pub(crate) entry: mpsc::Receiver<WatchUpdate>,
    /// Changes of the group's settings.
    pub(crate) settings: mpsc::Receiver<WatchUpdate>,
    pub(crate) state: watch::Sender<MemberState>,
    pub(crate) events: MemberEvents,
    /// What the group lost before it was copied, as of the last comparison.
    pub(crate) source_loss: watch::Sender<SourceLoss>,
    pub(crate) stop: CancellationToken,
}

pub(crate) struct Engine {
    config: MemberConfig,
    context: jetstream::Context,
    client: Client,
    assignment: Assignment,
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
    compare_at: Duration,
    comparing: bool,
    /// What the log says about how few messages the source keeps.
    kept_logged: Option<u64>,
}

/// How often the connection is checked, whatever else happens.
const TICK_INTERVAL: Duration = Duration::from_millis(500);
/// How often a pinned instance compares the source stream with what was copied.
const COMPARE_EVERY_MS: u64 = 5_000;

impl Engine {
    pub(crate) fn new(
        config: MemberConfig,
        context: jetstream::Context,
        assignment: Assignment,
        channels: Channels,
    ) -> Self {
        let client = context.client();
        let life = Lifecycle::new(LifecycleConfig {
            fixed: config.kind == GroupKind::Static,
            drain_timeout: config.drain_timeout,
            lease: longest_lease(&config.template),
            seed: fastrand::u64(..),
        });
        Self {
            inbox: client.new_inbox(),
            work: Arc::clone(&channels.work),
            life,
            config,
            context,
            client,
            assignment,
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
            compare_at: Duration::ZERO,
            comparing: false,
            kept_logged: None,
        }
    }

    /// Runs until the member ends, and says why.
    pub(crate) async fn run(mut self) -> Result<End, Error> {
        let subscribed = self.client.subscribe(format!("{}.*", self.inbox)).await;
        let mut inbox = subscribed.map_err(|error| {
            ErrorKind::Broker.caused("the pull inbox could not be opened", error)
        })?;
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
                Some(update) = self.channels.entry.recv() => self.entry_changed(update),
                Some(update) = self.channels.settings.recv() => self.settings_changed(&update),
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
        let latest = now + TICK_INTERVAL;
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
        let elastic = self.config.kind == GroupKind::Elastic;
        if elastic && !self.comparing && now >= self.compare_at && self.work.is_pinned() {
            // Members of a group compare at different times, and what one has counted the next need
            // not.
            let spread = COMPARE_EVERY_MS + fastrand::u64(0..COMPARE_EVERY_MS / 2);
            self.compare_at = now + Duration::from_millis(spread);
            self.compare_with_source();
        }
    }

    fn closed(&mut self) {
        self.flow_step(flow::Event::Abort);
        self.end = Some(Err(ErrorKind::Closed.with("the connection to the broker was closed")));
    }

    fn entry_changed(&mut self, update: WatchUpdate) {
        let event = match update {
            WatchUpdate::Value(json) => match self.assignment.read(&json) {
                Ok((generation, filters)) => {
                    self.generation = generation;
                    lifecycle::Event::Assigned(filters)
                }
                Err(error) => lifecycle::Event::Broken(error),
            },
            WatchUpdate::Absent => lifecycle::Event::GroupDeleted,
            WatchUpdate::BucketGone => lifecycle::Event::Broken(
                ErrorKind::BucketNotFound
                    .with(format!("the bucket {:?} was deleted", self.config.kind.bucket())),
            ),
        };
        self.life_step(event);
    }

    fn settings_changed(&mut self, update: &WatchUpdate) {
        let settings = match update {
            WatchUpdate::Value(json) => GroupSettings::from_json(json).unwrap_or_default(),
            WatchUpdate::Absent | WatchUpdate::BucketGone => GroupSettings::default(),
        };
        if !self.config.own_dead_letter {
            self.config.dead_letter = settings.dead_letter();
            let after = self.config.dead_letter.as_ref().map(|d| d.after_deliveries);
            self.work.configure(|config| config.dead_letter_after = after.filter(|_| config.acks));
        }
        self.flow_step(flow::Event::Pause(settings.paused));
        if std::mem::replace(&mut self.paused, settings.paused) != settings.paused {
            self.channels.events.publish(if settings.paused {
                MemberEvent::Paused
            } else {
                MemberEvent::Resumed
            });
        }
    }

    /// Does everything that the machines have asked for, and what that leads to.
    async fn act(&mut self) {
        loop {
            if let Some(defect) = self.work.defect() {
                self.end = Some(Err(ErrorKind::Defect.with(format!(
                    "the member's order of messages broke, which is a defect of this library \
                     ({defect}): report it, and start the member again"
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
            flow::Action::DeadLetter(run) => self.dead_letter(run),
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
                self.channels.events.publish(MemberEvent::Pinned);
            }
            flow::Action::PinLost(why) => {
                self.life_step(lifecycle::Event::Pinned(false));
                self.channels.state.send_replace(MemberState::Standby);
                self.channels.events.publish(MemberEvent::PinLost(why));
            }
            flow::Action::Reset => self.channels.events.publish(MemberEvent::ConsumerReset),
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
        let event = match report {
            Report::Joined { filters } => MemberEvent::Joined { filter_subjects: filters },
            Report::Waiting => {
                self.channels.state.send_replace(MemberState::Waiting);
                MemberEvent::Waiting
            }
            Report::Retrying(error) => MemberEvent::Retrying(Arc::new(error)),
        };
        self.channels.events.publish(event);
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
        let subject = format!(
            "{}.CONSUMER.MSG.NEXT.{}.{}",
            self.config.api_prefix, plan.stream, plan.consumer
        );
        let reply = format!("{}.{}", self.inbox, pull.number);
        if let Err(error) = self.client.publish_with_reply(subject, reply, body.into()).await {
            tracing::debug!(%error, "pull not published");
        }
    }

    /// The last steps: give back what is buffered, give up the pin, so that a standby goes on
    /// within milliseconds.
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
        // The server drops the subscription at once (it refuses so large a maximum), the client
        // keeps listening.
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
}

/// Lets the handlers go, however the engine ends.
struct Closed(Arc<Work>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.close();
    }
}
