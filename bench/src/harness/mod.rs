//! Runs scenarios: starts every process, loads it, measures, takes it down, again and again in turn.
//!
//! Each round of a scenario starts every contender afresh, warms it up, loads it, and takes it down, one after the other and in
//! another order than the round before: what disturbs the machine for a minute disturbs all alike, and ratios are
//! taken within a round. A run during which others used the processors is dropped, counted, and made again.

pub mod idle;
pub mod load;
pub mod meter;
pub mod parts;
pub mod peers;
pub mod pin;
pub mod plan;
pub mod probe;
pub mod stage;
pub mod surroundings;
pub mod witness;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use indicatif::{ProgressBar, ProgressStyle};
use natsway_testkit::repository_root;

use self::load::{Amount, Generators, Outcome, Target};
use self::meter::Meter;
use self::plan::{Plan, Settings};
use self::probe::{Question, ask};
use self::stage::Stage;
use self::witness::Witness;
use crate::results::{Results, SCHEMA, Sample, Skipped};
use crate::scenario::{Contender, Load, Scenario};

/// What is measured beside the scenarios.
pub use self::parts::Part;

/// How long idle connections are held when runs are as long as their requests take.
const IDLE: Duration = Duration::from_secs(2);

/// Open files that thousands of connections need, at both of their ends in one process.
const OPEN_FILES: u64 = 65_536;

/// A whole run.
#[derive(Debug)]
pub struct Run {
    settings: Settings,
    generators: Generators,
    directory: PathBuf,
    progress: ProgressBar,
    results: Results,
}

impl Run {
    /// Finds and builds everything that the scenarios need, and leaves out what cannot be had.
    ///
    /// # Errors
    /// No load generator is installed, or nothing is left to measure.
    pub fn prepare(scenarios: Vec<Scenario>, settings: Settings) -> anyhow::Result<Run> {
        surroundings::allow_open_files(OPEN_FILES);
        let generators = Generators::find()?;
        let mut skipped = Vec::new();
        let scenarios = without_missing(scenarios, &generators, settings.amount(None), &mut skipped);
        for Skipped { what, why } in &skipped {
            eprintln!("bench: without {what}: {why}");
        }
        ensure!(!scenarios.is_empty() || !settings.parts.is_empty(), "nothing is left to measure");
        let directory = new_directory()?;
        let results = Results {
            schema: SCHEMA,
            began: surroundings::now(),
            took_s: 0.0,
            quick: settings.quick,
            machine: surroundings::machine(),
            processors: surroundings::processors(),
            versions: surroundings::versions(&scenarios, &generators),
            scenarios,
            skipped,
            failed: Vec::new(),
            samples: Vec::new(),
            instructions: Default::default(),
            parts: Default::default(),
        };
        Ok(Run { settings, generators, directory, progress: ProgressBar::hidden(), results })
    }

    /// Where the raw data goes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Measures everything. What is there already is on disk after each contender, so that a run that is broken off leaves what it has.
    ///
    /// # Errors
    /// A contender does not start or answers wrongly before the load begins, or a file cannot be written.
    pub async fn measure(mut self) -> anyhow::Result<Results> {
        let begun = Instant::now();
        let plan = Plan::of(&self.results.scenarios, &self.settings);
        eprintln!("bench: {plan}; raw data in {}", self.directory.display());
        self.progress = progress_bar(plan.duration());
        let scenarios = self.results.scenarios.clone();
        for scenario in &scenarios {
            for round in 0..self.settings.rounds(scenario) {
                for contender in in_turn(&scenario.contenders, round) {
                    self.turn(scenario, contender, round).await?;
                }
            }
        }
        for part in self.settings.parts.clone() {
            self.progress.set_message(part.name());
            let before = begun.elapsed();
            match part.measure(self.settings.quick).await {
                Ok(figures) => part.keep(figures, &mut self.results),
                Err(error) => {
                    let skipped = Skipped { what: part.name().to_owned(), why: format!("{error:#}") };
                    self.say(&format!("without {}: {}", skipped.what, skipped.why));
                    self.results.skipped.push(skipped);
                }
            }
            self.say(&format!("{} took {:.0} s", part.name(), (begun.elapsed() - before).as_secs_f64()));
            self.save()?;
        }
        self.progress.finish_and_clear();
        self.results.took_s = begun.elapsed().as_secs_f64();
        self.save()?;
        Ok(self.results)
    }

    /// A contender's part of a round. One that fails is told of and left out from then on: the others' figures are worth having.
    async fn turn(&mut self, scenario: &Scenario, contender: &Contender, round: u32) -> anyhow::Result<()> {
        let name = format!("{}/{}", scenario.name, contender.name);
        if self.results.failed.iter().any(|failed| failed.what == name) {
            return Ok(());
        }
        self.progress.set_message(format!("{name}, round {}", round + 1));
        // The test kit panics when something does not start.
        let samples = AssertUnwindSafe(self.contender(scenario, contender, round)).catch_unwind().await;
        match samples.unwrap_or_else(|panic| Err(anyhow::anyhow!("{}", panic_text(&*panic)))) {
            Ok(samples) => self.results.samples.extend(samples),
            Err(error) => {
                let failed = Skipped { what: name, why: format!("{error:#}") };
                self.say(&format!("{} FAILED: {}", failed.what, failed.why));
                self.results.failed.push(failed);
            }
        }
        self.save()
    }

    fn save(&self) -> anyhow::Result<()> {
        self.results.save(&self.directory.join("results.json"))
    }

    fn say(&self, text: &str) {
        if self.progress.is_hidden() { eprintln!("{text}") } else { self.progress.println(text) }
    }

