//! The order of messages in one instance of a member: pure, `(event, now) -> actions`.
//!
//! A [`Flow`] decides when to pull, which message runs next, when the pin is lost and when it is
//! safe to begin after a take-over. It owns no clock, socket or task: `now` is the time since any
//! fixed origin.
//!
//! What it keeps, while this instance can renew its pin:
//! - messages of one queue (a partition, or a subject) run one at a time, in stream order; a
//!   message that will be delivered again (a nak, or a handler that left it) blocks its queue until
//!   it comes back;
//! - the lease counts from the moment at which a pull was *sent* that the server is known to have
//!   accepted, so it ends here before the pin lapses there; at its end every handler is cancelled
//!   and the buffer dropped;
//! - after a broker's restart, an instance that was not the pinned one starts nothing for a lease:
//!   the one that was may still be at work, and the broker may have forgotten with what;
//! - after a take-over, or any gap in the consumer's delivery sequence, nothing starts until every
//!   message that the server holds as pending is in hand, so that an older in-flight message cannot
//!   come after a newer one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

mod key_queue;
mod pulls;
mod session;
mod terms;
#[cfg(test)]
mod tests;
mod turns;

use key_queue::KeyQueue;
use pulls::Pulls;
use session::Session;
pub use terms::PinLoss;
pub(crate) use terms::{
    Action, Delivery, Event, FlowConfig, Position, Pull, PullStatus, Run, Settlement,
};

#[cfg_attr(test, derive(Clone))]
struct Held<T> {
    deliveries: u64,
    /// Absent while a handler has it.
    content: Option<T>,
    settling: bool,
}

#[cfg_attr(test, derive(Clone))]
struct Running {
    queue: u64,
    /// The message, until it is settled or its delivery means nothing any more: a handler that
    /// outlives that only keeps its queue busy.
    unsettled: Option<u64>,
}

/// See the module.
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Flow<T> {
    config: FlowConfig,
    attached: bool,
    paused: bool,
    draining: bool,
    drained: bool,
    session: Option<Session>,
    held: BTreeMap<u64, Held<T>>,
    queues: HashMap<u64, KeyQueue>,
    ready: VecDeque<u64>,
    /// As many as handlers, which is few.
    running: BTreeMap<u64, Running>,
    active: usize,
    awaited: usize,
    /// Until when another instance may be at work by a lease from before the broker restarted.
    hold_off: Duration,
    /// The latest time that this flow was told.
    seen: Duration,
    pulls: Pulls,
    runs: u64,
    questions: u64,
    #[cfg(test)]
    spoiled: bool,
}

