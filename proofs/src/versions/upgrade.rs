//! From the programs of another release to these and back, on a broker without credentials: no
//! request fails.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use natsway_testkit::{Process, TestBroker};

use super::fleet::{Fleet, ROUTE, behind_callers};
use super::{none_failed, settle};
use crate::load::Load;
use crate::scenario::{Scenario, run, scenario};
use crate::stand::DEADLINE;
use crate::{Finding, Report, Transport};

/// How many there are of each program, so that one can be away.
const EACH: usize = 2;

/// What is upgraded, and under which load.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Programs of the release from which is upgraded: a directory with apiproxy and worker
    #[arg(long, env = "OLD_BIN_DIR", value_name = "DIRECTORY")]
    pub old_bin_dir: PathBuf,

    /// Seed of what is chosen by chance: which requests are POSTs
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// Connections of the load
    #[arg(long, env = "CONNECTIONS", default_value = "64")]
    pub connections: usize,

    /// Requests between two steps, at the least
    #[arg(long, env = "REQUESTS", default_value = "2000")]
    pub requests: usize,
}

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 1] = [scenario!(
    there_and_back,
    "setup, gateways, callers, workers, a rollout, and all the way back: no request fails"
)];

/// Upgrades as the documentation says, rolls out another version, and goes back.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    for program in ["apiproxy", "worker"] {
        let path = size.old_bin_dir.join(program);
        ensure!(path.is_file(), "{}: no such program of the release before", path.display());
    }
    run("upgrade", (size.seed, ""), size, &SCENARIOS).await
}

/// Requests go through a gateway to a service that calls another, so every sender meets every
/// worker of both releases.
async fn there_and_back(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::builder().jetstream().start().await;
    let mut fleet = Fleet::on(broker, directory, &behind_callers(Transport::Broker)).await?;
    fleet.use_programs_of(Some(&size.old_bin_dir));
    for _ in 0..EACH {
        fleet.add_gateway(None).await;
    }
    fleet.add_workers("blue", EACH, None).await;
    let mut callers = fleet.start_callers(EACH).await;
    let load = Load::start_across(&fleet.ports(), size.connections, size.seed, 0);
    load.reach(size.requests).await;

    // In the documented order.
    fleet.use_programs_of(None);
    fleet.broker.reload("").await;
    let setup = fleet.cli(&["setup"]).await?;
    ensure!(setup.code == Some(0), "setup ended with {:?}: {}", setup.code, setup.text);
    finding.figure("setup", setup.text.lines().skip(1).collect::<Vec<_>>());
    load.more(size.requests).await;
    restart_gateways(&mut fleet, finding).await;
    load.more(size.requests).await;
    restart_callers(&fleet, &mut callers, finding).await;
    load.more(size.requests).await;
    fleet.restart_workers("blue").await?;
    load.more(size.requests).await;
    finding.figure("requests_until_upgraded", load.answered());

    fleet.add_workers("green", EACH, None).await;
    let mut documents = fleet.documents().await?;
    fleet.start_rollout("green", &["--strategy", "blue-green"]).await?;
    let rollout = fleet.done(&mut documents).await?;
    finding.promise(rollout["phase"] == "promoted" && rollout["behind"].is_null(), || {
        format!("the rollout of {ROUTE} ended so: {rollout}")
    });
    fleet.stop_workers("blue").await?;
    load.more(size.requests).await;

    // Back, in the other order.
    fleet.use_programs_of(Some(&size.old_bin_dir));
    fleet.restart_workers("green").await?;
    load.more(size.requests).await;
    restart_callers(&fleet, &mut callers, finding).await;
    load.more(size.requests).await;
    restart_gateways(&mut fleet, finding).await;
    load.more(size.requests).await;
    let tally = settle(finding, &fleet, load, directory).await?;
    none_failed(finding, &tally);
    Ok(())
}

async fn restart_gateways(fleet: &mut Fleet, finding: &mut Finding) {
    for index in 0..fleet.gateways.len() {
        fleet.gateways[index].process.terminate();
        let status = fleet.gateways[index].process.wait_exit(DEADLINE).await;
        finding.promise(status.success(), || format!("a gateway left with {status}"));
        fleet.start_again(index).await;
    }
}

async fn restart_callers(fleet: &Fleet, callers: &mut [Process], finding: &mut Finding) {
    for caller in callers {
        caller.terminate();
        let status = caller.wait_exit(DEADLINE).await;
        finding.promise(status.success(), || format!("a caller left with {status}"));
        *caller = fleet.start_caller();
        fleet.callers_present(EACH).await;
    }
}
