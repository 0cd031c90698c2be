//! Several flows against a model of one pinned consumer: messages and answers take random times or
//! are lost, instances are cut off, killed and started, pins are taken, the consumer is set back.
//! Handlers dawdle, refuse, leave or acknowledge in either way, and go on for a while after that.
//! What the flow promises is asserted at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::*;

const QUEUES: u64 = 5;
const MESSAGES: u64 = 300;

/// A consumer as the server keeps it: pins, pending messages, redelivery. Times are in virtual
/// milliseconds.
struct Server {
    next: u64,
    consumer_seq: u64,
    pending: BTreeMap<u64, Pending>,
    acked: BTreeSet<u64>,
    pin: Option<(String, u64)>,
    pins: u64,
    waiting: Vec<Waiting>,
    ttl: u64,
    ack_wait: u64,
    limit: usize,
}

/// A message that is not acknowledged.
struct Pending {
    /// When it may be delivered again.
    due: u64,
    deliveries: u64,
    delivered_at: u64,
}

struct Waiting {
    instance: usize,
    life: u64,
    pull: Pull,
    left: u32,
    expires: u64,
    heartbeat_at: u64,
}

enum ToServer {
    Pull(Pull),
    Ack(u64),
    Nak(u64, u64),
    Progress(Vec<u64>),
    Ask(u64),
}

enum Wire {
    ToServer(ToServer),
    ToClient(Event<u64>),
    Settle { run: u64, manner: Manner },
    Confirmed { run: u64 },
    Finish { run: u64 },
}

/// How a handler leaves its message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Ack,
    /// Waits for the broker's word.
    DoubleAck,
    /// As `DoubleAck`, and no word comes.
    Unconfirmed,
    Nak,
    /// Not at all.
    Leave,
}

/// A handler at work.
struct Handler {
    seq: u64,
    settled: bool,
    /// The server does not hold the message as pending for it any more: whoever gets the pin by
    /// force may begin beside it.
    exposed: bool,
}

struct Letter {
    at: u64,
    order: u64,
    instance: usize,
    life: u64,
    wire: Wire,
}

struct Instance {
    flow: Flow<u64>,
    life: u64,
    alive: bool,
    cut_until: u64,
    runs: BTreeMap<u64, Handler>,
}

struct World {
    now: u64,
    order: u64,
    random: fastrand::Rng,
    server: Server,
    instances: Vec<Instance>,
    letters: Vec<Letter>,
    /// Who is at work in a queue: instance and message.
    running: BTreeMap<u64, (usize, u64)>,
    newest_success: BTreeMap<u64, u64>,
    successes: BTreeSet<u64>,
    /// What was acknowledged when the consumer was set back, and has to be handled again.
    replay: BTreeSet<u64>,
    pin_losses: u64,
    resets: u64,
    /// Resets that a flow has noticed.
    noticed: u64,
    /// Messages that came again while the handler that had refused them was still at work.
    lingered: u64,
}

