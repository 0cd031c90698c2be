//! What the commands that measure do, from their arguments to their exit code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::builder::FalseyValueParser;
use natsway_bench::harness::Run;
use natsway_bench::harness::plan::Plan;
use natsway_bench::instructions::{self, Counts};
use natsway_bench::results::Results;
use natsway_bench::results::compare::{ChangeKind, compare as changes};
use natsway_bench::scenario::Scenario;
use natsway_bench::settings::{Part, Settings};
use natsway_bench::{micro, report};
use natsway_testkit::repository_root;
use tokio::signal::unix::{SignalKind, signal};

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// What is measured, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    what: Selection,

    /// Requests of a run, in place of a time: `--requests 1000000 --only article//c255` is the
    /// article's own size
    #[arg(long, value_name = "COUNT")]
    requests: Option<u64>,

    /// Part of the machine that others may use during a run before it is dropped
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    tolerance: f64,

    /// How often a dropped run is made again [default: 2, quick 0]
    #[arg(long, value_name = "COUNT")]
    repeats: Option<u32>,

    /// Seconds to wait for others to be done before a run begins regardless [default: 20, quick 1]
    #[arg(long, value_name = "SECONDS")]
    patience: Option<u64>,

    /// Where RESULTS.md, report.html, results.json and plots/ go [default: bench/ for a whole run,
    /// else beside the raw data]
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Which run goes on, and where its report goes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// Its directory below target/bench
    directory: PathBuf,

    /// As for `run`
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Which small operations, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MicroArgs {
    /// Part of their names [default: all]
    filter: Option<String>,

    /// Seconds for each
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    seconds: f64,

    /// Where criterion's data goes [default: target/criterion]
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

/// Which scenarios and parts.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Selection {
    /// The short form, under three minutes: fewer contenders and loads, two rounds of one second
    #[arg(long, env = "QUICK", value_parser = FalseyValueParser::new())]
    quick: bool,

    /// Only what begins so: scenario, scenario/contender, or scenario/contender/load; several with
    /// commas between. The baseline of a scenario always stays, and no parts are measured
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// Rounds [default: 3 or the scenario's, quick 2]
    #[arg(long, env = "ITERATIONS", value_name = "COUNT")]
    rounds: Option<u32>,

    /// Seconds that a run lasts [default: 3 or the scenario's, quick 1]
    #[arg(long, env = "SECONDS", value_name = "SECONDS")]
    seconds: Option<f64>,

    /// What is measured beside the scenarios, several with commas between; `none` for nothing
    /// [default: all]
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    parts: Vec<String>,

    /// Where the scenarios are
    #[arg(long, value_name = "DIRECTORY")]
    scenarios: Option<PathBuf>,
}

/// What is shown.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    what: Selection,
}

/// What is compared.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// results.json of before
    old: PathBuf,

    /// results.json of now
    new: PathBuf,

    /// Compare rates as parts of each scenario's baseline: for machines, or days, that differ
    #[arg(long)]
    relative: bool,

    /// Show what stayed the same too
    #[arg(long)]
    all: bool,
}

/// Which report.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// results.json
    results: PathBuf,

    /// Where RESULTS.md, report.html and plots/ go
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    output: PathBuf,

    /// Put the figures into README.md and docs/ too
    #[arg(long)]
    publish: bool,
}

/// `bench run`.
///
/// # Errors
/// A scenario is wrong, no load generator is installed, or a file cannot be written.
pub(crate) async fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let run = Run::prepare(args.what.scenarios()?, args.settings()?)?;
    measure(run, args.output.as_deref()).await
}

/// `bench resume`.
///
/// # Errors
/// As for [`run`]; or there is no such run, or it was made on another machine or with other
/// versions.
pub(crate) async fn resume(args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    measure(Run::resume(&args.directory)?, args.output.as_deref()).await
}

