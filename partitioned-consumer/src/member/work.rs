//! What the engine and the handlers of one instance share: the flow, behind a lock.
//!
//! A handler takes its next message here and settles it here, without a word to the engine's task:
//! whether a message may start is judged at the moment at which it starts, and a busy member never
//! waits for a task to be woken. What a step asks for besides (pulls, questions, the end of a pin)
//! is left for the engine.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State as Connection;
use async_nats::{Client, Statistics, Subject};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::panics::caught;
use super::received::Received;
use crate::order::{Action, Event, Flow, FlowConfig, Run};

/// A message whose turn has come, with the right to handle it.
pub(super) struct Taken {
    pub(super) run: u64,
    pub(super) content: Box<Received>,
    /// Cancelled with the pin under which it was taken.
    pub(super) session: Arc<CancellationToken>,
}

/// See the module.
pub(crate) struct Work {
    state: Mutex<State>,
    /// A message may be waiting for a handler.
    ready: Notify,
    /// The engine has something to do.
    due: Notify,
    started: Instant,
    client: Client,
    statistics: Arc<Statistics>,
    acks: bool,
}

struct State {
    flow: Flow<Box<Received>>,
    /// What the engine has to do.
    actions: Vec<Action<Box<Received>>>,
    /// Acknowledgement subjects of what handlers have, for progress.
    /// There are as many as handlers at work, which is few.
    replies: BTreeMap<u64, Subject>,
    /// An acknowledgement subject of the consumer.
    any_reply: Option<Subject>,
    /// Cancelled with the pin; shared, because a copy of the token itself takes its lock.
    session: Arc<CancellationToken>,
    /// When the engine looks next.
    alarm: Duration,
    connected: bool,
    connects: u64,
    closed: bool,
    /// What a step panicked with: a defect of ours, which ends this member and nothing else of the
    /// process.
    defect: Option<String>,
}

impl Work {
    pub(crate) fn new(client: Client, config: FlowConfig) -> Arc<Self> {
        let statistics = client.statistics();
        let state = State {
            actions: Vec::new(),
            replies: BTreeMap::new(),
            any_reply: None,
            session: Arc::default(),
            alarm: Duration::ZERO,
            connected: true,
            connects: statistics.connects.load(Ordering::Relaxed),
            closed: false,
            defect: None,
            flow: Flow::new(config.clone()),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            ready: Notify::new(),
            due: Notify::new(),
            started: Instant::now(),
            client,
            statistics,
            acks: config.acks,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn acks(&self) -> bool {
        self.acks
    }

    /// The flow's time: since this instance began.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Locks the state. Steps catch their own panics, so a poisoned lock hides nothing; and whoever
    /// drops a message must never panic here, since a panic in a destructor ends the process.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the flow, with what is known of the connection up to date.
    fn lock(&self, now: Duration) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let connected = self.client.connection_state() == Connection::Connected;
        // Whoever is on the other side of a new connection may have given our pin away.
        if state.connected && !connected {
            state.step([Event::Disconnected], now);
        }
        state.connected = connected;
        let connects = self.statistics.connects.load(Ordering::Relaxed);
        if connects != state.connects {
            state.connects = connects;
            state.step([Event::Reconnected], now);
        }
        state
    }

    /// Unlocks, and wakes whom it concerns.
    fn unlock(&self, state: MutexGuard<'_, State>) {
        let early = state.flow.wake_at().is_some_and(|at| at < state.alarm);
        let due = early || !state.actions.is_empty() || state.defect.is_some();
        let (ready, closed) = (state.flow.can_start(), state.closed);
        drop(state);
        if due {
            self.due.notify_one();
        }
        if closed {
            self.ready.notify_waiters();
        } else if ready {
            self.ready.notify_one();
        }
    }

    pub(crate) fn step(&self, event: Event<Box<Received>>) {
        self.step_all([event]);
    }

    pub(crate) fn step_all(&self, events: impl IntoIterator<Item = Event<Box<Received>>>) {
        let now = self.now();
        let mut state = self.lock(now);
        state.step(events, now);
        self.unlock(state);
    }

    /// Notes how a handler left a message, before the broker hears of it.
    pub(crate) fn settle(&self, run: u64, event: Event<Box<Received>>) {
        let now = self.now();
        let mut state = self.lock(now);
        if matches!(event, Event::Settled { .. }) {
            state.replies.remove(&run);
        }
        state.step([event], now);
        self.unlock(state);
    }

    /// The end of a run that left no successor to be taken at once.
    pub(crate) fn finish(&self, run: u64) {
        let now = self.now();
        let mut state = self.lock(now);
        state.finish(run, now);
        self.unlock(state);
    }

    /// Takes the next message whose turn has come; `None` when the member has ended. It says first
    /// that a run has ended, where one is given.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub(super) async fn take(&self, mut finished: Option<u64>) -> Option<Taken> {
        loop {
            // Made first, so that what changes between the look and the wait is not missed.
            let ready = self.ready.notified();
            match self.try_take(finished.take()) {
                Next::Taken(taken) => return Some(taken),
                Next::Closed => return None,
                Next::Nothing => ready.await,
            }
        }
    }

