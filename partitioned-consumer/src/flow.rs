//! The order of messages in one instance of a member: pure, `(event, now) -> actions`.
//!
//! A [`Flow`] decides when to pull, which message runs next, when the pin is lost and when it is safe to begin after a
//! take-over. It owns no clock, socket or task: `now` is the time since any fixed origin.
//!
//! What it keeps, while this instance can renew its pin:
//! - messages of one lane (a partition, or a subject) run one at a time, in stream order; a message that will be
//!   delivered again (a nak, or a handler that left it) blocks its lane until it comes back;
//! - the lease counts from the moment at which a pull was *sent* that the server is known to have accepted, so it ends
//!   here before the pin lapses there; at its end every handler is cancelled and the buffer dropped;
//! - after a take-over, or any gap in the consumer's delivery sequence, nothing starts until every message that the
//!   server holds as pending is in hand, so that an older in-flight message cannot come after a newer one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

mod lane;
mod pulls;
#[cfg(test)]
mod tests;

use lane::Lane;
use pulls::Pulls;

/// Settings of a flow, fixed for the life of one consumer.
#[derive(Clone, Debug)]
pub(crate) struct FlowConfig {
    /// How long the server keeps a pin that is not renewed.
    pub(crate) pinned_ttl: Duration,
    /// How long the server waits before it delivers an unacknowledged message again.
    pub(crate) redelivery_after: Duration,
    /// The consumer's max_ack_pending; `None` for no limit.
    pub(crate) max_ack_pending: Option<usize>,
    /// Most messages in hand, running ones included.
    pub(crate) buffer: usize,
    /// Most handlers at once.
    pub(crate) concurrency: usize,
    /// Whether messages are acknowledged one by one; without, nothing is ever pending.
    pub(crate) acks: bool,
    /// Deliveries after which a message goes to the dead letters instead of the handler.
    pub(crate) dead_letter_after: Option<u64>,
}

impl FlowConfig {
    fn lease(&self) -> Duration {
        self.pinned_ttl.min(self.redelivery_after)
    }

    fn renewal(&self) -> Duration {
        self.lease() / 4
    }

    fn capacity(&self) -> usize {
        self.max_ack_pending.map_or(self.buffer, |limit| limit.min(self.buffer)).max(1)
    }
}

/// A message as the consumer delivered it; `T` is its content, of no interest here.
#[derive(Clone, Debug)]
pub(crate) struct Delivery<T> {
    pub(crate) stream_seq: u64,
    pub(crate) consumer_seq: u64,
    pub(crate) deliveries: u64,
    pub(crate) lane: u64,
    pub(crate) pin: Option<String>,
    pub(crate) content: T,
}

/// What the server says about one of our pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullStatus {
    /// It is waiting (100), has ended unused (404, 408), or met a message above its byte limit (409).
    Accepted {
        /// Whether the server has dropped it.
        ended: bool,
    },
    /// Our pin is not the consumer's (423).
    WrongPin,
    /// Refused for another reason, to be sent again a little later.
    Refused,
}

/// Where the consumer stands, as the server answered a question of this flow.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    /// Which question this answers.
    pub(crate) question: u64,
    pub(crate) delivered_stream_seq: u64,
    pub(crate) ack_floor_stream_seq: u64,
    pub(crate) ack_pending: usize,
    pub(crate) pinned: Option<String>,
}

/// How the handler left a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Acknowledged or terminated: it will not come back.
    Done,
    /// Refused or left alone: the server will deliver it again.
    Again,
}

#[derive(Clone, Debug)]
pub(crate) enum Event<T> {
    /// A consumer exists: begin to pull.
    Attach,
    Delivered(Delivery<T>),
    Status {
        pull: u64,
        status: PullStatus,
        unused: u32,
    },
    /// A confirmed acknowledgement is under way, so the server may already count the message as done.
    Settling {
        run: u64,
    },
    Settled {
        run: u64,
        settlement: Settlement,
    },
    /// The handler has ended or was dropped; nothing of it runs any more.
    Finished {
        run: u64,
    },
    Position(Position),
    /// The connection is lost. The broker may have restarted and given the pin to another, so nothing starts until it has
    /// confirmed the pin again; running handlers have their lease.
    Disconnected,
    /// The connection was lost and is back: pulls and deliveries may have been lost with it.
    Reconnected,
    Pause(bool),
    /// Start nothing more; say [`Action::Drained`] when the running handlers have ended.
    Drain,
    /// Cancel the running handlers, drop everything, pull no more.
    Abort,
    Tick,
}