const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_SLOWEST: Duration = Duration::from_millis(250);
/// When a question counts as lost.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often an instance at work asks: a queue may wait for a message that never comes, or the
/// consumer be another by now.
const ASK_STEADILY: Duration = Duration::from_secs(1);
/// Fewest messages asked for at once where the server keeps the limit anyway: it saves pulls.
const PULL_AHEAD: usize = 256;
/// Idle queues are forgotten above this many, once the acknowledgement floor has passed them.
const QUEUES_KEPT: usize = 4096;

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
            queues: HashMap::new(),
            ready: VecDeque::new(),
            running: BTreeMap::new(),
            active: 0,
            awaited: 0,
            hold_off: Duration::ZERO,
            seen: Duration::ZERO,
            pulls: Pulls::default(),
            runs: 0,
            questions: 0,
            #[cfg(test)]
            spoiled: false,
        }
    }

    pub(crate) fn config_mut(&mut self) -> &mut FlowConfig {
        &mut self.config
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.session.is_some()
    }

    /// Whether a pull is of the present pin, or standby, and may still be answered.
    pub(crate) fn knows_pull(&self, number: u64) -> bool {
        self.pulls.known(number)
    }

    /// Messages in hand that no handler has, in stream order.
    pub(crate) fn buffered(&self) -> impl Iterator<Item = &T> {
        self.held.values().filter_map(|held| held.content.as_ref())
    }

    /// Takes the messages in hand that no handler has, in stream order.
    pub(crate) fn take_buffered(&mut self) -> Vec<T> {
        let idle = self.held.extract_if(.., |_, held| held.content.is_some());
        let (sequences, contents): (Vec<u64>, Vec<Option<T>>) =
            idle.map(|(stream_seq, held)| (stream_seq, held.content)).unzip();
        for queue in self.queues.values_mut() {
            sequences.iter().for_each(|stream_seq| queue.remove(*stream_seq));
        }
        contents.into_iter().flatten().collect()
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        if !self.attached {
            return None;
        }
        let Some(session) = &self.session else { return self.pulls.standby_check_at() };
        let unanswered =
            session.question.map_or(Duration::ZERO, |(_, asked_at)| asked_at + ASK_AGAIN);
        let ask = session.ask_at.max(unanswered);
        let wake = session.lease_until.min(self.pulls.renew_at).min(ask);
        Some(if self.hold_off > self.seen { wake.min(self.hold_off) } else { wake })
    }

    /// Takes events and appends what is to be done after all of them.
    pub(crate) fn step_all(
        &mut self,
        events: impl IntoIterator<Item = Event<T>>,
        now: Duration,
        out: &mut Vec<Action<T>>,
    ) {
        events.into_iter().for_each(|event| self.take(event, now, out));
        self.decide(now, out);
    }

    /// A process that stood still must find out before it touches a message.
    fn expire(&mut self, now: Duration, out: &mut Vec<Action<T>>) {
        #[cfg(test)]
        assert!(!self.spoiled, "spoiled");
        self.seen = now;
        if self.session.as_ref().is_some_and(|s| now >= s.lease_until) {
            self.lose(PinLoss::Lapsed, out);
        }
    }

    fn take(&mut self, event: Event<T>, now: Duration, out: &mut Vec<Action<T>>) {
        self.expire(now, out);
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
            Event::Position(position) => self.position(&position, now, out),
            Event::Reconnected => {
                self.pulls = self.pulls.next_epoch();
                self.cut_off(now);
            }
            Event::Disconnected => self.cut_off(now),
            Event::Pause(paused) => self.paused = paused,
            Event::Drain => self.draining = true,
            Event::Abort => {
                self.drop_session(out);
                self.attached = false;
            }
            Event::Tick => {}
        }
    }

    /// The broker may have restarted: then it has forgotten who is pinned, and what it delivered
    /// last.
    fn cut_off(&mut self, now: Duration) {
        match &mut self.session {
            Some(session) => session.unsettle(now),
            None => self.hold_off = now + self.config.lease(),
        }
    }

    fn decide(&mut self, now: Duration, out: &mut Vec<Action<T>>) {
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
        if self.session.as_ref().is_none_or(|s| *s.pin != *pin) {
            if self.session.is_some() {
                self.lose(PinLoss::Taken, out);
            }
            if self.draining {
                out.push(Action::Return(delivery.content));
                return;
            }
            self.begin(pin.into(), delivery.consumer_seq, now, out);
        }
        self.pulls.delivered();
        let Some(session) = &mut self.session else { return };
        let expected = std::mem::replace(&mut session.next_consumer_seq, delivery.consumer_seq + 1);
        if delivery.consumer_seq < expected {
            // Under one pin the number only grows, unless somebody sets the consumer back to
            // another place (ADR-60).
            self.reset(now, out);
        } else if delivery.consumer_seq > expected {
            session.unsettle(now);
        }
        if let Some(held) = self.held.get_mut(&delivery.stream_seq) {
            held.deliveries = delivery.deliveries;
            return;
        }
        let queue = self.queues.entry(delivery.queue).or_default();
        // Whatever comes for the first time is wanted, whatever was handled before.
        if queue.has_done(delivery.stream_seq) && delivery.deliveries > 1 {
            out.push(Action::Confirm(delivery.content));
            return;
        }
        self.awaited -= usize::from(queue.arrived(delivery.stream_seq));
        queue.enqueue(delivery.stream_seq);
        if queue.become_ready() {
            self.ready.push_back(delivery.queue);
        }
        let Delivery { stream_seq, deliveries, content, .. } = delivery;
        self.held.insert(stream_seq, Held { deliveries, content: Some(content), settling: false });
    }

    fn begin(&mut self, pin: Arc<str>, first: u64, now: Duration, out: &mut Vec<Action<T>>) {
        self.session = Some(Session {
            pin,
            // Provisional: the first renewal is sent at once and the position is asked for behind
            // it.
            lease_until: now + self.config.lease(),
            settled: false,
            next_consumer_seq: first,
            delivered_consumer_seq: 0,
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

    fn ask(&mut self, now: Duration, out: &mut Vec<Action<T>>) {
        let Some(session) = &mut self.session else { return };
        let waiting = session.question.is_some_and(|(_, asked_at)| now < asked_at + ASK_AGAIN);
        if now < session.ask_at || waiting {
            return;
        }
        self.questions += 1;
        session.question = Some((self.questions, now));
        session.ask_at = now + if session.settled { ASK_STEADILY } else { session.ask_every };
        session.ask_every = (session.ask_every * 2).min(ASK_SLOWEST);
        out.push(Action::AskPosition(self.questions));
    }

    fn position(&mut self, position: &Position, now: Duration, out: &mut Vec<Action<T>>) {
        let Some(session) = &mut self.session else { return };
        if session.question.is_none_or(|(number, _)| number != position.question) {
            return;
        }
        session.question = None;
        if position.pinned.as_deref() != Some(&*session.pin) {
            self.lose(PinLoss::Taken, out);
            return;
        }
        let told_before =
            std::mem::replace(&mut session.delivered_consumer_seq, position.delivered_consumer_seq);
        if position.delivered_consumer_seq < told_before {
            session.next_consumer_seq = 1;
            self.reset(now, out);
            return;
        }
        session.pending = position.ack_pending;
        // What came in since was delivered later; what is being settled may be gone there already.
        let known =
            self.held.range(..=position.delivered_stream_seq).filter(|(_, h)| !h.settling).count();
        let all_in_hand = position.ack_pending <= known;
        if all_in_hand || position.ack_pending <= known + self.awaited {
            session.settled = true;
        }
        if self.awaited > 0 {
            self.forgive(position, all_in_hand);
        }
        if self.queues.len() > QUEUES_KEPT {
            self.queues.retain(|_, queue| !queue.is_idle_below(position.ack_floor_stream_seq));
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
        self.forget_messages();
        self.pulls = self.pulls.next_epoch();
    }

    /// The consumer begins anew elsewhere in its stream: nothing that it delivered before is
    /// pending there any more, and what was handled may be wanted again. Handlers at work keep
    /// their right to run, and their queues.
    fn reset(&mut self, now: Duration, out: &mut Vec<Action<T>>) {
        self.forget_messages();
        if let Some(session) = &mut self.session {
            session.delivered_consumer_seq = 0;
            session.unsettle(now);
        }
        out.push(Action::Reset);
    }

    fn forget_messages(&mut self) {
        self.held.clear();
        self.ready.clear();
        self.awaited = 0;
        for running in self.running.values_mut() {
            running.unsettled = None;
        }
        // A handler that is still on its way out keeps its queue, whatever the pin says.
        self.queues.retain(|_, queue| queue.busy);
        self.queues.values_mut().for_each(KeyQueue::forget);
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

    /// Makes the next step panic, as a defect would.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self) {
        self.spoiled = true;
    }

    /// Whether the books agree with each other.
    #[cfg(test)]
    fn check(&self) {
        assert_eq!(self.active, self.running.len(), "handlers at work");
        assert_eq!(
            self.awaited,
            self.queues.values().map(|queue| queue.awaits().count()).sum::<usize>(),
            "awaited"
        );
        for (id, queue) in &self.queues {
            let handlers = self.running.values().filter(|running| running.queue == *id).count();
            assert_eq!(handlers, usize::from(queue.busy), "handlers of queue {id}");
            assert!(queue.queued().is_sorted_by(|one, next| one < next), "the order of queue {id}");
            assert!(
                queue.queued().all(|seq| !queue.awaits().any(|awaited| awaited == seq)),
                "queue {id}"
            );
            assert!(!queue.runnable() || queue.ready, "queue {id} can start, and nobody knows");
            assert!(!queue.ready || self.ready.contains(id), "queue {id} is not listed");
        }
        let queued: BTreeMap<u64, ()> =
            self.queues.values().flat_map(KeyQueue::queued).map(|seq| (seq, ())).collect();
        let running: BTreeMap<u64, ()> = self
            .running
            .values()
            .filter_map(|running| running.unsettled)
            .map(|seq| (seq, ()))
            .collect();
        let in_hand = |idle: bool| {
            self.held
                .iter()
                .filter(move |(_, held)| held.content.is_some() == idle)
                .map(|(seq, _)| (*seq, ()))
        };
        assert_eq!(queued, in_hand(true).collect(), "what waits");
        assert_eq!(running, in_hand(false).collect(), "what handlers have");
    }
}
