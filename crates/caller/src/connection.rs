//! One connection of one thread to the broker: what is published on it, and what comes back.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, StatusCode as NatsStatus, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_boot::{Clock, Session};
use natsway_tunnel::unary::ControlAnswer;
use natsway_wire::control::{WorkerCommand, worker_subject};
use natsway_wire::envelope::{
    NotRun, REPLY_SUBJECT_OVERHEAD_BYTES, Reference, Reply, Signal, decode_reply,
    with_reply_subject,
};
use natsway_wire::native::{self, NativeReply};
use natsway_wire::{ErrorKind, Limits};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::attempt::{Answer, AttemptError, Continuation, KeptPlace, Outgoing};
use crate::counter::ConnectionCounts;
use crate::duplicates::DuplicateReplies;
use crate::pending::{Accepted, Key, PendingRequests, ReplyPolicy};

/// How often a connection asks after the instances that run its requests.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(500);

/// How often deadlines are looked at while requests are out: how late one may be noticed.
const EXPIRY_TICK: Duration = Duration::from_millis(10);

/// A look at them that comes later than this comes after a pause of this thread or machine.
const LATE_TICK: Duration = Duration::from_millis(100);

/// Pings in a row without an answer after which an instance is taken for lost: 1.5 s. When the
/// broker says that nobody listens there, it is lost at once.
const PINGS_UNANSWERED: u32 = 3;

/// What a NATS message costs besides its payload and headers: verb, subjects, lengths. Rounded up.
const MESSAGE_OVERHEAD_BYTES: usize = 512;

/// Why a connection does not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionError {
    /// It is above what the broker takes, headers included.
    TooLarge {
        /// What the broker takes.
        most_bytes: usize,
    },
    /// As much is out as may be.
    Full,
}

/// Bounds of what may be out on one connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Requests.
    pub in_flight: usize,
    /// Bytes of requests. The broker drops a client for which 64 MiB are pending, so this is half
    /// of that.
    pub in_flight_bytes: usize,
}

/// What concerns the tunnels of a thread, and comes by its connections to the broker.
#[derive(Debug)]
pub enum StreamEvent {
    /// A worker that cannot reach this thread's address for tunnels asks for a pipe to this
    /// subject.
    Invited(String),
    /// A response goes on by a stream, and nobody waits for it any more.
    Unwanted(Reference),
}

/// Who hears of that.
pub type StreamEvents = OnceCell<Box<dyn Fn(StreamEvent)>>;

/// A connection, and the requests that are out on it.
pub struct Connection {
    client: Client,
    server_id: String,
    address: String,
    /// The reply subject up to its last token, dot included.
    inbox: String,
    pending: RefCell<PendingRequests<Answer>>,
    duplicates: RefCell<DuplicateReplies>,
    limits: ConnectionLimits,
    says_reply_subject: bool,
    stream_events: Rc<StreamEvents>,
    bytes_in_flight: Cell<usize>,
    counts: Arc<ConnectionCounts>,
    clock: Clock,
    lost: Cell<bool>,
    /// The broker does not answer, for now.
    silent: Cell<bool>,
    retired: Cell<bool>,
    /// Told when a retired connection may have nothing out any more.
    emptied: Notify,
    /// Wakes [`expire`](Self::expire) when it is `expiry_parked`.
    expiry: Notify,
    expiry_parked: Cell<bool>,
    /// Pings in a row that each instance left unanswered.
    unanswered: RefCell<HashMap<Rc<str>, u32>>,
}

/// The last token of the echo's subject: no key of a request.
const ECHO: &str = "echo";

/// How long the echo may take.
const ECHO_LIMIT: Duration = Duration::from_millis(250);

