//! What is promised of versions: switching, rolling out and back, under load and under faults.

mod canaries;
mod drivers;
mod faults;
mod fleet;
mod senders;
mod switches;

use std::path::Path;

use self::fleet::{Fleet, Manner};
use super::ledger::Ledger;
use super::load::{Load, Tally};
use super::{Finding, Report, raw_directory};

/// How large the proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of every random choice
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// Switches between blue and green
    #[arg(long, env = "SWITCHES", default_value = "100")]
    pub switches: usize,

    /// Restarts of a pair of gateways
    #[arg(long, env = "RESTARTS", default_value = "20")]
    pub restarts: usize,

    /// How often what is not a switch or a restart is repeated
    #[arg(long, env = "ROUNDS", default_value = "20")]
    pub rounds: usize,

    /// How long a canary's step is held, in seconds
    #[arg(long, env = "HOLD_SECONDS", default_value = "5")]
    pub hold_seconds: u64,

    /// Connections of the load
    #[arg(long, env = "CONNECTIONS", default_value = "64")]
    pub connections: usize,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "")]
    pub only: String,
}

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    use canaries::{fails, hangs, healthy, panics, slow};
    use drivers::driver_killed;
    use faults::{bad_documents, frozen_gateway, two_operators};
    use senders::{cut_off_gateway, direct_callers};
    use switches::{blue_green, gateway_restarts, propagation};
    fastrand::seed(size.seed);
    let mut scenarios = Vec::new();
    macro_rules! run {
        ($($scenario:ident)*) => {$(
            if stringify!($scenario).contains(&size.only) {
                eprintln!("{} ...", stringify!($scenario));
                let directory = raw_directory(concat!("versions/", stringify!($scenario)))?;
                let mut finding = Finding::new(stringify!($scenario));
                Box::pin($scenario(size, &directory, &mut finding)).await?;
                eprintln!("  {}", serde_json::to_string(&finding)?);
                scenarios.push(finding);
            }
        )*};
    }
    run!(blue_green gateway_restarts propagation);
    run!(fails slow panics hangs healthy);
    run!(frozen_gateway cut_off_gateway direct_callers driver_killed);
    run!(two_operators bad_documents);
    Ok(Report { proof: "versions", seed: size.seed, scenarios })
}

/// Puts a fleet under load, with a worker of each of these versions.
async fn under_load(mut fleet: Fleet, size: &Size, versions: &[(&'static str, Manner)]) -> (Fleet, Load) {
    for (version, manner) in versions {
        fleet.add_workers(version, 1, *manner).await;
    }
    let load = Load::start_across(&fleet.ports(), size.connections, size.seed, 0);
    load.reach(1_000).await;
    (fleet, load)
}

/// Ends the load and writes down what all scenarios have in common.
async fn settle(finding: &mut Finding, fleet: &Fleet, load: Load, directory: &Path) -> anyhow::Result<Tally> {
    let tally = load.stop().await;
    std::fs::write(directory.join("outcomes.csv"), tally.csv())?;
    finding.figure("requests", tally.outcomes.len());
    finding.figure("requests_per_second", tally.rate());
    finding.figure("failed", tally.failed().len());
    finding.figure("slowest_ms", u64::try_from(tally.slowest().as_millis())?);
    let repeated = Ledger::read(&fleet.run_logs()?)?.repeated_posts(&tally);
    finding.promise(repeated == 0, || format!("{repeated} POSTs ran more than once"));
    Ok(tally)
}

fn none_failed(finding: &mut Finding, tally: &Tally) {
    finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
}
