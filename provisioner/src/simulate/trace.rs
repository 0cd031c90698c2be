//! Seeded traffic, and what may be wrong with the metrics of it.

use std::f64::consts::TAU;

use fastrand::Rng;
use serde::Serialize;

use super::{COLD_START_MS, SERVICE_RATE, TICK_MS};
use crate::sample::{Fault, Sample};

/// How long every trace lasts, in seconds: twice the scale-in window of Kubernetes.
const LENGTH_S: u64 = 600;

/// The kinds of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceKind {
    /// Five times the load at once, and back.
    Step,
    /// Fifteen times the load within four minutes, and back within three.
    Ramp,
    /// Waves of two minutes.
    Sine,
    /// Thirty times the load for twenty seconds, twice.
    Spike,
    /// Ten times the load within five seconds, ebbing away.
    FlashCrowd,
    /// 40 s of load, 60 s of nothing; down to zero instances.
    OnOff,
    /// A load that is another every second, around what a whole number of instances carries.
    Noise,
    /// Steps under metrics that are missing, stale, wrong or begin anew.
    Lying,
    /// A low load and bursts that come by chance, most of them small and short, a few large and
    /// long (Pareto).
    Bursty,
    /// Two surges under which whoever waited too long asks once more.
    RetryStorm,
    /// The same load all along, while instances can do ever less, down to half.
    SlowLeak,
    /// A deploy halves what an instance can do; 200 s later it is taken back.
    Deploy,
    /// Steps, and instances that take 15 s to start.
    SlowStarts,
    /// Climbs for a minute and a half and falls at once, again and again.
    Sawtooth,
    /// Two peaks with a saddle between them, as a working day has them.
    DoubleHump,
    /// Somebody's own traffic; none of [`TraceKind::ALL`].
    Own,
}

/// One trace: how many messages come in each tick.
#[derive(Clone, Debug)]
pub struct Trace {
    kind: TraceKind,
    seed: u64,
    /// Messages a second that come on average, for each tick.
    loads: Vec<f64>,
    arrivals: Vec<u32>,
    /// What an instance can do, as a share of its best, for each tick.
    fitness: Vec<f64>,
    first_change: Option<(u64, f64)>,
}

impl TraceKind {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Step,
        Self::Ramp,
        Self::Sine,
        Self::Spike,
        Self::FlashCrowd,
        Self::OnOff,
        Self::Noise,
        Self::Lying,
        Self::Bursty,
        Self::RetryStorm,
        Self::SlowLeak,
        Self::Deploy,
        Self::SlowStarts,
        Self::Sawtooth,
        Self::DoubleHump,
    ];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Ramp => "ramp",
            Self::Sine => "sine",
            Self::Spike => "spike",
            Self::FlashCrowd => "flash-crowd",
            Self::OnOff => "on-off",
            Self::Noise => "noise",
            Self::Lying => "lying",
            Self::Bursty => "bursty",
            Self::RetryStorm => "retry-storm",
            Self::SlowLeak => "slow-leak",
            Self::Deploy => "deploy",
            Self::SlowStarts => "slow-starts",
            Self::Sawtooth => "sawtooth",
            Self::DoubleHump => "double-hump",
            Self::Own => "own",
        }
    }

    /// How long an instance takes to start on it, in milliseconds.
    pub fn cold_start_ms(self) -> u64 {
        if self == Self::SlowStarts { 15_000 } else { COLD_START_MS }
    }

    /// Whether whoever waits too long asks once more.
    pub fn has_retries(self) -> bool {
        self == Self::RetryStorm
    }

    /// What an instance can do `at_s`, as a share of what it can do at its best.
    fn fitness(self, at_s: f64) -> f64 {
        match self {
            Self::SlowLeak => 1.0 - 0.5 * (at_s / LENGTH_S as f64).clamp(0.0, 1.0),
            Self::Deploy if (200.0..400.0).contains(&at_s) => 0.5,
            _ => 1.0,
        }
    }

    /// The fewest instances that anybody may have on it.
    pub fn min_instances(self) -> u32 {
        if self == Self::OnOff { 0 } else { 1 }
    }

    /// How often the load changes for good, where that can be said.
    pub fn load_changes(self) -> Option<u32> {
        (self == Self::Step).then_some(2)
    }
}