impl Connection {
    /// Subscribes to the replies of a new session, on an inbox of its own, and waits a moment for
    /// an echo, for with that the broker's objections are here too.
    ///
    /// # Errors
    /// The session was lost already.
    pub async fn open(
        session: &Session,
        limits: ConnectionLimits,
        counts: Arc<ConnectionCounts>,
        says_reply_subject: bool,
        stream_events: Rc<StreamEvents>,
    ) -> Result<(Rc<Self>, Subscriber), async_nats::SubscribeError> {
        let inbox = format!("{}.{}.", session.inbox_prefix(), natsway_boot::random_id());
        let mut replies = session.client().subscribe(format!("{inbox}*")).await?;
        if session.client().publish(format!("{inbox}{ECHO}"), Bytes::new()).await.is_ok() {
            // Who may not publish to itself hears nothing, and that means nothing.
            tokio::time::timeout(ECHO_LIMIT, replies.next()).await.ok();
        }
        let connection = Self {
            client: session.client().clone(),
            server_id: session.server_id().to_owned(),
            address: session.address().to_owned(),
            inbox,
            pending: RefCell::default(),
            duplicates: RefCell::default(),
            limits,
            says_reply_subject,
            stream_events,
            bytes_in_flight: Cell::new(0),
            counts,
            clock: Clock::start(),
            lost: Cell::new(false),
            silent: Cell::new(false),
            retired: Cell::new(false),
            emptied: Notify::new(),
            expiry: Notify::new(),
            expiry_parked: Cell::new(false),
            unanswered: RefCell::default(),
        };
        Ok((Rc::new(connection), replies))
    }

    /// The id of the server at the other end.
    pub fn server_id(&self) -> &str {
        &self.server_id
    }

    /// The address that was dialled, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The time to stamp a request with that is sent at `now`, in milliseconds of this connection's
    /// clock.
    pub fn unix_ms_at(&self, now: Instant) -> u64 {
        self.clock.unix_ms_at(now)
    }

