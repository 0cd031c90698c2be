//! Whose turn it is: how messages leave a flow for a handler, and how handlers leave them.

use std::time::Duration;

use super::{Action, Flow, Position, Run, Running, Settlement};

impl<T> Flow<T> {
    /// The next message whose turn has come, when a handler may start now. What belongs to the dead
    /// letters comes out as actions.
    pub(crate) fn next_run(&mut self, now: Duration, out: &mut Vec<Action<T>>) -> Option<Run<T>> {
        self.expire(now, out);
        while self.may_start() {
            let id = self.ready.pop_front()?;
            let Some(queue) = self.queues.get_mut(&id) else { continue };
            queue.ready = false;
            let Some(stream_seq) = queue.start() else { continue };
            let held = self.held.get_mut(&stream_seq).expect("queued messages are in hand");
            let content = held.content.take().expect("a queued message has its content");
            let is_poison =
                self.config.dead_letter_after.is_some_and(|limit| held.deliveries > limit);
            self.runs += 1;
            self.active += 1;
            self.running.insert(self.runs, Running { queue: id, unsettled: Some(stream_seq) });
            let run = Run { run: self.runs, content };
            if !is_poison {
                return Some(run);
            }
            out.push(Action::DeadLetter(run));
        }
        None
    }

    /// Whether [`Flow::next_run`] is worth a call.
    pub(crate) fn can_start(&self) -> bool {
        !self.ready.is_empty() && self.may_start()
    }

    fn may_start(&self) -> bool {
        let settled = self.session.as_ref().is_some_and(|session| session.settled);
        let free = self.active < self.config.concurrency;
        settled && free && !self.paused && !self.draining && self.hold_off <= self.seen
    }

    pub(super) fn settling(&mut self, run: u64) {
        let message = self.running.get(&run).and_then(|running| running.unsettled);
        if let Some(held) = message.and_then(|stream_seq| self.held.get_mut(&stream_seq)) {
            held.settling = true;
        }
    }

    /// Settles the message of a run, once: a handler that goes on after its nak may see the message
    /// delivered again before it ends, and what is in hand then is another delivery, whose turn is
    /// still to come.
    pub(super) fn settled(&mut self, run: u64, settlement: Settlement) {
        let Some(running) = self.running.get_mut(&run) else { return };
        let Some(stream_seq) = running.unsettled.take() else { return };
        self.held.remove(&stream_seq);
        let queue = self.queues.entry(running.queue).or_default();
        match settlement {
            Settlement::Done => queue.finish(stream_seq),
            Settlement::Again => self.awaited += usize::from(queue.await_again(stream_seq)),
        }
    }

    pub(super) fn finished(&mut self, run: u64) {
        self.settled(run, Settlement::Again);
        let Some(running) = self.running.remove(&run) else { return };
        self.active -= 1;
        let Some(queue) = self.queues.get_mut(&running.queue) else { return };
        queue.busy = false;
        if queue.become_ready() {
            self.ready.push_back(running.queue);
        }
    }

    /// Stops waiting for messages that are no longer pending: used up their deliveries, or deleted.
    pub(super) fn forgive(&mut self, position: &Position, all: bool) {
        for (id, queue) in &mut self.queues {
            let given_up =
                queue.forgive(if all { u64::MAX } else { position.ack_floor_stream_seq });
            self.awaited -= given_up;
            if given_up > 0 && queue.become_ready() {
                self.ready.push_back(*id);
            }
        }
    }
}