async fn measure(run: Run, output: Option<&Path>) -> anyhow::Result<ExitCode> {
    let (directory, whole) = (run.directory().to_owned(), run.is_whole());
    // From here on a signal ends the run by its handler, so that everything is taken down. Before,
    // the system does, and nothing runs yet.
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let results = tokio::select! {
        results = run.measure() => results?,
        _ = interrupt.recv() => return Ok(broken_off(&directory)),
        _ = terminate.recv() => return Ok(broken_off(&directory)),
    };
    report::write(&results, &directory)?;
    let of_repository = repository_root().join("bench");
    let written = output.or(whole.then_some(&*of_repository));
    if let Some(written) = written {
        report::write(&results, written)?;
        results.save(&written.join("results.json"))?;
        if output.is_none() {
            publish(&results)?;
        }
    }
    Ok(conclude(&results, &directory, written.unwrap_or(&directory)))
}

/// Says what became of it.
fn conclude(results: &Results, directory: &Path, written: &Path) -> ExitCode {
    eprintln!(
        "bench: {} runs, {} dropped, in {:.0} s; see {} and RESULTS.md beside it",
        results.samples.len(),
        results.dropped(),
        results.took_s,
        written.join("report.html").display(),
    );
    let failed: u64 = results.samples.iter().map(|sample| sample.errors).sum();
    if failed > 0 {
        eprintln!("bench: {failed} requests failed");
    }
    for failed in &results.failed {
        eprintln!("bench: {} failed: {}", failed.what, failed.why);
    }
    if results.failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "bench: the report has everything else; {} tries these again",
        resume_command(directory)
    );
    ExitCode::FAILURE
}

fn resume_command(directory: &Path) -> String {
    format!("`make bench RESUME={}`", directory.display())
}

fn broken_off(directory: &Path) -> ExitCode {
    let kept = directory.join("results.json");
    eprintln!(
        "bench: broken off; what was measured is in {}, and {} goes on",
        kept.display(),
        resume_command(directory)
    );
    ExitCode::from(INTERRUPTED)
}

/// `bench list`.
///
/// # Errors
/// A scenario is wrong.
pub(crate) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let scenarios = args.what.scenarios()?;
    let settings = args.what.settings()?;
    for scenario in &scenarios {
        let alone = Settings { parts: Vec::new(), ..settings.clone() };
        let seconds = Plan::of(std::slice::from_ref(scenario), &alone).duration().as_secs();
        println!(
            "{:<22} {}, rounds: {}, {seconds} s",
            scenario.name,
            scenario.title,
            settings.rounds(scenario)
        );
        let loads: Vec<String> = scenario
            .loads
            .iter()
            .map(|load| format!("{} ({})", load.name, load.describe()))
            .collect();
        println!("    loads: {}", loads.join(", "));
        for contender in &scenario.contenders {
            println!("    {:<18} {}", contender.name, contender.title);
        }
    }
    for part in &settings.parts {
        println!("{:<22} {} s", part.name(), part.expected(settings.quick).as_secs());
    }
    println!("{}", Plan::of(&scenarios, &settings));
    Ok(ExitCode::SUCCESS)
}