    /// The largest message that the broker takes, and so the largest answer.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Whether one more request may be out that counts so many bytes against the broker's
    /// `max_payload`.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn admit(&self, bytes: usize) -> Result<(), AdmissionError> {
        let longer = if self.says_reply_subject {
            self.inbox.len() + Key::TOKEN_BYTES + REPLY_SUBJECT_OVERHEAD_BYTES
        } else {
            0
        };
        let most_bytes = self.client.max_payload().saturating_sub(longer);
        if bytes > most_bytes {
            return Err(AdmissionError::TooLarge { most_bytes });
        }
        let has_room = self.pending.borrow().len() < self.limits.in_flight
            && self.bytes_in_flight.get() + bytes <= self.limits.in_flight_bytes;
        if has_room { Ok(()) } else { Err(AdmissionError::Full) }
    }

    /// Publishes a request and waits for how it ends, no longer than its deadline. Once it counts
    /// as lost, `give_up` is asked whether it is tried elsewhere; else it is waited for.
    ///
    /// # Cancel safety
    /// When the future is dropped, nobody waits any more: the work is cancelled at its worker, if
    /// the request's policy say so, and what comes back is dropped.
    pub async fn call(self: &Rc<Self>, outgoing: Outgoing, give_up: impl Fn() -> bool) -> Answer {
        let Outgoing {
            subject,
            payload,
            headers,
            offer_bytes,
            bytes,
            policy,
            deadline,
            accept_by,
            version,
        } = outgoing;
        if self.lost.get() {
            return Answer::Failed(AttemptError::NotConnected);
        }
        let mut wait = Wait::new(self, deadline, policy, bytes);
        if let Some(moment) = accept_by {
            self.pending.borrow_mut().accept_by(wait.key, moment);
        }
        self.duplicates.borrow_mut().begin(wait.key, version);
        let reply = self.reply_subject(wait.key);
        // Other messages that are answered in envelopes there are none; a native backend's are its
        // own.
        let payload = match self.says_reply_subject && policy.signals {
            true => {
                let offer = &payload[payload.len() - offer_bytes..];
                with_reply_subject(&payload, offer, &reply).unwrap_or(payload)
            }
            false => payload,
        };
        let mut published = pin!(async {
            match headers {
                None => self.client.publish_with_reply(subject, reply, payload).await,
                Some(headers) => {
                    // In a box: few routes have them, and the room would be kept in every request's
                    // future.
                    let headed = self
                        .client
                        .publish_with_reply_and_headers(subject, reply, headers, payload);
                    Box::pin(headed).await
                }
            }
        });
        let mut accepted = false;
        poll_fn(|cx| {
            if !accepted {
                match published.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => accepted = true,
                    // Not accepted means that it was never sent: the client's queue is gone, with
                    // the session.
                    Poll::Ready(Err(error)) => {
                        debug!(%error, "not published");
                        return Poll::Ready(Answer::Failed(AttemptError::NotConnected));
                    }
                    Poll::Pending => {}
                }
            }
            if self.pending.borrow_mut().accept_timed_out(wait.key) && give_up() {
                return Poll::Ready(Answer::Failed(AttemptError::NotAccepted));
            }
            wait.poll(cx)
        })
        .await
    }

    fn reply_subject(&self, key: Key) -> Subject {
        let mut subject = String::with_capacity(self.inbox.len() + Key::TOKEN_BYTES);
        subject.push_str(&self.inbox);
        subject.push_str(std::str::from_utf8(&key.token()).expect("hexadecimal digits"));
        subject.into()
    }

    /// Takes replies in until the session is lost, or the connection was retired and nothing is out
    /// any more.
    pub async fn read_replies(self: Rc<Self>, mut replies: Subscriber) {
        // Tasks of their own, and no part of what is polled with every reply.
        let _expiry = AbortOnDropHandle::new(tokio::task::spawn_local(Rc::clone(&self).expire()));
        let _upkeep = AbortOnDropHandle::new(tokio::task::spawn_local(Rc::clone(&self).upkeep()));
        let mut emptied = pin!(self.emptied.notified());
        loop {
            tokio::select! {
                biased;
                message = replies.next() => match message {
                    Some(message) => self.dispatch(message),
                    None => break,
                },
                () = &mut emptied => emptied.set(self.emptied.notified()),
            }
            if self.retired.get() && self.pending.borrow().is_empty() {
                debug!(server_id = %self.server_id, "old broker connection closed");
                return;
            }
        }
        self.lost.set(true);
        let unanswered =
            self.pending.borrow_mut().fail(None, || Answer::Failed(AttemptError::ConnectionLost));
        if unanswered > 0 {
            warn!(
                requests = unanswered,
                "broker connection lost with requests out; what became of them is unknown"
            );
        }
    }

    /// Gives up the requests whose deadline has passed, until dropped itself.
    async fn expire(self: Rc<Self>) {
        loop {
            if self.pending.borrow().is_empty() {
                self.expiry_parked.set(true);
                self.expiry.notified().await;
                self.expiry_parked.set(false);
            }
            let before = Instant::now();
            tokio::time::sleep(EXPIRY_TICK).await;
            let now = Instant::now();
            self.pending.borrow_mut().expire(now, now - before > LATE_TICK);
        }
    }

    /// Asks after the instances that run something now and then, until dropped itself.
    async fn upkeep(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            ticks.tick().await;
            self.look_after();
        }
    }

    /// Takes note of whether the broker answers.
    pub(crate) fn is_heard(&self, answers: bool) {
        self.silent.set(!answers);
    }

    /// Whether the broker does not answer: what need not go there goes elsewhere.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.get()
    }

    /// No new requests come; the connection closes when the last of the old ones is done.
    pub fn retire(&self) {
        self.retired.set(true);
        self.emptied.notify_one();
    }

    /// The connection may be frozen: requests that may run twice are given up here, so that they
    /// can be tried elsewhere while there is time. All others wait on.
    pub fn give_up_repeatable(&self) {
        let given_up = self
            .pending
            .borrow_mut()
            .fail_repeatable(|| Answer::Failed(AttemptError::ConnectionLost));
        debug!(requests = given_up, "tried elsewhere");
    }

    /// Whether the connection is gone.
    pub fn is_lost(&self) -> bool {
        self.lost.get()
    }

    fn dispatch(self: &Rc<Self>, message: Message) {
        let key = message.subject.strip_prefix(&self.inbox).and_then(Key::parse);
        let signals = key.and_then(|key| self.pending.borrow_mut().expects_signals(key));
        let (Some(key), Some(signals)) = (key, signals) else {
            if key.is_some_and(|key| self.is_late_signal(key, &message.payload)) {
                return;
            }
            return self.unexpected(key);
        };
        let answer =
            if message.status == Some(NatsStatus::NO_RESPONDERS) && message.payload.is_empty() {
                Answer::Failed(AttemptError::NoResponders)
            } else if signals {
                match decode_reply(&message.payload, Limits::DEFAULT) {
                    Ok(Reply::Signal(Signal::Ready { instance, token, secret })) => {
                        let place = self.place_at(key, instance);
                        let ready = Continuation::Ready { token, secret, place };
                        // Where nobody waits for it any more, it is dropped.
                        let ready = Answer::Continues(Box::new(ready));
                        self.pending.borrow_mut().deliver(key, ready);
                        return;
                    }
                    Ok(Reply::Signal(Signal::Invite { subject })) => {
                        return self.tell(StreamEvent::Invited(subject));
                    }
                    Ok(Reply::Signal(Signal::Accepted { instance })) => {
                        return self.accepted(key, &instance);
                    }
                    Ok(reply) => answer_of(reply, &self.stream_events),
                    Err(error) => unreadable(&error, &message),
                }
            } else {
                read_native(&message)
            };
        let is_reply = !matches!(answer, Answer::Failed(AttemptError::NoResponders));
        let is_first = self.pending.borrow_mut().deliver(key, answer);
        match is_first {
            true if is_reply => self.duplicates.borrow_mut().answered(key),
            true => {}
            false => self.unexpected(Some(key)),
        }
    }

    /// Whether a message for a request that is not there any more is a signal, not a reply. The
    /// request may have been answered by another tunnel, or its client has left: then the worker
    /// keeps nothing for it.
    fn is_late_signal(self: &Rc<Self>, key: Key, payload: &Bytes) -> bool {
        match decode_reply(payload, Limits::DEFAULT) {
            Ok(Reply::Signal(Signal::Invite { subject })) => {
                self.tell(StreamEvent::Invited(subject));
                true
            }
            Ok(Reply::Signal(Signal::Ready { instance, .. })) => {
                drop(self.place_at(key, instance));
                true
            }
            Ok(Reply::Reference(_, reference)) => {
                self.tell(StreamEvent::Unwanted(reference));
                false
            }
            _ => false,
        }
    }

    /// Returns the place that an instance keeps for a request.
    fn place_at(self: &Rc<Self>, key: Key, instance: String) -> KeptPlace {
        let connection = Rc::clone(self);
        KeptPlace::new(move || connection.cancel(key, &instance))
    }

    fn tell(&self, event: StreamEvent) {
        match self.stream_events.get() {
            Some(hear) => hear(event),
            None => self.counts.late_replies.inc(),
        }
    }

    /// Counts a reply that nobody waits for: a late one, or a second one.
    fn unexpected(&self, key: Option<Key>) {
        self.counts.late_replies.inc();
        if let Some(key) = key {
            self.duplicates.borrow().unexpected(key);
        }
    }

    fn accepted(self: &Rc<Self>, key: Key, instance: &str) {
        let accepted = self.pending.borrow_mut().accept(key, instance);
        match accepted {
            Accepted::Noted => {}
            Accepted::Cancel => self.cancel(key, instance),
            Accepted::Late => self.counts.late_replies.inc(),
        }
    }

    /// Tells an instance to drop a request.
    fn cancel(self: &Rc<Self>, key: Key, instance: &str) {
        self.counts.cancelled.inc();
        let reply = self.reply_subject(key).to_string();
        let command = WorkerCommand::Cancel { reply }.encode();
        let subject = worker_subject(instance);
        let connection = Rc::clone(self);
        tokio::task::spawn_local(async move {
            // If it cannot be told, the handler runs to its deadline, and its reply is dropped.
            if let Err(error) = connection.client.publish(subject, command).await {
                debug!(%error, "cancel not published");
            }
        });
    }

    /// Asks the instances that run something whether they live.
    fn look_after(self: &Rc<Self>) {
        let instances = self.pending.borrow().instances();
        self.unanswered.borrow_mut().retain(|instance, _| instances.contains(instance));
        for instance in instances {
            tokio::task::spawn_local(Rc::clone(self).ping(instance));
        }
    }

    /// Asks an instance's control thread whether it lives.
    pub(crate) async fn asks(self: &Rc<Self>, instance: &str) -> ControlAnswer {
        let payload = WorkerCommand::Ping.encode();
        let outgoing = Outgoing {
            offer_bytes: 0,
            subject: worker_subject(instance).into(),
            bytes: payload.len(),
            payload,
            headers: None,
            policy: ReplyPolicy { signals: false, cancel: false, repeatable: false },
            deadline: Instant::now() + UPKEEP_INTERVAL,
            accept_by: None,
            version: None,
        };
        match self.call(outgoing, || false).await {
            Answer::Failed(AttemptError::NoResponders) => ControlAnswer::Nobody,
            Answer::Failed(AttemptError::TimedOut) => ControlAnswer::Silent,
            // Of a connection that broke nothing is learned.
            _ => ControlAnswer::Lives,
        }
    }

    async fn ping(self: Rc<Self>, instance: Rc<str>) {
        let lost = match self.asks(&instance).await {
            ControlAnswer::Nobody => true,
            ControlAnswer::Silent => {
                let mut unanswered = self.unanswered.borrow_mut();
                let count = unanswered.entry(Rc::clone(&instance)).or_default();
                *count += 1;
                *count >= PINGS_UNANSWERED
            }
            ControlAnswer::Lives => {
                self.unanswered.borrow_mut().remove(&instance);
                false
            }
        };
        if lost {
            let failed = self
                .pending
                .borrow_mut()
                .fail(Some(&instance), || Answer::Failed(AttemptError::InstanceLost));
            if failed > 0 {
                warn!(%instance, requests = failed, "worker lost with requests in hand");
            }
        }
    }
}