fn queue(seq: u64) -> u64 {
    seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) % QUEUES
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let limit = [1, 3, 20][random.usize(0..3)];
        let server = Server {
            next: 1,
            consumer_seq: 0,
            pending: BTreeMap::new(),
            acked: BTreeSet::new(),
            pin: None,
            pins: 0,
            waiting: Vec::new(),
            ttl: 2000,
            ack_wait: 2000,
            limit,
        };
        let mut world = Self {
            now: 0,
            order: 0,
            random,
            server,
            instances: Vec::new(),
            letters: Vec::new(),
            running: BTreeMap::new(),
            newest_success: BTreeMap::new(),
            successes: BTreeSet::new(),
            replay: BTreeSet::new(),
            pin_losses: 0,
            resets: 0,
            noticed: 0,
            lingered: 0,
        };
        for _ in 0..3 {
            let flow = world.flow();
            world.instances.push(Instance {
                flow,
                life: 0,
                alive: true,
                cut_until: 0,
                runs: BTreeMap::new(),
            });
            world.step(world.instances.len() - 1, Event::Attach);
        }
        world
    }

    fn flow(&self) -> Flow<u64> {
        let limit = self.server.limit;
        Flow::new(FlowConfig { max_ack_pending: Some(limit), concurrency: 3, ..super::config() })
    }

    fn at(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    fn send(&mut self, instance: usize, delay: u64, wire: Wire) {
        self.order += 1;
        let life = self.instances[instance].life;
        self.letters.push(Letter { at: self.now + delay, order: self.order, instance, life, wire });
    }

    /// Messages of one connection keep their order, so the delay is the same for all.
    fn send_server(&mut self, instance: usize, request: ToServer) {
        if self.instances[instance].cut_until <= self.now {
            self.send(instance, 1, Wire::ToServer(request));
        }
    }

    fn send_client(&mut self, instance: usize, life: u64, event: Event<u64>) {
        let target = &self.instances[instance];
        if target.alive && target.life == life && target.cut_until <= self.now {
            self.send(instance, 1, Wire::ToClient(event));
        }
    }

    fn step(&mut self, instance: usize, event: Event<u64>) {
        let now = self.at();
        let mut out = Vec::new();
        if let Event::Delivered(delivery) = &event {
            let mut runs = self.instances[instance].runs.values();
            self.lingered +=
                u64::from(runs.any(|run| run.settled && run.seq == delivery.stream_seq));
        }
        self.instances[instance].flow.step_all([event], now, &mut out);
        self.instances[instance].flow.check();
        for action in out.drain(..) {
            self.act(instance, action);
        }
        while let Some(run) = self.instances[instance].flow.next_run(now, &mut out) {
            self.begin(instance, run.run, run.content);
        }
        self.instances[instance].flow.check();
        for action in out {
            self.act(instance, action);
        }
    }

    fn act(&mut self, instance: usize, action: Action<u64>) {
        match action {
            Action::Pull(pull) => self.send_server(instance, ToServer::Pull(pull)),
            Action::DeadLetter(_) => unreachable!("no message is to be buried here"),
            Action::Confirm(seq) => self.send_server(instance, ToServer::Ack(seq)),
            Action::Return(seq) => self.send_server(instance, ToServer::Nak(seq, 0)),
            Action::Progress => {
                let Instance { flow, runs, .. } = &self.instances[instance];
                let running = runs.values().filter(|run| !run.settled).map(|run| run.seq);
                let held = running.chain(flow.buffered().copied()).collect();
                self.send_server(instance, ToServer::Progress(held));
            }
            Action::AskPosition(question) => self.send_server(instance, ToServer::Ask(question)),
            Action::Cancel => self.cancel(instance),
            Action::PinLost(_) => self.pin_losses += 1,
            Action::Reset => self.noticed += 1,
            Action::Pinned | Action::Drained => {}
        }
    }

    fn begin(&mut self, instance: usize, run: u64, seq: u64) {
        let queue = queue(seq);
        if let Some((other, theirs)) = self.running.insert(queue, (instance, seq)) {
            let exposed =
                self.instances[other].runs.values().any(|run| run.seq == theirs && run.exposed);
            assert!(
                other != instance && exposed,
                "queue {queue}: {instance} began {seq} while {other} was at work with {theirs}"
            );
        }
        // Delivered before the consumer was set back, it may be on its way to others already.
        let exposed = !self.server.pending.contains_key(&seq);
        self.instances[instance].runs.insert(run, Handler { seq, settled: false, exposed });
        let manner = match self.random.u8(..100) {
            0..5 => Manner::Nak,
            5..7 => Manner::Leave,
            7..9 => Manner::Unconfirmed,
            9..15 => Manner::DoubleAck,
            _ => Manner::Ack,
        };
        let work = if self.random.u8(..50) == 0 { 3000 } else { self.random.u64(1..40) };
        self.send(instance, work, Wire::Settle { run, manner });
    }

    /// Handlers that can be dropped are dropped at once; somebody may hold their message for
    /// longer.
    fn cancel(&mut self, instance: usize) {
        for (run, Handler { seq, settled, .. }) in
            std::mem::take(&mut self.instances[instance].runs)
        {
            self.leave_lane(instance, seq);
            let linger = if self.random.u8(..4) == 0 { self.random.u64(1..3000) } else { 0 };
            if !settled && self.random.bool() {
                let at = self.random.u64(0..=linger);
                let settlement = Settlement::Again;
                self.send(instance, at, Wire::ToClient(Event::Settled { run, settlement }));
            }
            self.send(instance, linger, Wire::ToClient(Event::Finished { run }));
        }
    }

    fn settle(&mut self, instance: usize, run: u64, manner: Manner) {
        let linger = match self.random.u8(..20) {
            0..14 => 0,
            14..19 => self.random.u64(1..200),
            _ => 3000,
        };
        let Some(handler) = self.instances[instance].runs.get_mut(&run) else { return };
        let seq = handler.seq;
        handler.exposed = manner != Manner::Leave;
        match manner {
            Manner::Leave => {}
            Manner::Ack => {
                handler.settled = true;
                self.succeed(seq);
                self.step(instance, Event::Settled { run, settlement: Settlement::Done });
                self.send_server(instance, ToServer::Ack(seq));
            }
            Manner::Nak => {
                handler.settled = true;
                self.step(instance, Event::Settled { run, settlement: Settlement::Again });
                let delay = if self.random.bool() { 0 } else { self.random.u64(0..100) };
                self.send_server(instance, ToServer::Nak(seq, delay));
            }
            Manner::DoubleAck | Manner::Unconfirmed => {
                self.succeed(seq);
                self.step(instance, Event::Settling { run });
                self.send_server(instance, ToServer::Ack(seq));
                if manner == Manner::DoubleAck && self.instances[instance].cut_until <= self.now {
                    self.send(instance, 2, Wire::Confirmed { run });
                    self.send(instance, 2 + linger, Wire::Finish { run });
                    return;
                }
            }
        }
        self.send(instance, linger, Wire::Finish { run });
    }

    fn confirmed(&mut self, instance: usize, run: u64) {
        let Some(handler) = self.instances[instance].runs.get_mut(&run) else { return };
        handler.settled = true;
        self.step(instance, Event::Settled { run, settlement: Settlement::Done });
    }

    fn leave_lane(&mut self, instance: usize, seq: u64) {
        if self.running.get(&queue(seq)) == Some(&(instance, seq)) {
            self.running.remove(&queue(seq));
        }
    }

    fn succeed(&mut self, seq: u64) {
        self.replay.remove(&seq);
        if self.successes.insert(seq) {
            let newest = self.newest_success.entry(queue(seq)).or_insert(0);
            assert!(seq > *newest, "queue {}: {seq} succeeded after {newest}", queue(seq));
            *newest = seq;
        }
    }

    fn finish(&mut self, instance: usize, run: u64) {
        let Some(handler) = self.instances[instance].runs.remove(&run) else { return };
        self.leave_lane(instance, handler.seq);
        self.step(instance, Event::Finished { run });
    }

    fn serve(&mut self, instance: usize, life: u64, request: ToServer) {
        match request {
            ToServer::Ack(seq) => {
                self.server.pending.remove(&seq);
                self.server.acked.insert(seq);
            }
            ToServer::Nak(seq, delay) => {
                if let Some(entry) = self.server.pending.get_mut(&seq) {
                    entry.due = self.now + delay;
                }
            }
            ToServer::Progress(held) => {
                for seq in held {
                    if let Some(entry) = self.server.pending.get_mut(&seq) {
                        entry.due = entry.due.max(self.now + self.server.ack_wait);
                    }
                }
            }
            ToServer::Ask(question) => {
                let position = Position {
                    question,
                    delivered_stream_seq: self.server.next - 1,
                    delivered_consumer_seq: self.server.consumer_seq,
                    ack_floor_stream_seq: self
                        .server
                        .pending
                        .keys()
                        .next()
                        .map_or(self.server.next, |s| *s)
                        - 1,
                    ack_pending: self.server.pending.len(),
                    pinned: self.server.pin.as_ref().map(|(pin, _)| pin.clone()),
                };
                self.send_client(instance, life, Event::Position(position));
            }
            ToServer::Pull(pull) => self.pull(instance, life, pull),
        }
    }

    fn pull(&mut self, instance: usize, life: u64, pull: Pull) {
        if let (Some(id), Some((pin, until))) = (&pull.pin, &mut self.server.pin) {
            if **id != **pin {
                self.send_client(
                    instance,
                    life,
                    Event::Status { pull: pull.number, status: PullStatus::WrongPin, unused: 0 },
                );
                return;
            }
            *until = self.now + self.server.ttl;
        }
        let millis = |d: Duration| d.as_millis() as u64;
        let heartbeat_at =
            if pull.heartbeat.is_zero() { u64::MAX } else { self.now + millis(pull.heartbeat) };
        let expires = self.now + millis(pull.expires);
        self.server.waiting.push(Waiting {
            instance,
            life,
            left: pull.batch,
            expires,
            heartbeat_at,
            pull,
        });
    }

    /// What the server does by itself as time passes.
    fn tend(&mut self) {
        if self.server.pin.as_ref().is_some_and(|(_, until)| *until <= self.now) {
            self.server.pin = None;
        }
        let mut told = Vec::new();
        let now = self.now;
        self.server.waiting.retain_mut(|w| {
            let mut tell = |status, unused| {
                told.push((
                    w.instance,
                    w.life,
                    Event::Status { pull: w.pull.number, status, unused },
                ))
            };
            if now >= w.expires {
                tell(PullStatus::Accepted { ended: true }, w.left);
                return false;
            }
            if now >= w.heartbeat_at {
                tell(PullStatus::Accepted { ended: false }, 0);
                w.heartbeat_at = now + w.pull.heartbeat.as_millis() as u64;
            }
            true
        });
        for (instance, life, event) in told {
            self.send_client(instance, life, event);
        }
        while self.deliver() {}
    }

    /// Delivers one message if there is one and somebody may have it.
    fn deliver(&mut self) -> bool {
        let again =
            self.server.pending.iter().find(|(_, p)| p.due <= self.now).map(|(seq, _)| *seq);
        while self.server.acked.contains(&self.server.next) {
            self.server.next += 1;
        }
        let fresh = self.server.next <= MESSAGES && self.server.pending.len() < self.server.limit;
        let Some(seq) = again.or(fresh.then_some(self.server.next)) else { return false };
        let mut at = 0;
        while let Some(waiting) = self.server.waiting.get(at) {
            let (instance, life, number) = (waiting.instance, waiting.life, waiting.pull.number);
            let pin = self.server.pin.as_ref().map(|(pin, _)| pin.clone());
            let gone = !self.instances[instance].alive || self.instances[instance].life != life;
            let status = match (&waiting.pull.pin, &pin) {
                _ if gone => Some(None),
                (Some(id), Some(pin)) if **id == **pin && waiting.pull.probe => {
                    Some(Some(PullStatus::Accepted { ended: true }))
                }
                (Some(id), Some(pin)) if **id == **pin => None,
                (Some(_), _) => Some(Some(PullStatus::WrongPin)),
                (None, Some(_)) => {
                    at += 1;
                    continue;
                }
                (None, None) => None,
            };
            if let Some(status) = status {
                self.server.waiting.remove(at);
                if let Some(status) = status {
                    self.send_client(
                        instance,
                        life,
                        Event::Status { pull: number, status, unused: 0 },
                    );
                }
                continue;
            }
            if pin.is_none() {
                self.server.pins += 1;
                self.server.pin =
                    Some((format!("pin-{}", self.server.pins), self.now + self.server.ttl));
            }
            let waiting = &mut self.server.waiting[at];
            waiting.left -= 1;
            if waiting.left == 0 {
                self.server.waiting.remove(at);
            }
            self.hand_out(instance, life, seq);
            return true;
        }
        false
    }

    fn hand_out(&mut self, instance: usize, life: u64, seq: u64) {
        self.server.consumer_seq += 1;
        self.server.next = self.server.next.max(seq + 1);
        let due = self.now + self.server.ack_wait;
        let deliveries = 1 + self.server.pending.get(&seq).map_or(0, |pending| pending.deliveries);
        self.server.pending.insert(seq, Pending { due, deliveries, delivered_at: self.now });
        let delivery = Delivery {
            stream_seq: seq,
            consumer_seq: self.server.consumer_seq,
            deliveries,
            queue: queue(seq),
            pin: self.server.pin.as_ref().map(|(pin, _)| pin.as_str().into()),
            content: seq,
        };
        self.send_client(instance, life, Event::Delivered(delivery));
    }

    fn disturb(&mut self) {
        let at = self.random.usize(0..self.instances.len());
        match self.random.u32(0..6000) {
            0 => {
                // Killed, and started anew.
                self.cancel(at);
                let flow = self.flow();
                let life = self.instances[at].life + 1;
                let fresh =
                    Instance { flow, life, alive: true, cut_until: 0, runs: BTreeMap::new() };
                self.instances[at] = fresh;
                self.step(at, Event::Attach);
            }
            1 => self.instances[at].cut_until = self.now + self.random.u64(100..5000),
            2 => self.server.pin = None,
            3 => self.restart(),
            4 if self.random.bool() => self.reset(),
            _ => {}
        }
        for at in 0..self.instances.len() {
            if self.instances[at].cut_until == self.now && self.now > 0 {
                self.step(at, Event::Reconnected);
            }
        }
    }

    /// Somebody sets the consumer back: what it delivered from there on comes again, as if for the
    /// first time.
    fn reset(&mut self) {
        let floor = self.server.pending.keys().next().map_or(self.server.next, |first| *first);
        let back_to = self.random.u64(floor.saturating_sub(40).max(1)..=floor);
        self.server.pending.clear();
        self.instances
            .iter_mut()
            .flat_map(|i| i.runs.values_mut())
            .for_each(|run| run.exposed = true);
        self.server.consumer_seq = 0;
        self.server.next = back_to;
        self.replay.extend(self.server.acked.split_off(&back_to));
        // An acknowledgement says nothing about when it was sent: one that meets the next delivery
        // counts for that.
        self.letters.retain(|letter| !matches!(letter.wire, Wire::ToServer(ToServer::Ack(_))));
        self.resets += 1;
    }

    /// The server restarts from a state that is a little old: it knows no pin, nor what it
    /// delivered last.
    fn restart(&mut self) {
        let back_at = self.now + self.random.u64(50..500);
        let recent = self.now - self.random.u64(0..50).min(self.now);
        self.server.pin = None;
        self.server.waiting.clear();
        let forgotten =
            self.server.pending.iter().find(|(_, p)| p.delivered_at >= recent && p.deliveries == 1);
        if let Some(first) = forgotten.map(|(seq, _)| *seq) {
            self.server.next = first;
            self.server.pending.retain(|seq, _| *seq < first);
        }
        self.letters.retain(|letter| {
            let own = matches!(
                &letter.wire,
                Wire::ToClient(Event::Finished { .. } | Event::Settled { .. })
            );
            own || matches!(
                letter.wire,
                Wire::Settle { .. } | Wire::Confirmed { .. } | Wire::Finish { .. }
            )
        });
        for at in 0..self.instances.len() {
            self.instances[at].cut_until = back_at;
            self.step(at, Event::Disconnected);
        }
    }

    fn run(&mut self) {
        while self.server.acked.len() < MESSAGES as usize {
            self.now += 1;
            assert!(
                self.now < 3_600_000,
                "{} of {MESSAGES} handled in an hour",
                self.server.acked.len()
            );
            self.disturb();
            self.tend();
            self.letters.sort_by_key(|letter| (letter.at, letter.order));
            while self.letters.first().is_some_and(|letter| letter.at <= self.now) {
                let Letter { instance, life, wire, .. } = self.letters.remove(0);
                if self.instances[instance].life != life {
                    // The process is gone; what it had sent arrives all the same.
                    if let Wire::ToServer(request) = wire {
                        self.serve(instance, life, request);
                    }
                    continue;
                }
                match wire {
                    Wire::ToServer(request) => self.serve(instance, life, request),
                    Wire::ToClient(event) => self.step(instance, event),
                    Wire::Settle { run, manner } => self.settle(instance, run, manner),
                    Wire::Confirmed { run } => self.confirmed(instance, run),
                    Wire::Finish { run } => self.finish(instance, run),
                }
            }
            for at in 0..self.instances.len() {
                if self.instances[at]
                    .flow
                    .wake_at()
                    .is_some_and(|wake| wake <= Duration::from_millis(self.now))
                {
                    self.step(at, Event::Tick);
                }
            }
        }
        assert_eq!(
            self.successes.len(),
            MESSAGES as usize,
            "a message was acknowledged that nobody handled"
        );
        // What is dropped without need comes again after an ack wait only.
        assert!(
            self.noticed <= self.resets,
            "{} resets, of which {} were noticed",
            self.resets,
            self.noticed
        );
        assert!(
            self.replay.is_empty(),
            "not handled again after the consumer was reset: {:?}",
            self.replay
        );
    }
}

#[test]
fn flows_keep_their_promise_against_a_model_server() {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = first.map_or(0..60, |seed: u64| seed..seed + 1);
    let (mut pin_losses, mut resets, mut lingered) = (0, 0, 0);
    for seed in seeds {
        println!("SEED={seed}");
        let mut world = World::new(seed);
        world.run();
        pin_losses += world.pin_losses;
        resets += world.resets;
        lingered += world.lingered;
    }
    println!(
        "{pin_losses} pins lost, {resets} resets, {lingered} came again while their handler \
         lingered"
    );
    assert!(
        first.is_some() || pin_losses.min(resets).min(lingered) > 0,
        "the faults did not reach the flows"
    );
}