impl Trace {
    /// The traffic of a seed: heights and moments differ by up to a fifth, arrivals are Poisson.
    pub fn new(kind: TraceKind, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(31).wrapping_add(kind as u64));
        let height = 0.8 + 0.4 * rng.f64();
        let shift_s = 40.0 * rng.f64() - 20.0;
        let ticks = LENGTH_S * 1_000 / TICK_MS;
        let mut noise = 1.0;
        let mut loads = Vec::with_capacity(ticks as usize);
        let mut fitness = Vec::with_capacity(ticks as usize);
        for tick in 0..ticks {
            if (tick * TICK_MS).is_multiple_of(1_000) {
                noise = 0.75 + 0.5 * rng.f64();
            }
            let at_s = tick as f64 * TICK_MS as f64 / 1_000.0 - shift_s;
            loads.push(height * load(kind, at_s, noise));
            fitness.push(kind.fitness(at_s));
        }
        if kind == TraceKind::Bursty {
            add_bursts(&mut rng, &mut loads);
        }
        let arrivals =
            loads.iter().map(|load| poisson(&mut rng, load * TICK_MS as f64 / 1_000.0)).collect();
        let first_change =
            changes(kind).map(|(at_s, load)| (((at_s + shift_s) * 1_000.0) as u64, load * height));
        Self { kind, seed, loads, arrivals, fitness, first_change }
    }

    /// Somebody's own traffic: messages a second for each second, with Poisson arrivals by the
    /// seed.
    pub fn own(rates: &[f64], seed: u64) -> Self {
        let ticks_of_second = (1_000 / TICK_MS) as usize;
        let ticks = |rate: &f64| std::iter::repeat_n(*rate, ticks_of_second);
        let loads: Vec<f64> = rates.iter().flat_map(ticks).collect();
        let mut rng = Rng::with_seed(seed);
        let arrivals =
            loads.iter().map(|load| poisson(&mut rng, load * TICK_MS as f64 / 1_000.0)).collect();
        let fitness = vec![1.0; loads.len()];
        Self { kind: TraceKind::Own, seed, loads, arrivals, fitness, first_change: None }
    }

    /// The kind.
    pub fn kind(&self) -> TraceKind {
        self.kind
    }

    /// Messages that come in each tick.
    pub fn arrivals(&self) -> &[u32] {
        &self.arrivals
    }

    /// Messages a second that come on average, for each tick.
    pub fn loads(&self) -> &[f64] {
        &self.loads
    }

    /// What an instance can do, as a share of its best, for each tick.
    pub fn fitness(&self) -> &[f64] {
        &self.fitness
    }

    /// When the load first jumps, in milliseconds, and to how many messages a second.
    pub fn first_change(&self) -> Option<(u64, f64)> {
        self.first_change
    }

    /// Instances that are ready at the beginning: as many as the first load needs, so that nobody
    /// begins in debt.
    pub fn first_instances(&self) -> u32 {
        let needed = self.loads.first().map_or(0.0, |load| (load / (0.7 * SERVICE_RATE)).ceil());
        (needed as u32).max(self.kind.min_instances())
    }

    /// What is wrong with the metrics.
    pub fn lies(&self) -> Lies {
        Lies {
            rng: Rng::with_seed(self.seed ^ 0x11e5),
            lying: self.kind == TraceKind::Lying,
            ..Lies::default()
        }
    }
}

