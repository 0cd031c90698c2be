//! Measures the path of a request, beside what people would use instead, in one run on one machine.
//!
//! Each round starts every contender afresh, warms it up, loads it, and takes it down, one after the other and in
//! another order than the round before: what disturbs the machine for a minute disturbs all alike, and ratios are
//! taken within a round. A run during which others used the processors is dropped, counted, and made again.

pub mod contender;
pub mod direct;
pub mod load;
pub mod peers;
pub mod processes;
pub mod report;
pub mod sample;
pub mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::builder::FalseyValueParser;
use natsway_testkit::repository_root;

use self::contender::{Contender, Running};
use self::load::{Load, Tool};
use self::report::Report;
use self::sample::Sample;

/// How much is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// The short form, under three minutes: fewer contenders, two rounds, one tool
    #[arg(long, env = "QUICK", value_parser = FalseyValueParser::new())]
    quick: bool,

    /// Rounds [default: 5, quick 2]
    #[arg(long, value_name = "COUNT")]
    rounds: Option<u32>,

    /// Seconds that a run lasts [default: 5, quick 3]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,

    /// Connections of the load, several with commas between
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "64,255")]
    connections: Vec<u32>,

    /// Tools of the load, several with commas between [default: all that are installed, quick the first of wrk, oha]
    #[arg(long, value_name = "TOOLS", value_delimiter = ',')]
    tools: Vec<Tool>,

    /// Measure only contenders whose name holds one of these, and `direct`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// Part of the machine that others may use during a run before it is dropped
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    tolerance: f64,

    /// How often a dropped run is made again [default: 3, quick 1]
    #[arg(long, value_name = "COUNT")]
    repeats: Option<u32>,

    /// Seconds to wait for others to be done before a run begins regardless [default: 60, quick 2]
    #[arg(long, value_name = "SECONDS")]
    patience: Option<u64>,

    /// Where the table goes [default: bench/RESULTS.md, quick only beside the raw data]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl RunArgs {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(if self.quick { 3 } else { 5 }).max(1))
    }

    fn repeats(&self) -> u32 {
        self.repeats.unwrap_or(if self.quick { 1 } else { 3 })
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience.unwrap_or(if self.quick { 2 } else { 60 }))
    }

    /// The tools to use: those asked for, or those that are there.
    fn loads(&self) -> anyhow::Result<Vec<Load>> {
        if !self.tools.is_empty() {
            return self.tools.iter().map(|tool| Load::find(*tool)).collect();
        }
        let mut found: Vec<Load> = Tool::ALL.into_iter().filter_map(|tool| Load::find(tool).ok()).collect();
        ensure!(
            !found.is_empty(),
            "no load tool is installed: `make tools` installs oha, the package wrk has wrk"
        );
        if self.quick {
            found.truncate(1);
        }
        Ok(found)
    }

    fn contenders(&self) -> anyhow::Result<Vec<Contender>> {
        let mut all = contender::all(self.quick);
        all.retain(|contender| {
            let named = self.only.iter().any(|name| contender.name.contains(name.as_str()));
            self.only.is_empty() || named || contender.name == contender::BASELINE
        });
        // Built or found before the first measurement, so that no compiler runs during one.
        all.retain(|contender| match contender.prepare() {
            Ok(()) => true,
            Err(reason) => {
                eprintln!("bench: without {}: {reason:#}", contender.name);
                false
            }
        });
        ensure!(!all.is_empty(), "nothing is left to measure");
        Ok(all)
    }
}

/// Measures, writes the raw data and the table, and prints the table.
///
/// # Errors
/// A load tool is missing, or a contender does not start or answers wrongly.
pub async fn run(args: &RunArgs) -> anyhow::Result<()> {
    let loads = args.loads()?;
    let contenders = args.contenders()?;
    let directory = raw_directory()?;
    crate::autoscalers::write(&[&directory])?;
    if !args.quick {
        crate::autoscalers::publish()?;
    }
    let schedule = Schedule { args, loads: &loads, directory: &directory };
    let mut samples = Vec::new();
    let cells = contenders.len() * loads.len() * args.connections.len();
    eprintln!("{} contenders, raw data in {}", contenders.len(), directory.display());
    for round in 0..args.rounds() {
        let first = round as usize * 3 % contenders.len();
        let order = contenders[first..].iter().chain(&contenders[..first]);
        for contender in order {
            eprintln!("round {} of {}: {}", round + 1, args.rounds(), contender.title);
            samples.extend(schedule.measure(contender, round).await?);
            // After each, so that a run that is broken off leaves what it has.
            write(&directory.join("samples.json"), &serde_json::to_string_pretty(&samples)?)?;
        }
    }
    let dropped = samples.iter().filter(|sample| sample.disturbed).count();
    eprintln!("{} runs for {cells} cells, {dropped} dropped", samples.len());
    let report = Report::new(&contenders, &loads, &args.connections, args.duration(), &samples);
    let table = report.markdown();
    write(&directory.join("RESULTS.md"), &table)?;
    if let Some(output) =
        args.output.clone().or((!args.quick).then(|| repository_root().join("bench/RESULTS.md")))
    {
        write(&output, &table)?;
    }
    print!("{table}");
    Ok(())
}

/// What is the same for all runs.
struct Schedule<'a> {
    args: &'a RunArgs,
    loads: &'a [Load],
    directory: &'a Path,
}

impl Schedule<'_> {
    /// Starts a contender, measures it with every tool at every number of connections, and takes it down.
    async fn measure(&self, contender: &Contender, round: u32) -> anyhow::Result<Vec<Sample>> {
        let running = contender.start(self.directory).await.with_context(|| contender.name.to_owned())?;
        let mut samples = Vec::new();
        self.warm_up(&running).await?;
        for load in self.loads {
            for &connections in &self.args.connections {
                samples.extend(self.until_undisturbed(contender, &running, load, connections, round).await?);
            }
        }
        running.stop().await;
        Ok(samples)
    }

    async fn warm_up(&self, running: &Running) -> anyhow::Result<()> {
        self.loads[0].run(running.port, 64, Duration::from_secs(1), self.directory).await.map(drop)
    }

    /// Runs of one cell: the last is good, unless none was.
    async fn until_undisturbed(
        &self,
        contender: &Contender,
        running: &Running,
        load: &Load,
        connections: u32,
        round: u32,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for _ in 0..=self.args.repeats() {
            processes::quiet(self.args.tolerance, self.args.patience()).await?;
            let duration = self.args.duration();
            let mut sample = sample::take(running, load, connections, duration, self.directory).await?;
            sample.contender = contender.name.to_owned();
            sample.round = round;
            sample.disturbed = sample.machine.foreign + sample.machine.steal > self.args.tolerance;
            eprintln!("  {}", sample.line());
            let good = !sample.disturbed;
            samples.push(sample);
            if good {
                break;
            }
        }
        Ok(samples)
    }
}

/// A new directory below `target/bench`, named by the time.
fn raw_directory() -> anyhow::Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let directory = repository_root().join("target/bench").join(seconds.to_string());
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
