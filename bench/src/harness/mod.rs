//! Runs scenarios: starts every process, loads it, measures, takes it down, again and again in
//! turn.
//!
//! Each round of a scenario starts every contender afresh, warms it up, loads it, and takes it
//! down, one after the other and in another order than the round before. Ratios are taken within a
//! round. A machine that is shared gets slower for seconds at a time without telling (others take
//! its caches), so where ratios matter most the baseline stays up for the round, and a run of it
//! comes before each run of the others. A run during which others used the processors is dropped,
//! counted, and made again.

pub mod idle;
pub mod load;
mod measure;
pub mod meter;
mod parts;
pub mod peers;
pub mod pin;
pub mod plan;
pub mod question;
pub mod stage;
pub mod surroundings;
pub mod witness;

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::FutureExt;
use indicatif::{ProgressBar, ProgressStyle};
use natsway_testkit::repository_root;

use self::load::Generators;
use self::plan::Plan;
use self::stage::Stage;
use crate::results::{Results, SCHEMA, Skipped};
use crate::scenario::{Contender, Scenario};
use crate::settings::{Amount, Part, Settings};

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
    /// What is left of the time for waiting until others are done, and for making disturbed runs
    /// again.
    extra: Cell<Duration>,
}

impl Run {
    /// Finds and builds everything that the scenarios need, and leaves out what cannot be had.
    ///
    /// # Errors
    /// No load generator is installed, or nothing is left to measure.
    pub fn prepare(scenarios: Vec<Scenario>, settings: Settings) -> anyhow::Result<Self> {
        Self::in_directory(new_directory()?, scenarios, settings)
    }

    /// Goes on with a run that was broken off, or in which something failed: what is in
    /// `results.json` of its directory is not measured again.
    ///
    /// # Errors
    /// As for [`prepare`](Run::prepare); or there is no such run, or it was made on another machine
    /// or with other versions.
    pub fn resume(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("results.json");
        let before = Results::load(&path)?;
        let settings = before.settings.clone();
        let settings = settings
            .with_context(|| format!("{} does not say how it was begun", path.display()))?;
        let mut run = Self::in_directory(directory.to_owned(), before.scenarios.clone(), settings)?;
        ensure!(
            before.machine == run.results.machine
                && clean(&before.versions) == clean(&run.results.versions),
            "{} was measured on another machine or with other versions: begin anew",
            path.display()
        );
        run.results = Results { failed: Vec::new(), ..before };
        Ok(run)
    }

    fn in_directory(
        directory: PathBuf,
        scenarios: Vec<Scenario>,
        mut settings: Settings,
    ) -> anyhow::Result<Self> {
        surroundings::allow_open_files(OPEN_FILES);
        let generators = Generators::find()?;
        let mut skipped = Vec::new();
        let scenarios =
            without_missing(scenarios, &generators, settings.amount(None), &mut skipped);
        settings.parts.retain(|part| {
            let missing = part.prepare().err();
            skipped.extend(missing.as_ref().map(|error| Skipped::new(part.name(), error)));
            missing.is_none()
        });
        for Skipped { what, why } in &skipped {
            eprintln!("bench: without {what}: {why}");
        }
        ensure!(!scenarios.is_empty() || !settings.parts.is_empty(), "nothing is left to measure");
        let results = Results {
            schema: SCHEMA,
            began: surroundings::now(),
            took_s: 0.0,
            quick: settings.quick,
            settings: Some(settings.clone()),
            machine: surroundings::machine(),
            processors: surroundings::processors(),
            versions: surroundings::versions(&scenarios, &generators),
            scenarios,
            skipped,
            failed: Vec::new(),
            samples: Vec::new(),
            instructions: Default::default(),
            times: Default::default(),
            parts: Default::default(),
        };
        let progress = ProgressBar::hidden();
        Ok(Self { settings, generators, directory, progress, results, extra: Cell::default() })
    }

    /// Where the raw data goes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether everything is measured, by the usual measure.
    pub fn is_whole(&self) -> bool {
        self.settings.whole
    }

    /// Measures everything. What is there already is on disk after each contender, so that a run
    /// that is broken off leaves what it has and can be [resumed](Run::resume). What fails twice is
    /// told of and left out: the others' figures are worth having.
    ///
    /// # Errors
    /// A file cannot be written.
    pub async fn measure(mut self) -> anyhow::Result<Results> {
        let (begun, before_s) = (Instant::now(), self.results.took_s);
        let plan = Plan::of(&self.results.scenarios, &self.settings);
        eprintln!("bench: {plan}; raw data in {}", self.directory.display());
        self.progress = progress_bar(plan.duration());
        self.extra.set(plan.extra());
        let scenarios = self.results.scenarios.clone();
        for scenario in &scenarios {
            for round in 0..self.settings.rounds(scenario) {
                let mut beside = None;
                for contender in in_turn(&scenario.contenders, round) {
                    self.turn(scenario, contender, round, &mut beside).await;
                    self.results.took_s = before_s + begun.elapsed().as_secs_f64();
                    self.save()?;
                }
                beside.into_iter().for_each(Stage::stop);
            }
        }
        for part in self.settings.parts.clone() {
            let before = begun.elapsed();
            self.part(part).await;
            self.say(&format!(
                "{} took {:.0} s",
                part.name(),
                (begun.elapsed() - before).as_secs_f64()
            ));
            self.results.took_s = before_s + begun.elapsed().as_secs_f64();
            self.save()?;
        }
        self.progress.finish_and_clear();
        Ok(self.results)
    }