fn load(kind: TraceKind, at_s: f64, noise: f64) -> f64 {
    let within = |from: f64, to: f64| at_s >= from && at_s < to;
    match kind {
        TraceKind::Step => {
            if within(100.0, 350.0) {
                1_000.0
            } else {
                200.0
            }
        }
        TraceKind::Ramp => {
            let up = ((at_s - 60.0) / 240.0).clamp(0.0, 1.0);
            let down = ((at_s - 360.0) / 180.0).clamp(0.0, 1.0);
            100.0 + 1_400.0 * (up - down)
        }
        TraceKind::Sine => 800.0 + 700.0 * (TAU * at_s / 120.0).sin(),
        TraceKind::Spike => {
            if within(120.0, 140.0) || within(400.0, 420.0) {
                1_500.0
            } else {
                50.0
            }
        }
        TraceKind::FlashCrowd => {
            let rising = ((at_s - 120.0) / 5.0).clamp(0.0, 1.0);
            let ebbing = if at_s > 150.0 { (-(at_s - 150.0) / 60.0).exp() } else { 1.0 };
            100.0 + 900.0 * rising * ebbing
        }
        TraceKind::OnOff => {
            if at_s.rem_euclid(100.0) >= 60.0 {
                800.0
            } else {
                0.0
            }
        }
        TraceKind::Noise => 300.0 * noise,
        TraceKind::Lying => {
            if at_s.rem_euclid(150.0) >= 75.0 {
                900.0
            } else {
                300.0
            }
        }
        TraceKind::Bursty => 150.0,
        TraceKind::RetryStorm => {
            if within(120.0, 180.0) || within(360.0, 420.0) {
                1_100.0
            } else {
                400.0
            }
        }
        TraceKind::SlowLeak => 600.0,
        TraceKind::Deploy => 500.0,
        TraceKind::SlowStarts => {
            if within(80.0, 250.0) || within(380.0, 500.0) {
                1_000.0
            } else {
                250.0
            }
        }
        TraceKind::Sawtooth => 100.0 + 900.0 * at_s.rem_euclid(90.0) / 90.0,
        TraceKind::DoubleHump => {
            let hump = |middle_s: f64| (-((at_s - middle_s) / 60.0).powi(2)).exp();
            100.0 + 900.0 * (hump(170.0) + hump(410.0))
        }
        TraceKind::Own => 0.0,
    }
}

/// A burst each quarter of a minute, on average. How high and how long each is has a heavy tail.
fn add_bursts(rng: &mut Rng, loads: &mut [f64]) {
    const EVERY_S: f64 = 15.0;
    let ticks_of = |seconds: f64| (seconds * 1_000.0 / TICK_MS as f64) as usize;
    let mut at_s = 0.0;
    loop {
        at_s += -EVERY_S * (1.0 - rng.f64()).ln();
        let (height, length_s) = (pareto(rng, 1.5, 100.0, 2_000.0), pareto(rng, 1.3, 2.0, 60.0));
        let begin = ticks_of(at_s);
        if begin >= loads.len() {
            return;
        }
        let end = (begin + ticks_of(length_s)).min(loads.len());
        loads[begin..end].iter_mut().for_each(|load| *load += height);
    }
}

/// A number of a Pareto distribution that begins at `least`, cut off at `most`.
fn pareto(rng: &mut Rng, shape: f64, least: f64, most: f64) -> f64 {
    (least * (1.0 - rng.f64()).powf(-1.0 / shape)).min(most)
}

/// When the load first jumps, and to what.
fn changes(kind: TraceKind) -> Option<(f64, f64)> {
    match kind {
        TraceKind::Step => Some((100.0, 1_000.0)),
        TraceKind::Spike => Some((120.0, 1_500.0)),
        TraceKind::FlashCrowd => Some((120.0, 1_000.0)),
        TraceKind::RetryStorm => Some((120.0, 1_100.0)),
        TraceKind::SlowStarts => Some((80.0, 1_000.0)),
        _ => None,
    }
}

fn poisson(rng: &mut Rng, mean: f64) -> u32 {
    if mean > 30.0 {
        // Close enough to Poisson there, and quick.
        let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (TAU * rng.f64()).cos();
        return (mean + mean.sqrt() * normal).round().max(0.0) as u32;
    }
    let limit = (-mean).exp();
    let (mut count, mut product) = (0, rng.f64());
    while product > limit {
        count += 1;
        product *= rng.f64();
    }
    count
}

