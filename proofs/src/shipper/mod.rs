//! What is promised of the log shipper: chaos from files to files, judged line by line.

pub mod chaos;
mod field;
pub mod hosts;
pub mod judge;
mod mount;

use std::path::Path;
use std::time::Duration;

use natsway_testkit::workspace_binary;

use self::chaos::Plan;
use self::judge::OutputReport;
use super::scenario::{Scenario, run, scenario};
use super::{Finding, Report};

/// How large the proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of everything random, to make a run's plan again [default: random]
    #[arg(long, env = "SEED", default_value_t = fastrand::u64(..), hide_default_value = true)]
    pub seed: u64,

    /// How long hosts write and things break, in seconds
    #[arg(long, env = "RUN_SECONDS", default_value = "600")]
    pub run_seconds: u64,

    /// Faults to make in that time
    #[arg(long, env = "FAULTS", default_value = "120")]
    pub faults: u32,

    /// Hosts that write, with a producer each
    #[arg(long, env = "HOSTS", default_value = "20")]
    pub hosts: usize,

    /// Lines that all hosts write together
    #[arg(long, env = "LINES", default_value = "5000000")]
    pub lines: u64,

    /// Whether the consumers with lists of partitions read the same ones, and so overtake each
    /// other all the time
    #[arg(long, env = "LISTED", value_enum, default_value = "apart")]
    pub listed: Listed,

    /// What all consumers are given as SHIPPER_ROTATE, say 1m [default: they rotate by size alone]
    #[arg(long, env = "SHIPPER_ROTATE", value_name = "INTERVAL")]
    pub rotate: Option<String>,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

/// How partitions are shared out to the consumers that have lists of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Listed {
    /// Each partition is on one list
    Apart,
    /// Each partition is on all lists
    Overlapping,
}

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 1] = [scenario!(
    files_to_files,
    "programs die, freeze and rotate, a disk is full: every line arrives once, in order"
)];

/// Makes the chaos, and judges it.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    run("shipper", (size.seed, &size.only), size, &SCENARIOS).await
}

async fn files_to_files(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let plan = Plan {
        seed: size.seed,
        duration: Duration::from_secs(size.run_seconds),
        faults: size.faults,
        hosts: size.hosts,
        lines: size.lines,
        overlapping: size.listed == Listed::Overlapping,
        rotate: size.rotate.clone(),
        producer: workspace_binary("producer"),
        consumer: workspace_binary("consumer"),
        directory: directory.to_owned(),
    };
    let outcome = chaos::run(plan).await?;
    std::fs::write(directory.join("outcome.json"), serde_json::to_string(&outcome)?)?;
    finding.figures_of(&outcome)?;
    for (cluster, verdict) in [("shared", &outcome.shared), ("listed", &outcome.listed)] {
        let OutputReport { missing, repeated, out_of_order, torn, examples, .. } = verdict;
        finding.promise(verdict.is_clean(), || {
            let first = examples.first().map_or("", String::as_str);
            format!(
                "{cluster}: {missing} missing, {repeated} repeated, {out_of_order} out of \
                     order, {torn} torn: {first}"
            )
        });
    }
    Ok(())
}