    /// Starts a contender, measures it under every load, and takes it down.
    async fn contender(
        &self,
        scenario: &Scenario,
        contender: &Contender,
        round: u32,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut samples = Vec::new();
        let stage = Stage::start(contender, &self.directory).await?;
        let mut loads = scenario.loads_of(contender).peekable();
        if let Some(first) = loads.peek().filter(|load| !load.idle) {
            let warm_up = Load { rate: None, tool: None, ..(*first).clone() };
            let generator = self.generators.for_load(&warm_up, Amount::For(Duration::ZERO))?;
            let amount = Amount::For(self.settings.warm_up);
            let prefixes = [String::new()];
            let processors = &contender.cpus.load;
            let target = Target { port: stage.port, prefixes: &prefixes, processors };
            generator.run(&warm_up, target, amount, &self.directory).await?;
            self.progress.inc(self.settings.warm_up.as_millis() as u64);
        }
        for load in loads {
            let new = self.until_undisturbed(scenario, contender, &stage, load, round).await;
            samples.extend(new.with_context(|| load.name.clone())?);
        }
        stage.stop();
        self.progress.inc(plan::START.as_millis() as u64);
        Ok(samples)
    }

    /// Runs of one cell: the last is good, unless none was.
    async fn until_undisturbed(
        &self,
        scenario: &Scenario,
        contender: &Contender,
        stage: &Stage,
        load: &Load,
        round: u32,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for _ in 0..=self.settings.repeats {
            meter::quiet(self.settings.tolerance, self.settings.patience).await?;
            let begun = Instant::now();
            let mut sample = self.one(scenario, contender, stage, load).await?;
            sample.round = round;
            sample.disturbed = sample.machine.foreign + sample.machine.steal > self.settings.tolerance;
            self.say(&line(&sample));
            if samples.is_empty() {
                self.progress.inc(begun.elapsed().as_millis() as u64);
            }
            let good = !sample.disturbed;
            samples.push(sample);
            if good {
                break;
            }
        }
        Ok(samples)
    }

    /// One run. The answer is compared byte for byte before it, ten times a second during it, and after it.
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
        if load.idle {
            let held = idle::open(stage.port, load.connections).await?;
            meter = Meter::start(stage.watched())?;
            let duration = match amount {
                Amount::For(duration) => duration,
                Amount::Requests(_) => IDLE,
            };
            tokio::time::sleep(duration).await;
            outcome = Outcome { requests: 0, elapsed: duration, errors: 0, latency_ms: Default::default() };
            (tool, wrong) = ("idle connections".to_owned(), 0);
            drop(held);
        } else {
            let generator = self.generators.for_load(load, amount)?;
            let prefixes: Vec<String> =
                (0..contender.arrangement.services()).map(stage::service_prefix).collect();
            let processors = &contender.cpus.load;
            let target = Target { port: stage.port, prefixes: &prefixes, processors };
            meter = Meter::start(stage.watched())?;
            let witness = Witness::start(question.clone());
            outcome = generator.run(load, target, amount, &self.directory).await?;
            (tool, wrong) = (generator.label(), witness.stop());
        }
        let (processes, machine) = meter.stop(outcome.requests)?;
        let wrong = wrong + u64::from(ask(&question).await.is_err());
        Ok(Sample {
            scenario: scenario.name.clone(),
            contender: contender.name.clone(),
            load: load.name.clone(),
            tool,
            round: 0,
            requests: outcome.requests,
            errors: outcome.errors + wrong,
            seconds: outcome.elapsed.as_secs_f64(),
            per_second: outcome.requests as f64 / outcome.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            latency_ms: outcome.latency_ms,
            processes,
            machine,
            disturbed: false,
        })
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
    // A backtrace may follow.
    text.lines().next().unwrap_or_default()
}

/// Another order in each round: what comes after a heavy neighbour does not always do so.
fn in_turn(contenders: &[Contender], round: u32) -> impl Iterator<Item = &Contender> {
    let first = round as usize * 3 % contenders.len().max(1);
    contenders[first..].iter().chain(&contenders[..first])
}

/// Takes out contenders that cannot be started and loads that nobody here can make, with the reasons.
fn without_missing(
    scenarios: Vec<Scenario>,
    generators: &Generators,
    amount: Amount,
    skipped: &mut Vec<Skipped>,
) -> Vec<Scenario> {
    let mut kept = Vec::new();
    for mut scenario in scenarios {
        let name = scenario.name.clone();
        let mut may = |what: &str, ready: anyhow::Result<()>| match ready {
            Ok(()) => true,
            Err(error) => {
                skipped.push(Skipped { what: format!("{name}/{what}"), why: format!("{error:#}") });
                false
            }
        };
        scenario.loads.retain(|load| may(&load.name, generators.for_load(load, amount).map(drop)));
        scenario.contenders.retain(|contender| may(&contender.name, stage::prepare(contender)));
        let cells = scenario.contenders.iter().flat_map(|contender| scenario.loads_of(contender)).count();
        if cells > 0 {
            kept.push(scenario);
        }
    }
    kept
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
        "{:<34} {:8.0}/s  p50 {:.2} p99 {:.2} ms  µs: {}  errors {}  idle {:.0} % foreign {:.1} %{}",
        crate::results::Cell::of(sample).to_string(),
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

fn progress_bar(expected: Duration) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:32} {percent:>3} %  {elapsed} gone, about {eta} left  {msg}");
    let bar = ProgressBar::new(expected.as_millis() as u64);
    bar.set_style(style.expect("the template is sound"));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// A new directory below `target/bench`, named by the time.
fn new_directory() -> anyhow::Result<PathBuf> {
    let directory = repository_root().join("target/bench").join(surroundings::now().replace(':', "-"));
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}