    fn try_take(&self, finished: Option<u64>) -> Next {
        let now = self.now();
        let mut state = self.lock(now);
        if let Some(run) = finished {
            state.finish(run, now);
        }
        if state.closed {
            return Next::Closed;
        }
        let taken = state.next_run(now).map(|Run { run, content }| {
            state.replies.insert(run, content.reply.clone());
            if state.any_reply.is_none() {
                // A copy: the subject itself is a part of all that was read with it.
                state.any_reply = Some(Subject::from(content.reply.as_str()));
            }
            Taken { run, content, session: Arc::clone(&state.session) }
        });
        self.unlock(state);
        taken.map_or(Next::Nothing, Next::Taken)
    }

    /// What is cancelled with the present pin.
    pub(super) fn session(&self) -> Arc<CancellationToken> {
        Arc::clone(&self.state().session)
    }

    /// Returns when the engine has something to do.
    pub(crate) async fn due(&self) {
        self.due.notified().await;
    }

    /// Takes what the engine has to do.
    pub(crate) fn actions(&self) -> Vec<Action<Box<Received>>> {
        std::mem::take(&mut self.lock(self.now()).actions)
    }

    /// When the flow wants to be looked at, at the latest; `latest` where it does not care.
    pub(crate) fn set_alarm(&self, latest: Duration) -> Duration {
        let mut state = self.state();
        state.alarm = state.flow.wake_at().map_or(latest, |at| at.min(latest));
        state.alarm
    }

    pub(crate) fn configure(&self, edit: impl FnOnce(&mut FlowConfig)) {
        edit(self.state().flow.config_mut());
    }

    pub(crate) fn knows_pull(&self, number: u64) -> bool {
        self.state().flow.knows_pull(number)
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.state().flow.is_pinned()
    }

    /// Acknowledgement subjects of everything in hand.
    pub(crate) fn replies(&self) -> Vec<Subject> {
        let state = self.state();
        let buffered = state.flow.buffered().map(|content| content.reply.clone());
        state.replies.values().cloned().chain(buffered).collect()
    }

    /// An acknowledgement subject of the consumer, once a message was started.
    pub(crate) fn any_reply(&self) -> Option<Subject> {
        self.state().any_reply.clone()
    }

    /// Takes what no handler has, and gives back its acknowledgement subjects.
    pub(crate) fn take_buffered(&self) -> Vec<Subject> {
        let buffered = self.state().flow.take_buffered();
        buffered.into_iter().map(|content| content.reply).collect()
    }

    /// Ends the handlers' wait for more, and their right to run: nobody renews the pin any longer.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.session.cancel();
        self.unlock(state);
    }

    /// Makes the next step of the flow panic.
    #[cfg(test)]
    pub(super) fn spoil(&self) {
        self.state().flow.spoil();
    }

    /// What a step of the flow panicked with, after which this member has to end.
    pub(crate) fn defect(&self) -> Option<String> {
        self.state().defect.clone()
    }
}

enum Next {
    Taken(Taken),
    Nothing,
    Closed,
}

impl State {
    fn step(&mut self, events: impl IntoIterator<Item = Event<Box<Received>>>, now: Duration) {
        self.guarded(|flow, actions| flow.step_all(events, now, actions));
    }

    fn next_run(&mut self, now: Duration) -> Option<Run<Box<Received>>> {
        self.guarded(|flow, actions| flow.next_run(now, actions)).flatten()
    }

    /// Lets the flow take a step. Should it panic, what it holds means nothing any more: handlers
    /// lose their right to run, and the engine ends the member.
    fn guarded<R>(
        &mut self,
        step: impl FnOnce(&mut Flow<Box<Received>>, &mut Vec<Action<Box<Received>>>) -> R,
    ) -> Option<R> {
        let Self { flow, actions, .. } = self;
        let first_new = actions.len();
        match catch_unwind(AssertUnwindSafe(|| step(flow, actions))) {
            Ok(outcome) => {
                self.heed(first_new);
                Some(outcome)
            }
            Err(panic) => {
                self.flow = Flow::new(self.flow.config_mut().clone());
                self.actions.clear();
                self.replies.clear();
                self.session.cancel();
                self.closed = true;
                self.defect = Some(caught(panic));
                None
            }
        }
    }

    /// The end of a pin waits for nobody.
    fn heed(&mut self, first_new: usize) {
        if self.actions[first_new..].iter().any(|action| matches!(action, Action::Cancel)) {
            std::mem::take(&mut self.session).cancel();
            self.replies.clear();
        }
    }

    fn finish(&mut self, run: u64, now: Duration) {
        self.replies.remove(&run);
        self.step([Event::Finished { run }], now);
    }
}
