//! A contender's part of a round: started, warmed up, loaded in every way, taken down.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::load::{LoadRun, LoadTarget};
use super::meter::{self, Meter};
use super::question::{Question, ask};
use super::stage::{self, Stage};
use super::witness::Witness;
use super::{Run, idle, plan};
use crate::results::{Cell, Sample};
use crate::scenario::{Contender, Load, Scenario};
use crate::settings::Amount;

/// How long idle connections are held when runs are as long as their requests take.
const IDLE: Duration = Duration::from_secs(2);

impl Run {
    /// Starts a contender, measures it under every load that it has not met in this round, and
    /// takes it down. A baseline that alternates with it is left up for the next one.
    pub(super) async fn contender(
        &mut self,
        scenario: &Scenario,
        contender: &Contender,
        round: u32,
        beside: &mut Option<Stage>,
    ) -> anyhow::Result<()> {
        let loads = self.loads_left(scenario, contender, round);
        let baseline = scenario.beside(contender);
        if let Some(baseline) = baseline.filter(|_| beside.is_none()) {
            *beside = Some(self.warm(baseline, loads.first(), "baseline").await?);
        }
        let mut stage = self.warm(contender, loads.first(), "contender").await?;
        for load in &loads {
            if let Some((baseline, beside)) = baseline.zip(beside.as_ref()) {
                let new = self.until_undisturbed(scenario, baseline, beside, load, round).await;
                let new = new.with_context(|| format!("{} before {}", baseline.name, load.name))?;
                let of_contender = |run| Sample { beside: Some(contender.name.clone()), ..run };
                self.results.samples.extend(new.into_iter().map(of_contender));
            }
            let new = self.until_undisturbed(scenario, contender, &stage, load, round).await;
            let new = new.map_err(|error| match stage.ended() {
                Some(ended) => error.context(ended),
                None => error,
            });
            self.results.samples.extend(new.with_context(|| load.name.clone())?);
        }
        stage.stop();
        Ok(())
    }

    /// Starts a contender, with its files in a directory of its own, and has it answer for a while.
    async fn warm(
        &self,
        contender: &Contender,
        first: Option<&Load>,
        files: &str,
    ) -> anyhow::Result<Stage> {
        let directory = self.directory.join(files);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let stage = Stage::start(contender, &directory).await?;
        if let Some(first) = first.filter(|load| !load.idle) {
            let warm_up = Load { rate: None, tool: None, ..first.clone() };
            let generator = self.generators.for_load(&warm_up, Amount::For(Duration::ZERO))?;
            let amount = Amount::For(self.settings.warm_up);
            let prefixes = [String::new()];
            let processors = &contender.cpus.load;
            let target = LoadTarget { port: stage.port, prefixes: &prefixes, processors };
            generator.run(&warm_up, target, amount, &self.directory).await?;
        }
        self.progress.inc((plan::START + self.settings.warm_up).as_millis() as u64);
        Ok(stage)
    }

    /// The loads that a contender has not met in a round.
    pub(super) fn loads_left(
        &self,
        scenario: &Scenario,
        contender: &Contender,
        round: u32,
    ) -> Vec<Load> {
        let is_left = |load: &&Load| !self.results.has(Cell::at(scenario, contender, load), round);
        scenario.loads_of(contender).filter(is_left).cloned().collect()
    }

    /// Runs of one cell: the last is good, unless none was. Waiting and repeating end when the time
    /// for them is used up.
    async fn until_undisturbed(
        &self,
        scenario: &Scenario,
        contender: &Contender,
        stage: &Stage,
        load: &Load,
        round: u32,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for attempt in 0..=self.settings.repeats {
            if attempt > 0 && self.extra.get().is_zero() {
                break;
            }
            let patience = self.settings.patience.min(self.extra.get());
            self.spend(meter::quiet(self.settings.tolerance, patience).await?);
            let begun = Instant::now();
            let mut sample = self.one(scenario, contender, stage, load).await?;
            sample.round = round;
            sample.disturbed =
                sample.machine.foreign + sample.machine.steal > self.settings.tolerance;
            self.say(&line(&sample));
            if attempt == 0 {
                self.progress.inc(begun.elapsed().as_millis() as u64);
            } else {
                self.spend(begun.elapsed());
            }
            let good = !sample.disturbed;
            samples.push(sample);
            if good {
                break;
            }
        }
        Ok(samples)
    }

    /// One run. The answer is compared byte for byte before it, ten times a second during it, and
    /// after it.
    async fn one(
        &self,
        scenario: &Scenario,
        contender: &Contender,
        stage: &Stage,
        load: &Load,
    ) -> anyhow::Result<Sample> {
        let question = Question::new(stage.port, load);
        ask(&question).await?;
        let amount = self.settings.amount(Some(scenario));
        let (outcome, tool, wrong, meter);
        // Until the figures are taken: what closing connections costs is no part of holding them.
        let mut held = Vec::new();
        if load.idle {
            held = idle::open(stage.port, load.connections).await?;
            meter = Meter::start(stage.watched())?;
            let duration = match amount {
                Amount::For(duration) => duration,
                Amount::Requests(_) => IDLE,
            };
            tokio::time::sleep(duration).await;
            outcome = LoadRun {
                requests: 0,
                elapsed: duration,
                errors: 0,
                latency_ms: Default::default(),
            };
            (tool, wrong) = ("idle connections".to_owned(), 0);
        } else {
            let generator = self.generators.for_load(load, amount)?;
            let prefixes: Vec<String> =
                (0..contender.arrangement.services()).map(stage::service_prefix).collect();
            let processors = &contender.cpus.load;
            let target = LoadTarget { port: stage.port, prefixes: &prefixes, processors };
            meter = Meter::start(stage.watched())?;
            let witness = Witness::start(question.clone());
            outcome = generator.run(load, target, amount, &self.directory).await?;
            (tool, wrong) = (generator.label(), witness.stop());
        }
        let (processes, machine) = meter.stop(outcome.requests)?;
        drop(held);
        let wrong = wrong + u64::from(ask(&question).await.is_err());
        Ok(Sample {
            scenario: scenario.name.clone(),
            contender: contender.name.clone(),
            load: load.name.clone(),
            tool,
            round: 0,
            beside: None,
            requests: outcome.requests,
            errors: outcome.errors + wrong,
            seconds: outcome.elapsed.as_secs_f64(),
            per_second: outcome.requests as f64
                / outcome.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            latency_ms: outcome.latency_ms,
            processes,
            machine,
            disturbed: false,
        })
    }

    /// Takes from the time for waiting and repeating.
    fn spend(&self, time: Duration) {
        self.extra.set(self.extra.get().saturating_sub(time));
    }
}

fn line(sample: &Sample) -> String {
    let latency = |name: &str| sample.latency(name).unwrap_or_default();
    let cpu: Vec<String> = sample
        .processes
        .iter()
        .filter(|process| process.cpu_us >= 0.05)
        .take(6)
        .map(|process| format!("{} {:.1}", process.name, process.cpu_us))
        .collect();
    format!(
        "{:<34} {:8.0}/s  p50 {:.2} p99 {:.2} ms  µs: {}  errors {}  idle {:.0} % foreign {:.1} \
         %{}",
        Cell::of(sample).to_string(),
        sample.per_second,
        latency("p50"),
        latency("p99"),
        cpu.join(", "),
        sample.errors,
        sample.machine.idle * 100.0,
        (sample.machine.foreign + sample.machine.steal) * 100.0,
        if sample.disturbed { "  DROPPED" } else { "" },
    )
}