#[derive(Debug)]
pub(crate) enum Action<T> {
    Pull(Pull),
    /// Hand the message to the handler, or bury it among the dead letters.
    Run {
        run: u64,
        stream_seq: u64,
        bury: bool,
        content: T,
    },
    /// Acknowledge again what was handled already: the first acknowledgement was lost.
    Confirm(T),
    /// Return a message that came too late to be used.
    Return(T),
    /// Tell the server that everything in hand is being worked on.
    Progress,
    AskPosition(u64),
    /// Cancel every handler; the pin, and with it the right to run them, is gone.
    Cancel,
    Pinned,
    PinLost(PinLoss),
    Drained,
}

/// Why this instance stopped being the pinned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinLoss {
    /// No renewal was confirmed in time: the connection or the broker is gone, or the process stood still.
    Lapsed,
    /// The server says that the pin belongs to nobody or to another instance.
    Taken,
}

/// A request for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pull {
    pub(crate) number: u64,
    pub(crate) batch: u32,
    pub(crate) pin: Option<String>,
    /// A request that only renews the pin: its byte limit is below any message.
    pub(crate) probe: bool,
    pub(crate) expires: Duration,
    pub(crate) heartbeat: Duration,
}

struct Held<T> {
    deliveries: u64,
    /// Absent while a handler has it.
    content: Option<T>,
    settling: bool,
}

struct Running {
    lane: u64,
    stream_seq: u64,
    /// Whether the message still belongs to this pin; a handler that outlives its pin only keeps its lane busy.
    current: bool,
}

struct Session {
    pin: String,
    lease_until: Duration,
    /// Messages may start: everything pending is in hand.
    settled: bool,
    next_consumer_seq: u64,
    /// How many messages the server holds as pending, as last heard while not settled.
    pending: usize,
    question: Option<(u64, Duration)>,
    ask_at: Duration,
    ask_every: Duration,
}

/// See the module.
pub(crate) struct Flow<T> {
    config: FlowConfig,
    attached: bool,
    paused: bool,
    draining: bool,
    drained: bool,
    session: Option<Session>,
    held: BTreeMap<u64, Held<T>>,
    lanes: HashMap<u64, Lane>,
    ready: VecDeque<u64>,
    running: HashMap<u64, Running>,
    active: usize,
    awaited: usize,
    pulls: Pulls,
    runs: u64,
    questions: u64,
}

const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_SLOWEST: Duration = Duration::from_millis(250);
/// When a question counts as lost.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often a lane that waits for a redelivery is checked for a message that will never come.
const ASK_AWAITED: Duration = Duration::from_secs(1);
/// Fewest messages asked for at once where the server keeps the limit anyway: it saves pulls.
const PULL_AHEAD: usize = 256;
/// Idle lanes are forgotten above this many, once the acknowledgement floor has passed them.
const LANES_KEPT: usize = 4096;