/// What a reply means that nothing follows. A response that goes on, and that nobody takes, is told
/// of.
pub(crate) fn answer_of(reply: Reply, events: &Rc<StreamEvents>) -> Answer {
    match reply {
        Reply::Response(response) => Answer::Replied(NativeReply::Response(response)),
        Reply::Reference(response, reference) => {
            let events = Rc::clone(events);
            let place = KeptPlace::new(move || {
                if let Some(hear) = events.get() {
                    hear(StreamEvent::Unwanted(reference));
                }
            });
            let continuation = Continuation::Response { response, reference, place };
            Answer::Continues(Box::new(continuation))
        }
        Reply::Signal(Signal::NotRun(reason)) => not_run(reason),
        Reply::Signal(Signal::Accepted { .. } | Signal::Ready { .. } | Signal::Invite { .. }) => {
            Answer::Unreadable("a signal where only answers are given".to_owned())
        }
    }
}

fn not_run(reason: NotRun) -> Answer {
    match reason {
        NotRun::Overloaded => Answer::Failed(AttemptError::Overloaded),
        NotRun::UpstreamDown => Answer::Failed(AttemptError::UpstreamDown),
        NotRun::UpstreamBroken => Answer::Failed(AttemptError::UpstreamBroken),
        NotRun::Moved => Answer::Failed(AttemptError::Moved),
        NotRun::Expired => Answer::Failed(AttemptError::Expired),
        NotRun::Unreachable => Answer::Failed(AttemptError::StreamNotOpened),
        NotRun::Unsupported => {
            Answer::Unreadable("the worker does not speak our wire version".to_owned())
        }
    }
}

