//! What is promised of durable routes: every webhook that was answered 202 is in the stream exactly
//! once, whatever happens to the brokers.

mod judge;
mod senders;
mod stage;

use std::path::Path;
use std::time::{Duration, Instant};

use self::judge::judge;
use self::senders::Senders;
use self::stage::Stage;
use super::scenario::{Scenario, run, scenario};
use super::{Finding, Report};

/// How long a broker is away: longer than a stream takes to choose another leader.
const AWAY: Duration = Duration::from_secs(4);

/// How large the proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of which brokers are broken, and how
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// Webhooks to send at the least
    #[arg(long, env = "WEBHOOKS", default_value = "1000000")]
    pub webhooks: u64,

    /// Seconds between two faults
    #[arg(long, env = "FAULT_INTERVAL", default_value = "20")]
    pub fault_interval: u64,

    /// Faults to make at the least
    #[arg(long, env = "FAULTS", default_value = "3")]
    pub faults: usize,

    /// Senders, each with a connection
    #[arg(long, env = "CONNECTIONS", default_value = "64")]
    pub connections: u64,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 1] = [scenario!(
    brokers_broken,
    "one of three brokers after the other is killed or restarted: every 202 is in the stream, once"
)];

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    run("webhooks", (size.seed, &size.only), size, &SCENARIOS).await
}

/// How a broker is broken.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The one that leads the stream, with SIGKILL.
    LeaderKilled,
    /// Any one, with SIGKILL.
    Killed,
    /// Any one, with SIGTERM.
    Restarted,
}

impl Fault {
    const ALL: [Self; 3] = [Self::LeaderKilled, Self::Restarted, Self::Killed];
}

async fn brokers_broken(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut stage = Stage::start(directory).await?;
    let mut choices = fastrand::Rng::with_seed(size.seed);
    let started = Instant::now();
    let senders = Senders::start(stage.port(), size.connections);
    let mut faults = 0;
    while faults < size.faults || senders.sent() < size.webhooks {
        tokio::time::sleep(Duration::from_secs(size.fault_interval)).await;
        let fault = Fault::ALL[faults % Fault::ALL.len()];
        let place = match fault {
            Fault::LeaderKilled => stage.stream_leader().await,
            Fault::Killed | Fault::Restarted => choices.usize(..stage.cluster.len()),
        };
        let (sent, at) = (senders.sent(), started.elapsed().as_secs_f64());
        eprintln!("  {fault:?}: broker {place}, at {at:.1} s, {sent} webhooks");
        match fault {
            Fault::LeaderKilled | Fault::Killed => stage.cluster[place].kill9(),
            Fault::Restarted => stage.cluster[place].stop().await,
        }
        tokio::time::sleep(AWAY).await;
        stage.cluster[place].start_again().await;
        stage.cluster.ready().await;
        faults += 1;
    }
    let told = senders.stop().await;
    let lasted = started.elapsed();
    finding.figure("webhooks", told.len());
    finding.figure("seconds", lasted.as_secs());
    finding.figure("per_second", (told.len() as f64 / lasted.as_secs_f64()).round());
    finding.figure("faults", faults);
    for name in ["published", "publish_duplicates", "publish_repeats"] {
        finding.figure(name, stage.metric(&format!("natsway_{name}_total")).await?);
    }
    let stored = stage.stored().await?;
    let verdict = judge(&told, &stored);
    finding.figures_of(&verdict.figures)?;
    for broken in verdict.broken {
        finding.promise(false, || broken);
    }
    stage.keep_logs()
}
