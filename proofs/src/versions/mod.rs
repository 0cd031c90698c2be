//! What is promised of versions: switching, rolling out and back, under load and under faults.

mod canaries;
mod drivers;
mod faults;
pub(crate) mod fleet;
mod senders;
mod switches;
pub mod upgrade;

use std::path::Path;

use self::canaries::{fails, hangs, healthy, panics, slow};
use self::drivers::driver_killed;
use self::faults::{bad_documents, frozen_gateway, two_operators};
use self::fleet::{Fleet, Manner};
use self::senders::{cut_off_gateway, cut_off_with_tunnels, direct_callers};
use self::switches::{blue_green, gateway_restarts, propagation};
use super::ledger::Ledger;
use super::load::{Load, Tally};
use super::scenario::{Scenario, run, scenario};
use super::{Finding, Report, Transport};

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

    /// What whole requests go by
    #[arg(long, env = "TRANSPORT", value_enum, default_value = "broker")]
    pub transport: Transport,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 15] = [
    scenario!(
        blue_green,
        "versions switch: no request fails, none reaches a version after its drain"
    ),
    scenario!(
        gateway_restarts,
        "a pair of gateways restarts, one after the other: no request fails"
    ),
    scenario!(
        propagation,
        "a change of a route is in force everywhere within 100 ms at the median"
    ),
    scenario!(fails, "one request in twenty fails: the canary goes back by itself"),
    scenario!(slow, "every request takes three times as long: the canary goes back by itself"),
    scenario!(panics, "every request panics: the canary goes back by itself"),
    scenario!(hangs, "no request is answered: the canary goes back by itself"),
    scenario!(healthy, "as good as the old version: it is promoted, and no request fails"),
    scenario!(
        frozen_gateway,
        "a gateway is frozen during a switch and wakes: it is named, and nothing is lost"
    ),
    scenario!(
        cut_off_gateway,
        "a gateway loses the routes: it is waited for and named, and nothing is lost"
    ),
    scenario!(
        cut_off_with_tunnels,
        "a gateway loses the broker and keeps tunnels: after the drain it uses none of the old"
    ),
    scenario!(
        direct_callers,
        "callers without a gateway follow a switch; one is frozen, and nothing is lost"
    ),
    scenario!(
        driver_killed,
        "whoever drives a canary is killed or frozen: no step is repeated or left out"
    ),
    scenario!(two_operators, "two operators write one route at once: one wins, the other is told"),
    scenario!(
        bad_documents,
        "documents that no gateway may take: each is refused and named, routes serve on"
    ),
];

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    fastrand::seed(size.seed);
    run("versions", (size.seed, &size.only), size, &SCENARIOS).await
}

/// Puts a fleet under load, with a worker of each of these versions.
async fn under_load(
    mut fleet: Fleet,
    size: &Size,
    versions: &[(&'static str, Manner<'_>)],
) -> (Fleet, Load) {
    fleet.transport = size.transport;
    for (version, manner) in versions {
        fleet.add_workers(version, 1, *manner).await;
    }
    let load = Load::start_across(&fleet.ports(), size.connections, size.seed, 0);
    load.reach(1_000).await;
    (fleet, load)
}

/// Ends the load and writes down what all scenarios have in common.
async fn settle(
    finding: &mut Finding,
    fleet: &Fleet,
    load: Load,
    directory: &Path,
) -> anyhow::Result<Tally> {
    let tally = load.stop().await;
    std::fs::write(directory.join("outcomes.csv"), tally.csv())?;
    finding.figure("requests", tally.outcomes.len());
    finding.figure("requests_per_second", tally.rate());
    finding.figure("failed", tally.failed().len());
    finding.figure("slowest_ms", u64::try_from(tally.slowest().as_millis())?);
    finding.figure("by_tunnel", fleet.by_tunnel().await?);
    let repeated = Ledger::read(&fleet.run_logs()?)?.repeated_posts(&tally);
    finding.promise(repeated == 0, || format!("{repeated} POSTs ran more than once"));
    Ok(tally)
}

fn none_failed(finding: &mut Finding, tally: &Tally) {
    finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
}