impl<T> Flow<T> {
    pub(crate) fn new(config: FlowConfig) -> Self {
        Self {
            config,
            attached: false,
            paused: false,
            draining: false,
            drained: false,
            session: None,
            held: BTreeMap::new(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            running: HashMap::new(),
            active: 0,
            awaited: 0,
            pulls: Pulls::default(),
            runs: 0,
            questions: 0,
        }
    }

    pub(crate) fn config_mut(&mut self) -> &mut FlowConfig {
        &mut self.config
    }

    pub(crate) fn pin(&self) -> Option<&str> {
        self.session.as_ref().map(|s| s.pin.as_str())
    }

    /// Whether a pull is of the present pin, or standby, and may still be answered.
    pub(crate) fn knows_pull(&self, number: u64) -> bool {
        self.pulls.known(number)
    }

    /// Messages in hand that no handler has, in stream order.
    pub(crate) fn take_buffered(&mut self) -> Vec<T> {
        let idle: Vec<u64> =
            self.held.iter().filter(|(_, h)| h.content.is_some()).map(|(seq, _)| *seq).collect();
        idle.into_iter().filter_map(|seq| self.held.remove(&seq).and_then(|h| h.content)).collect()
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        if !self.attached {
            return None;
        }
        let Some(session) = &self.session else { return self.pulls.standby_check_at() };
        let unanswered = session.question.map_or(Duration::ZERO, |(_, asked_at)| asked_at + ASK_AGAIN);
        let ask = self.must_ask(session).then(|| session.ask_at.max(unanswered));
        [Some(session.lease_until), Some(self.pulls.renew_at), ask].into_iter().flatten().min()
    }

    /// Takes one event and appends what is to be done.
    pub(crate) fn step(&mut self, event: Event<T>, now: Duration, out: &mut Vec<Action<T>>) {
        // A process that stood still must find out before it touches a message.
        if self.session.as_ref().is_some_and(|s| now >= s.lease_until) {
            self.lose(PinLoss::Lapsed, out);
        }
        match event {
            Event::Attach => {
                self.attached = true;
                self.draining = false;
                self.drained = false;
                self.pulls = self.pulls.next_epoch();
            }
            Event::Delivered(delivery) => self.delivered(delivery, now, out),
            Event::Status { pull, status, unused } => self.status(pull, status, unused, now, out),
            Event::Settling { run } => self.settling(run),
            Event::Settled { run, settlement } => self.settled(run, settlement),
            Event::Finished { run } => self.finished(run),
            Event::Position(position) => self.position(&position, out),
            Event::Reconnected => {
                self.pulls = self.pulls.next_epoch();
                if let Some(session) = &mut self.session {
                    session.unsettle(now);
                }
            }
            Event::Disconnected => {
                if let Some(session) = &mut self.session {
                    session.unsettle(now);
                }
            }
            Event::Pause(paused) => self.paused = paused,
            Event::Drain => self.draining = true,
            Event::Abort => {
                self.drop_session(out);
                self.attached = false;
            }
            Event::Tick => {}
        }
        self.dispatch(out);
        self.ask(now, out);
        self.pull(now, out);
        if self.draining && !self.drained && self.active == 0 {
            self.drained = true;
            out.push(Action::Drained);
        }
    }

    fn delivered(&mut self, delivery: Delivery<T>, now: Duration, out: &mut Vec<Action<T>>) {
        if !self.attached {
            out.push(Action::Return(delivery.content));
            return;
        }
        let pin = delivery.pin.as_deref().unwrap_or_default();
        if self.session.as_ref().is_none_or(|s| s.pin != pin) {
            if self.session.is_some() {
                self.lose(PinLoss::Taken, out);
            }
            if self.draining {
                out.push(Action::Return(delivery.content));
                return;
            }
            self.begin(pin.to_owned(), delivery.consumer_seq, now, out);
        }
        self.pulls.delivered();
        let session = self.session.as_mut().expect("a session was found or begun above");
        if session.next_consumer_seq != delivery.consumer_seq {
            session.unsettle(now);
        }
        session.next_consumer_seq = delivery.consumer_seq + 1;
        if let Some(held) = self.held.get_mut(&delivery.stream_seq) {
            held.deliveries = delivery.deliveries;
            return;
        }
        let lane = self.lanes.entry(delivery.lane).or_default();
        if lane.has_done(delivery.stream_seq) {
            out.push(Action::Confirm(delivery.content));
            return;
        }
        self.awaited -= usize::from(lane.arrived(delivery.stream_seq));
        lane.enqueue(delivery.stream_seq);
        if lane.runnable() && !lane.ready {
            lane.ready = true;
            self.ready.push_back(delivery.lane);
        }
        let Delivery { stream_seq, deliveries, content, .. } = delivery;
        self.held.insert(stream_seq, Held { deliveries, content: Some(content), settling: false });
    }

    fn begin(&mut self, pin: String, first: u64, now: Duration, out: &mut Vec<Action<T>>) {
        self.session = Some(Session {
            pin,
            // Provisional: the first renewal is sent at once and the position is asked for behind it.
            lease_until: now + self.config.lease(),
            settled: false,
            next_consumer_seq: first,
            pending: 0,
            question: None,
            ask_at: now,
            ask_every: ASK_FIRST,
        });
        self.pulls = self.pulls.next_epoch();
        out.push(Action::Pinned);
    }

    fn status(
        &mut self,
        pull: u64,
        status: PullStatus,
        unused: u32,
        now: Duration,
        out: &mut Vec<Action<T>>,
    ) {
        match status {
            PullStatus::Accepted { ended } => {
                let Some(sent_at) = self.pulls.accepted(pull, ended, unused, now) else { return };
                if let Some(session) = &mut self.session {
                    session.lease_until = session.lease_until.max(sent_at + self.config.lease());
                }
            }
            PullStatus::WrongPin => {
                if self.pulls.known(pull) && self.session.is_some() {
                    self.lose(PinLoss::Taken, out);
                }
            }
            PullStatus::Refused => self.pulls.refused(pull, unused, now),
        }
    }

    fn settling(&mut self, run: u64) {
        if let Some(held) =
            self.running.get(&run).filter(|r| r.current).and_then(|r| self.held.get_mut(&r.stream_seq))
        {
            held.settling = true;
        }
    }

    fn settled(&mut self, run: u64, settlement: Settlement) {
        let Some(running) = self.running.get(&run).filter(|r| r.current) else { return };
        if self.held.remove(&running.stream_seq).is_none() {
            return;
        }
        let lane = self.lanes.get_mut(&running.lane).expect("a running message keeps its lane");
        match settlement {
            Settlement::Done => lane.finish(running.stream_seq),
            Settlement::Again => {
                lane.await_again(running.stream_seq);
                self.awaited += 1;
            }
        }
    }

    fn finished(&mut self, run: u64) {
        self.settled(run, Settlement::Again);
        let Some(running) = self.running.remove(&run) else { return };
        self.active -= 1;
        let Some(lane) = self.lanes.get_mut(&running.lane) else { return };
        lane.busy = false;
        if lane.runnable() && !lane.ready {
            lane.ready = true;
            self.ready.push_back(running.lane);
        }
    }

    /// Starts what may start.
    fn dispatch(&mut self, out: &mut Vec<Action<T>>) {
        let may_start = self.session.as_ref().is_some_and(|s| s.settled) && !self.paused && !self.draining;
        while may_start && self.active < self.config.concurrency {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.ready = false;
            let Some(stream_seq) = lane.start() else { continue };
            let held = self.held.get_mut(&stream_seq).expect("queued messages are in hand");
            let content = held.content.take().expect("a queued message has its content");
            let bury = self.config.dead_letter_after.is_some_and(|limit| held.deliveries > limit);
            self.runs += 1;
            self.active += 1;
            self.running.insert(self.runs, Running { lane: id, stream_seq, current: true });
            out.push(Action::Run { run: self.runs, stream_seq, bury, content });
        }
    }

    fn must_ask(&self, session: &Session) -> bool {
        !session.settled || self.awaited > 0
    }

    fn ask(&mut self, now: Duration, out: &mut Vec<Action<T>>) {
        let awaited = self.awaited;
        let Some(session) = &mut self.session else { return };
        let waiting = session.question.is_some_and(|(_, asked_at)| now < asked_at + ASK_AGAIN);
        if session.settled && awaited == 0 || now < session.ask_at || waiting {
            return;
        }
        self.questions += 1;
        session.question = Some((self.questions, now));
        session.ask_at = now + if session.settled { ASK_AWAITED } else { session.ask_every };
        session.ask_every = (session.ask_every * 2).min(ASK_SLOWEST);
        out.push(Action::AskPosition(self.questions));
    }

    fn position(&mut self, position: &Position, out: &mut Vec<Action<T>>) {
        let Some(session) = &mut self.session else { return };
        if session.question.is_none_or(|(number, _)| number != position.question) {
            return;
        }
        session.question = None;
        if position.pinned.as_deref() != Some(session.pin.as_str()) {
            self.lose(PinLoss::Taken, out);
            return;
        }
        session.pending = position.ack_pending;
        // What came in since was delivered later; what is being settled may be gone there already.
        let known = self.held.range(..=position.delivered_stream_seq).filter(|(_, h)| !h.settling).count();
        let all_in_hand = position.ack_pending <= known;
        if all_in_hand || position.ack_pending <= known + self.awaited {
            session.settled = true;
        }
        if self.awaited > 0 {
            self.forgive(position, all_in_hand);
        }
        if self.lanes.len() > LANES_KEPT {
            self.lanes.retain(|_, lane| !lane.is_idle_below(position.ack_floor_stream_seq));
        }
    }

    /// Stops waiting for messages that are no longer pending: used up their deliveries, or deleted.
    fn forgive(&mut self, position: &Position, all: bool) {
        for (id, lane) in &mut self.lanes {
            let given_up = lane.forgive(if all { u64::MAX } else { position.ack_floor_stream_seq });
            self.awaited -= given_up;
            if given_up > 0 && lane.runnable() && !lane.ready {
                lane.ready = true;
                self.ready.push_back(*id);
            }
        }
    }

    fn lose(&mut self, why: PinLoss, out: &mut Vec<Action<T>>) {
        self.drop_session(out);
        out.push(Action::PinLost(why));
    }

    fn drop_session(&mut self, out: &mut Vec<Action<T>>) {
        if self.session.take().is_some() {
            out.push(Action::Cancel);
        }
        self.held.clear();
        self.ready.clear();
        self.awaited = 0;
        for running in self.running.values_mut() {
            running.current = false;
        }
        // A handler that is still on its way out keeps its lane, whatever the pin says.
        self.lanes.retain(|_, lane| lane.busy);
        self.lanes.values_mut().for_each(Lane::forget);
        self.pulls = self.pulls.next_epoch();
    }

    fn pull(&mut self, now: Duration, out: &mut Vec<Action<T>>) {
        if !self.attached {
            return;
        }
        let renewal = self.config.renewal();
        let Some(session) = &self.session else {
            if !self.draining
                && let Some(pull) = self.pulls.standby(now, self.config.pinned_ttl)
            {
                out.push(Action::Pull(pull));
            }
            return;
        };
        let renewal_due = now >= self.pulls.renew_at;
        if renewal_due && self.config.acks && !self.held.is_empty() {
            // Ahead of the pull: whoever confirms the pull has seen these too.
            out.push(Action::Progress);
        }
        let stopped = self.paused || self.draining;
        if let Some(probe) = self.pulls.renew(now, renewal, &session.pin) {
            out.push(Action::Pull(probe));
        }
        let wanted = if stopped { 0 } else { self.wanted(session) };
        if let Some(refill) = self.pulls.refill(now, wanted, &session.pin) {
            out.push(Action::Pull(refill));
        }
    }

    /// How many more messages may be asked for now.
    fn wanted(&self, session: &Session) -> usize {
        let mut capacity = self.config.capacity();
        if !session.settled {
            // What others left unacknowledged has to fit, or the take-over never ends.
            capacity = capacity.max(session.pending + 1);
        }
        let outstanding = self.pulls.outstanding();
        if self.config.max_ack_pending.is_some_and(|limit| limit <= self.config.buffer) {
            // The server keeps the limit; asking for more only saves pulls.
            return (2 * capacity).max(PULL_AHEAD).saturating_sub(outstanding);
        }
        capacity.saturating_sub(self.held.len() + outstanding)
    }
}

impl Session {
    fn unsettle(&mut self, now: Duration) {
        self.settled = false;
        self.ask_at = now;
        self.ask_every = ASK_FIRST;
        self.question = None;
    }
}
