//! The thing that is scaled: a queue and instances that take a while to start.

use std::collections::VecDeque;

use super::{COLD_START_MS, DRAIN_MS, SERVICE_RATE, SLO_MS, TICK_MS, TraceKind};
use crate::sample::{Fleet, Sample};

/// A queue, first come, first served, and the instances before it.
#[derive(Clone, Debug)]
pub struct Plant {
    /// How long an instance takes to start, in milliseconds.
    cold_start_ms: u64,
    /// What an instance can do now, as a share of its best.
    fitness: f64,
    /// Whether whoever waits too long asks once more, and still waits.
    has_retries: bool,
    ready: u32,
    /// When each of those that start will be ready, soonest first.
    starting: VecDeque<u64>,
    /// When each of those that stop will be gone.
    stopping: VecDeque<u64>,
    queue: VecDeque<Batch>,
    waiting: u64,
    arrived: u64,
    /// Of those that arrived, the ones that came for a second time.
    retried: u64,
    completed: u64,
    late: u64,
    /// Capacity that is left of a message that was begun.
    begun: f64,
    in_hand: u64,
    most_waiting: u64,
    instance_ms: u64,
}

/// Messages that came at the same moment and still wait.
#[derive(Clone, Copy, Debug)]
struct Batch {
    came_ms: u64,
    count: u64,
    /// Whether they came for a second time: they are work, and nobody judges how long they wait.
    is_retry: bool,
}

impl Plant {
    /// A plant with so many instances that are ready, as the usual traces have it.
    pub fn new(ready: u32) -> Self {
        Self {
            cold_start_ms: COLD_START_MS,
            fitness: 1.0,
            has_retries: false,
            ready,
            starting: VecDeque::new(),
            stopping: VecDeque::new(),
            queue: VecDeque::new(),
            waiting: 0,
            arrived: 0,
            retried: 0,
            completed: 0,
            late: 0,
            begun: 0.0,
            in_hand: 0,
            most_waiting: 0,
            instance_ms: 0,
        }
    }

    /// A plant as a kind of trace has it.
    pub fn of(kind: TraceKind, ready: u32) -> Self {
        Self {
            cold_start_ms: kind.cold_start_ms(),
            has_retries: kind.has_retries(),
            ..Self::new(ready)
        }
    }

    /// Sets what an instance can do from now on, as a share of its best.
    pub fn set_fitness(&mut self, fitness: f64) {
        self.fitness = fitness;
    }

    /// Starts or stops instances. Those that start go first, since they hold nothing.
    pub fn set(&mut self, now_ms: u64, wanted: u32) {
        let present = self.fleet().present();
        for _ in present..wanted {
            self.starting.push_back(now_ms + self.cold_start_ms);
        }
        for _ in wanted..present {
            if self.starting.pop_back().is_none() {
                self.ready -= 1;
                self.stopping.push_back(now_ms + DRAIN_MS);
            }
        }
    }

    /// Lets one tick pass in which so many messages come.
    pub fn tick(&mut self, now_ms: u64, arrivals: u32) {
        while self.starting.front().is_some_and(|ready_ms| *ready_ms <= now_ms) {
            self.starting.pop_front();
            self.ready += 1;
        }
        self.stopping.retain(|gone_ms| *gone_ms > now_ms);
        self.enqueue(now_ms, u64::from(arrivals), false);
        if self.has_retries {
            let retried = self.just_late(now_ms);
            self.retried += retried;
            self.enqueue(now_ms, retried, true);
        }
        self.serve(now_ms);
        self.most_waiting = self.most_waiting.max(self.waiting);
        let fleet = self.fleet();
        self.instance_ms += u64::from(fleet.present() + fleet.stopping) * TICK_MS;
    }

    fn enqueue(&mut self, now_ms: u64, count: u64, is_retry: bool) {
        if count > 0 {
            self.queue.push_back(Batch { came_ms: now_ms, count, is_retry });
            self.waiting += count;
            self.arrived += count;
        }
    }

    /// Messages that have waited too long since this very tick.
    fn just_late(&self, now_ms: u64) -> u64 {
        let is_due = |batch: &&Batch| !batch.is_retry && batch.came_ms + SLO_MS + TICK_MS == now_ms;
        self.queue.iter().filter(is_due).map(|batch| batch.count).sum()
    }