    /// A contender's part of a round; the baseline that alternates with it is started when there is
    /// none yet.
    async fn turn(
        &mut self,
        scenario: &Scenario,
        contender: &Contender,
        round: u32,
        beside: &mut Option<Stage>,
    ) {
        let name = format!("{}/{}", scenario.name, contender.name);
        let expected = self.settings.turn(scenario, contender);
        let failed = self.results.failed.iter().any(|failed| failed.what == name);
        let nothing_left = self.loads_left(scenario, contender, round).is_empty();
        if failed || nothing_left || !scenario.has_turns(contender) {
            self.progress.inc(expected.as_millis() as u64);
            return;
        }
        self.progress.set_message(format!("{name}, round {}", round + 1));
        let limit = plan::limit(expected + self.extra.get());
        let mut outcome = guarded(limit, self.contender(scenario, contender, round, beside)).await;
        if let Err(error) = &outcome {
            self.say(&format!("{name} failed, once more: {error:#}"));
            // Whichever of the two it was.
            *beside = None;
            outcome = guarded(limit, self.contender(scenario, contender, round, beside)).await;
        }
        if let Err(error) = outcome {
            *beside = None;
            self.failed(&name, &error);
        }
    }

    /// A part that is measured beside the scenarios.
    async fn part(&mut self, part: Part) {
        let expected = part.expected(self.settings.quick);
        if !part.is_kept(&self.results) {
            self.progress.set_message(part.name());
            let figures = part.measure(self.settings.quick, &self.directory);
            let figures = guarded(plan::limit(expected), figures).await;
            let kept = figures.and_then(|figures| part.keep(figures, &mut self.results));
            if let Err(error) = kept {
                self.failed(part.name(), &error);
            }
        }
        self.progress.inc(expected.as_millis() as u64);
    }

    fn failed(&mut self, what: &str, error: &anyhow::Error) {
        let failed = Skipped::new(what, error);
        self.say(&format!("{} FAILED: {}", failed.what, failed.why));
        self.results.failed.push(failed);
    }

    fn save(&self) -> anyhow::Result<()> {
        self.results.save(&self.directory.join("results.json"))
    }

    fn say(&self, text: &str) {
        if self.progress.is_hidden() { eprintln!("{text}") } else { self.progress.println(text) }
    }
}

/// Versions without the mark of changes in the working tree: a report that was written into it is
/// one.
fn clean(versions: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    versions
        .iter()
        .map(|(name, version)| (name.as_str(), version.trim_end_matches("-dirty")))
        .collect()
}

/// What some work gives, unless it panics, as the test kit does when something does not start, or
/// takes too long.
async fn guarded<T>(
    limit: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(anyhow!("{}", panic_text(&*panic))),
        Err(_) => bail!("not done within {} s", limit.as_secs()),
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

/// Takes out contenders that cannot be started and loads that nobody here can make, with the
/// reasons.
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
                skipped.push(Skipped::new(&format!("{name}/{what}"), &error));
                false
            }
        };
        scenario.loads.retain(|load| may(&load.name, generators.for_load(load, amount).map(drop)));
        scenario.contenders.retain(|contender| may(&contender.name, stage::prepare(contender)));
        let cells =
            scenario.contenders.iter().flat_map(|contender| scenario.loads_of(contender)).count();
        if cells > 0 {
            kept.push(scenario);
        }
    }
    kept
}

fn progress_bar(expected: Duration) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:32} {percent:>3} %  {elapsed} gone, about {eta} left  {msg}",
    );
    let bar = ProgressBar::new(expected.as_millis() as u64);
    bar.set_style(style.expect("the template is sound"));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// A new directory below `target/bench`, named by the time.
fn new_directory() -> anyhow::Result<PathBuf> {
    let directory =
        repository_root().join("target/bench").join(surroundings::now().replace(':', "-"));
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_in_the_working_tree_is_no_other_version() {
        let of = |version: &str| BTreeMap::from([("natsway".to_owned(), version.to_owned())]);
        assert_eq!(clean(&of("4048570-dirty")), clean(&of("4048570")));
        assert_ne!(clean(&of("4048570")), clean(&of("76604d2")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_panics_or_hangs_is_a_failure_like_others() {
        let limit = Duration::from_secs(5);
        let said = async |work: Result<anyhow::Result<()>, &'static str>| {
            let work = async { work.unwrap_or_else(|text| panic!("{text}")) };
            guarded(limit, work).await.map_err(|error| error.to_string())
        };
        assert_eq!(said(Ok(Ok(()))).await, Ok(()));
        assert_eq!(said(Ok(Err(anyhow!("no")))).await, Err("no".to_owned()));
        assert_eq!(said(Err("it did not start")).await, Err("it did not start".to_owned()));
        let hangs = guarded::<()>(limit, std::future::pending()).await;
        assert_eq!(hangs.unwrap_err().to_string(), "not done within 5 s");
    }
}
