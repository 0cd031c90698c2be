//! Autoscalers judged on the same seeded traffic, by a virtual clock.
//!
//! A [`Plant`] is a queue and instances that take a while to start. Each [`Trace`] sends it Poisson
//! arrivals; an [`Autoscaler`] looks at its counters, through whatever the trace does to them, and
//! says how many instances there shall be. What is judged: messages that waited longer than
//! [`SLO_MS`], instance-seconds over those of an [`oracle`] that knows the future, changes,
//! reversals, and how long it took to meet a new load.

mod faults;
mod hpa;
mod oracle;
pub mod own;
mod plant;
mod plot;
mod rivals;
mod seeds;
mod settings;
mod table;
mod trace;

pub use faults::fault_sequence;
pub use hpa::{GRID, Hpa, HpaRules};
pub use oracle::oracle;
pub use plant::Plant;
pub use plot::{plot, plot_on};
pub use rivals::{BestOfGrid, Rival, Standing, compare, compare_on};
pub use seeds::{NatsExample, QueueWatch};
pub use settings::{Ours, frozen_policies, frozen_rules};
pub use table::{AimResults, table, verdict};
pub use trace::{Lies, Trace, TraceKind};

use serde::Serialize;

use crate::sample::{Fault, Fleet, Sample};

/// Messages a second of one instance.
pub const SERVICE_RATE: f64 = 100.0;
/// How long an instance takes to start, in milliseconds.
pub const COLD_START_MS: u64 = 3_000;
/// How long an instance takes to finish what it holds, in milliseconds.
pub const DRAIN_MS: u64 = 500;
/// A message that waits longer is late.
pub const SLO_MS: u64 = 1_000;
/// The step of the virtual clock.
pub const TICK_MS: u64 = 100;
/// The most instances that anybody may have.
pub const MAX_INSTANCES: u32 = 60;

/// Something that says how many instances there shall be.
pub trait Autoscaler {
    /// How often it looks, in milliseconds.
    fn period_ms(&self) -> u64;

    /// How many instances there shall be, given what the metrics say.
    fn decide(&mut self, now_ms: u64, fleet: Fleet, poll: &Result<Sample, Fault>) -> u32;
}

/// What one autoscaler did on one trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Run {
    /// Messages that came.
    pub messages: u64,
    /// Those of them that waited longer than [`SLO_MS`].
    pub late: u64,
    /// Instance-seconds, starting and stopping included.
    pub instance_s: f64,
    /// Changes of the number of instances that was asked for.
    pub events: u32,
    /// Changes in the other direction than the change before.
    pub reversals: u32,
    /// Seconds from the first change of the load until the instances that were ready could carry
    /// it.
    pub scaled_after_s: Option<f64>,
    /// The longest queue, in messages.
    pub most_waiting: u64,
    /// Once a second: instances that are ready or starting.
    #[serde(skip)]
    pub instances: Vec<u32>,
}

impl Run {
    /// Late messages in percent of all.
    pub fn late_percent(&self) -> f64 {
        if self.messages == 0 { 0.0 } else { self.late as f64 * 100.0 / self.messages as f64 }
    }
}

/// Runs a trace against an autoscaler.
pub fn run(trace: &Trace, autoscaler: &mut dyn Autoscaler) -> Run {
    let mut plant = Plant::of(trace.kind(), trace.first_instances());
    let mut lies = trace.lies();
    let mut run = Run::default();
    let mut last_direction = 0;
    let mut asked = plant.fleet().present();
    for (tick, arrivals) in (0..).zip(trace.arrivals()) {
        let now_ms = tick * TICK_MS;
        if now_ms.is_multiple_of(autoscaler.period_ms()) {
            let poll = lies.tell(now_ms, plant.sample(now_ms));
            let wanted = autoscaler.decide(now_ms, plant.fleet(), &poll).min(MAX_INSTANCES);
            let direction = i64::from(wanted).cmp(&i64::from(asked)) as i32;
            if direction != 0 {
                run.events += 1;
                run.reversals += u32::from(direction == -last_direction);
                last_direction = direction;
                asked = wanted;
            }
            plant.set(now_ms, wanted);
        }
        plant.set_fitness(trace.fitness()[tick as usize]);
        plant.tick(now_ms, *arrivals);
        if now_ms.is_multiple_of(1_000) {
            run.instances.push(plant.fleet().present());
        }
        if let Some((changed_ms, load)) = trace.first_change()
            && now_ms >= changed_ms
            && run.scaled_after_s.is_none()
            && f64::from(plant.fleet().ready) * SERVICE_RATE >= load
        {
            run.scaled_after_s = Some((now_ms - changed_ms) as f64 / 1_000.0);
        }
    }
    run.messages = plant.messages();
    run.late = plant.late_by(trace.arrivals().len() as u64 * TICK_MS);
    run.instance_s = plant.instance_s();
    run.most_waiting = plant.most_waiting();
    run
}