    fn serve(&mut self, now_ms: u64) {
        let rate = SERVICE_RATE * self.fitness;
        let capacity = f64::from(self.ready) * rate * TICK_MS as f64 / 1_000.0 + self.begun;
        let mut able = capacity as u64;
        self.begun = if self.waiting > able { capacity.fract() } else { 0.0 };
        let before = self.completed;
        while able > 0 {
            let Some(batch) = self.queue.front_mut() else { break };
            let served = able.min(batch.count);
            let is_late = !batch.is_retry && now_ms.saturating_sub(batch.came_ms) > SLO_MS;
            batch.count -= served;
            able -= served;
            self.waiting -= served;
            self.completed += served;
            self.late += if is_late { served } else { 0 };
            if batch.count == 0 {
                self.queue.pop_front();
            }
        }
        let busy = (self.completed - before) as f64 * 1_000.0 / (TICK_MS as f64 * rate);
        self.in_hand = (busy.ceil() as u64).min(u64::from(self.ready));
    }

    /// The counters as they stand. One message for each busy instance is in hand.
    pub fn sample(&self, now_ms: u64) -> Sample {
        Sample {
            at_ms: now_ms,
            source: "plant".to_owned(),
            arrived: self.arrived,
            completed: self.completed,
            waiting: Some(self.waiting),
            in_hand: Some(self.in_hand),
            ..Sample::default()
        }
    }

    /// The instances.
    pub fn fleet(&self) -> Fleet {
        let count = |queue: &VecDeque<u64>| u32::try_from(queue.len()).unwrap_or(u32::MAX);
        Fleet {
            ready: self.ready,
            starting: count(&self.starting),
            stopping: count(&self.stopping),
            ..Fleet::default()
        }
    }

    /// Messages that ever came, each once.
    pub fn messages(&self) -> u64 {
        self.arrived - self.retried
    }

    /// Messages that waited too long, those that still wait at `end_ms` included.
    pub fn late_by(&self, end_ms: u64) -> u64 {
        let is_overdue =
            |batch: &&Batch| !batch.is_retry && end_ms.saturating_sub(batch.came_ms) > SLO_MS;
        self.late + self.queue.iter().filter(is_overdue).map(|batch| batch.count).sum::<u64>()
    }

    /// Instance-seconds so far.
    pub fn instance_s(&self) -> f64 {
        self.instance_ms as f64 / 1_000.0
    }

    /// The longest that the queue has been.
    pub fn most_waiting(&self) -> u64 {
        self.most_waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_serve_their_rate_after_their_cold_start() {
        let mut plant = Plant::new(0);
        plant.set(0, 2);
        for tick in 0..130 {
            plant.tick(tick * TICK_MS, 50);
        }
        assert_eq!(plant.fleet(), Fleet { ready: 2, starting: 0, stopping: 0, ..Fleet::default() });
        assert_eq!(plant.sample(0).completed, 2_000, "200/s for the ten seconds after the third");
        assert_eq!(plant.sample(0).waiting, Some(130 * 50 - 2_000));
    }

    #[test]
    fn messages_are_late_when_they_waited_longer_than_promised() {
        let mut plant = Plant::new(1);
        plant.tick(0, 200);
        for tick in 1..30 {
            plant.tick(tick * TICK_MS, 0);
        }
        assert_eq!(plant.late_by(3_000), 90, "11 ticks of ten were in time");
    }

    #[test]
    fn whoever_waits_too_long_asks_once_more_and_counts_once() {
        let mut plant = Plant { has_retries: true, ..Plant::new(1) };
        plant.tick(0, 200);
        for tick in 1..100 {
            plant.tick(tick * TICK_MS, 0);
        }
        assert_eq!((plant.messages(), plant.late_by(10_000)), (200, 90));
        assert_eq!(plant.sample(0).arrived, 290, "ninety came a second time");
    }

    #[test]
    fn half_as_fit_instances_do_half_as_much() {
        let mut plant = Plant::new(2);
        plant.set_fitness(0.5);
        for tick in 0..10 {
            plant.tick(tick * TICK_MS, 50);
        }
        assert_eq!(plant.sample(0).completed, 100);
    }
}