/// Metrics as an autoscaler gets them.
#[derive(Clone, Debug, Default)]
pub struct Lies {
    rng: Rng,
    lying: bool,
    kind: Option<Lie>,
    until_ms: u64,
    /// The last true look, which a stale one repeats.
    last: Option<Sample>,
    /// What had come and was finished when the counters began anew.
    begun_at: Option<Sample>,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
enum Lie {
    Missing,
    Stale,
    /// A follower that lags says that nothing waits.
    NothingWaits,
    Restarted,
}

impl Lies {
    /// What the autoscaler sees of the truth.
    pub fn tell(&mut self, now_ms: u64, truth: Sample) -> Result<Sample, Fault> {
        if !self.lying {
            return Ok(truth);
        }
        if now_ms >= self.until_ms {
            self.next_lie(now_ms, &truth);
        }
        let told = match self.kind {
            Some(Lie::Missing) => return Err(Fault::Missing("no answer".to_owned())),
            Some(Lie::Stale) => self.last.clone().unwrap_or(truth),
            Some(Lie::NothingWaits) => {
                let waiting = truth.waiting.unwrap_or(0);
                Sample { arrived: truth.arrived - waiting, waiting: Some(0), ..truth }
            }
            Some(Lie::Restarted) | None => {
                self.last = Some(truth.clone());
                truth
            }
        };
        Ok(self.since_restart(told))
    }

    /// Half of the time all is well; a lie lasts 3 to 15 s.
    fn next_lie(&mut self, now_ms: u64, truth: &Sample) {
        self.kind = match self.rng.u32(0..8) {
            0 => Some(Lie::Missing),
            1 => Some(Lie::Stale),
            2 => Some(Lie::NothingWaits),
            3 => {
                self.begun_at = Some(truth.clone());
                self.generation += 1;
                Some(Lie::Restarted)
            }
            _ => None,
        };
        self.until_ms = now_ms + self.rng.u64(3_000..15_000);
    }

    fn since_restart(&self, told: Sample) -> Sample {
        let Some(begun_at) = &self.begun_at else { return told };
        Sample {
            source: format!("{} {}", told.source, self.generation),
            arrived: told.arrived.saturating_sub(begun_at.completed),
            completed: told.completed.saturating_sub(begun_at.completed),
            ..told
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_traffic_and_another_seed_other_traffic() {
        for kind in TraceKind::ALL {
            let (one, same, other) =
                (Trace::new(kind, 1), Trace::new(kind, 1), Trace::new(kind, 2));
            assert_eq!(one.arrivals(), same.arrivals());
            assert_ne!(one.arrivals(), other.arrivals(), "{kind:?}");
        }
    }

    #[test]
    fn as_many_come_as_the_load_says() {
        for kind in TraceKind::ALL {
            let trace = Trace::new(kind, 7);
            let came: f64 = trace.arrivals().iter().copied().map(f64::from).sum();
            let meant: f64 = trace.loads().iter().sum::<f64>() * TICK_MS as f64 / 1_000.0;
            assert!((came / meant - 1.0).abs() < 0.02, "{kind:?}: {came} of {meant}");
        }
    }

    #[test]
    fn every_lie_is_told() {
        let (mut missing, mut nothing, mut restarted) = (0, 0, 0);
        let mut lies = Trace::new(TraceKind::Lying, 3).lies();
        for second in 0..10_000 {
            let truth = Sample {
                at_ms: second * 1_000,
                arrived: second * 9 + 5,
                completed: second * 9,
                ..Sample::default()
            };
            let truth = Sample { waiting: Some(5), ..truth };
            match lies.tell(second * 1_000, truth) {
                Err(_) => missing += 1,
                Ok(told) if told.waiting == Some(0) => nothing += 1,
                Ok(told) if !told.source.is_empty() => restarted += 1,
                Ok(_) => {}
            }
        }
        assert!(missing > 100 && nothing > 100 && restarted > 100);
    }
}