/// `bench compare`.
///
/// # Errors
/// A file is no results, or they have nothing in common.
pub(crate) fn compare(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let (old, new) = (Results::load(&args.old)?, Results::load(&args.new)?);
    if old.machine != new.machine && !args.relative {
        eprintln!(
            "bench: the machines differ ({} and {}): consider --relative",
            old.machine, new.machine
        );
    }
    let changes = changes(&old, &new, args.relative);
    ensure!(!changes.is_empty(), "the two have no figure in common");
    let of = |verdict: ChangeKind| changes.iter().filter(move |change| change.verdict == verdict);
    for change in changes.iter().filter(|change| args.all || change.verdict != ChangeKind::Same) {
        println!("{change}");
    }
    let (worse, better) = (of(ChangeKind::Worse).count(), of(ChangeKind::Better).count());
    println!(
        "{} figures: {worse} worse, {better} better, the others within the spread",
        changes.len()
    );
    Ok(if worse == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `bench micro`.
pub(crate) fn time(args: &MicroArgs) {
    let directory =
        args.directory.clone().unwrap_or_else(|| repository_root().join("target/criterion"));
    micro::time::run(args.filter.as_deref(), args.seconds, &directory);
}

/// `bench instructions`.
///
/// # Errors
/// Valgrind is not installed, a request is not answered as it should, or the file is no earlier
/// run's output.
pub(crate) async fn count(args: &instructions::Args) -> anyhow::Result<ExitCode> {
    // Before the counting, which takes its time.
    let before = args.against.as_deref().map(Counts::load).transpose()?;
    let counts = instructions::count(args).await?;
    println!("{}", serde_json::to_string(&counts)?);
    let Some(before) = before else { return Ok(ExitCode::SUCCESS) };
    let changes = counts.against(&before, args.bound)?;
    changes.iter().for_each(|change| eprintln!("{change}"));
    let exceeds = changes.iter().any(|change| change.exceeds);
    Ok(if exceeds { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// `bench report`.
///
/// # Errors
/// The file is no results, or a file cannot be written.
pub(crate) fn report(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let results = Results::load(&args.results)?;
    report::write(&results, &args.output)?;
    if args.publish {
        publish(&results)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn publish(results: &Results) -> anyhow::Result<()> {
    for left in report::publish(results, repository_root())? {
        eprintln!("bench: {left}");
    }
    Ok(())
}

impl Selection {
    fn scenarios(&self) -> anyhow::Result<Vec<Scenario>> {
        let directory =
            self.scenarios.clone().unwrap_or_else(|| repository_root().join("bench/scenarios"));
        let all = Scenario::read_all(&directory)?;
        let names: Vec<String> = all.iter().map(|scenario| scenario.name.clone()).collect();
        let selected: Vec<Scenario> =
            all.into_iter().filter_map(|scenario| scenario.only(&self.only)).collect();
        ensure!(
            !selected.is_empty(),
            "--only {}: expected names that begin like one of: {}",
            self.only.join(","),
            names.join(", ")
        );
        // Who names something wants it, whether the short form has it or not.
        if self.quick && self.only.is_empty() {
            return Ok(selected.into_iter().filter_map(Scenario::quick).collect());
        }
        Ok(selected)
    }

    fn parts(&self) -> anyhow::Result<Vec<Part>> {
        if self.parts.is_empty() {
            return Ok(if self.only.is_empty() { Part::ALL.to_vec() } else { Vec::new() });
        }
        let named = self.parts.iter().filter(|name| *name != "none");
        let part = |name: &String| {
            let known = Part::ALL.into_iter().find(|part| part.name() == name);
            let names = Part::ALL.map(Part::name).join(", ");
            known.with_context(|| format!("--parts {name}: expected none, or some of {names}"))
        };
        named.map(part).collect()
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        ensure!(self.rounds != Some(0), "--rounds 0: expected 1 or more");
        ensure!(
            self.seconds.is_none_or(|seconds| seconds > 0.0),
            "--seconds: expected more than 0"
        );
        Ok(Settings {
            quick: self.quick,
            whole: !self.quick && self.only.is_empty() && self.parts.is_empty(),
            rounds: self.rounds,
            seconds: self.seconds,
            requests: None,
            warm_up: Duration::from_secs(1),
            tolerance: 0.05,
            repeats: if self.quick { 0 } else { 2 },
            patience: Duration::from_secs(if self.quick { 1 } else { 20 }),
            parts: self.parts()?,
        })
    }
}

impl RunArgs {
    fn settings(&self) -> anyhow::Result<Settings> {
        let settings = self.what.settings()?;
        ensure!(
            (0.0..=1.0).contains(&self.tolerance),
            "--tolerance {}: expected 0 to 1",
            self.tolerance
        );
        ensure!(self.requests != Some(0), "--requests 0: expected 1 or more");
        Ok(Settings {
            whole: settings.whole && self.requests.is_none(),
            requests: self.requests,
            tolerance: self.tolerance,
            repeats: self.repeats.unwrap_or(settings.repeats),
            patience: self.patience.map_or(settings.patience, Duration::from_secs),
            ..settings
        })
    }
}
