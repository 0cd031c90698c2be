//! The thing that is scaled: a queue and instances that take a while to start.

use std::collections::VecDeque;

use super::{COLD_START_MS, DRAIN_MS, SERVICE_RATE, SLO_MS, TICK_MS};
use crate::sample::{Fleet, Sample};

/// A queue, first come, first served, and the instances before it.
#[derive(Clone, Debug, Default)]
pub struct Plant {
    ready: u32,
    /// When each of those that start will be ready, soonest first.
    starting: VecDeque<u64>,
    /// When each of those that stop will be gone.
    stopping: VecDeque<u64>,
    /// When messages came, and how many of them still wait.
    queue: VecDeque<(u64, u64)>,
    waiting: u64,
    arrived: u64,
    completed: u64,
    late: u64,
    /// Capacity that is left of a message that was begun.
    begun: f64,
    in_hand: u64,
    most_waiting: u64,
    instance_ms: u64,
}

impl Plant {
    /// A plant with so many instances that are ready.
    pub fn new(ready: u32) -> Plant {
        Plant { ready, ..Plant::default() }
    }

    /// Starts or stops instances. Those that start go first, since they hold nothing.
    pub fn set(&mut self, now_ms: u64, wanted: u32) {
        let present = self.fleet().present();
        for _ in present..wanted {
            self.starting.push_back(now_ms + COLD_START_MS);
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
        if arrivals > 0 {
            self.queue.push_back((now_ms, u64::from(arrivals)));
            self.waiting += u64::from(arrivals);
            self.arrived += u64::from(arrivals);
        }
        self.serve(now_ms);
        self.most_waiting = self.most_waiting.max(self.waiting);
        let fleet = self.fleet();
        self.instance_ms += u64::from(fleet.present() + fleet.stopping) * TICK_MS;
    }

    fn serve(&mut self, now_ms: u64) {
        let capacity = f64::from(self.ready) * SERVICE_RATE * TICK_MS as f64 / 1_000.0 + self.begun;
        let mut able = capacity as u64;
        self.begun = if self.waiting > able { capacity.fract() } else { 0.0 };
        let before = self.completed;
        while able > 0 {
            let Some((came_ms, count)) = self.queue.front_mut() else { break };
            let served = able.min(*count);
            let is_late = now_ms.saturating_sub(*came_ms) > SLO_MS;
            *count -= served;
            able -= served;
            self.waiting -= served;
            self.completed += served;
            self.late += if is_late { served } else { 0 };
            if *count == 0 {
                self.queue.pop_front();
            }
        }
        let busy = (self.completed - before) as f64 * 1_000.0 / (TICK_MS as f64 * SERVICE_RATE);
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
        Fleet { ready: self.ready, starting: count(&self.starting), stopping: count(&self.stopping) }
    }

    /// Messages that ever came.
    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Messages that waited too long, those that still wait at `end_ms` included.
    pub fn late_by(&self, end_ms: u64) -> u64 {
        let overdue = self.queue.iter().filter(|(came_ms, _)| end_ms.saturating_sub(*came_ms) > SLO_MS);
        self.late + overdue.map(|(_, count)| count).sum::<u64>()
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
        assert_eq!(plant.fleet(), Fleet { ready: 2, starting: 0, stopping: 0 });
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
}