fn unreadable(error: &natsway_wire::Error, message: &Message) -> Answer {
    let plain = message.headers.is_some() || error.kind() == ErrorKind::Malformed;
    let hint = if plain {
        "; if the backend is no Natsway worker, set codec = \"native\" in the route"
    } else {
        ""
    };
    Answer::Unreadable(format!("{error}{hint}"))
}

fn read_native(message: &Message) -> Answer {
    let fields = message.headers.iter().flat_map(HeaderMap::iter);
    let pairs = fields.flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| (name, value.as_str()))
    });
    match native::decode_reply(pairs, message.payload.clone()) {
        Ok(reply) => Answer::Replied(reply),
        Err(error) => Answer::Unreadable(error.to_string()),
    }
}

/// A request that is out, and what cleans up when nobody waits any more.
struct Wait<'l> {
    connection: &'l Rc<Connection>,
    key: Key,
    bytes: usize,
    done: bool,
}

impl<'l> Wait<'l> {
    fn new(
        connection: &'l Rc<Connection>,
        deadline: Instant,
        policy: ReplyPolicy,
        message_bytes: usize,
    ) -> Self {
        let bytes = message_bytes + MESSAGE_OVERHEAD_BYTES;
        connection.bytes_in_flight.set(connection.bytes_in_flight.get() + bytes);
        let key =
            connection.pending.borrow_mut().insert(deadline, policy, natsway_boot::random_u64());
        if connection.expiry_parked.get() {
            connection.expiry.notify_one();
        }
        Wait { connection, key, bytes, done: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        self.connection.pending.borrow_mut().poll(self.key, cx).map(|answer| match answer {
            Some(answer) => {
                self.done = true;
                answer
            }
            None => Answer::Failed(AttemptError::TimedOut),
        })
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let connection = self.connection;
        connection.bytes_in_flight.set(connection.bytes_in_flight.get() - self.bytes);
        if !self.done {
            let running_at = connection.pending.borrow_mut().abandon(self.key);
            if let Some(instance) = running_at {
                connection.cancel(self.key, &instance);
            }
        }
        if connection.retired.get() {
            connection.emptied.notify_one();
        }
    }
}
