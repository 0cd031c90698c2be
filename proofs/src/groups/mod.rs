//! What is promised of consumer groups: chaos of members, brokers and memberships, judged message
//! by message.
//!
//! Members run as processes of their own, so that they can be killed; each writes what its handlers
//! do, with the machine's clock, into a log that outlives it. Afterwards the [`ledger`] judges all
//! logs together.

pub mod chaos;
pub mod ledger;
pub mod member;
pub mod peer;

use std::path::Path;

use natsway_partitioned_consumer::GroupKind;
use natsway_testkit::workspace_binary;

use self::chaos::Plan;
use super::scenario::{Scenario, run, scenario};
use super::{Finding, Report};

/// How large the proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of everything random, to make a run's plan again [default: random]
    #[arg(long, env = "SEED", default_value_t = fastrand::u64(..), hide_default_value = true)]
    pub seed: u64,

    /// Changes of the membership; a fifth as many disturbances of a static group, which knows none
    #[arg(long, env = "CHANGES", default_value = "1000")]
    pub changes: u32,

    /// The consumers' limit of messages that are not acknowledged yet
    #[arg(long, env = "MAX_ACK_PENDING", default_value = "200")]
    pub max_ack_pending: i64,

    /// Copies of everything, on as many brokers
    #[arg(long, env = "REPLICAS", default_value = "1")]
    pub replicas: usize,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 2] = [
    scenario!(
        elastic_group,
        "members join, leave, are killed and moved: per key once, in order, one at a time"
    ),
    scenario!(static_group, "instances are killed and told to stop, the broker restarts: the same"),
];

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    run("groups", (size.seed, &size.only), size, &SCENARIOS).await
}

/// Chaos of an elastic group, until enough changes of its membership were made.
async fn elastic_group(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    judge(size, GroupKind::Elastic, size.changes, directory, finding).await
}

/// Chaos of a static group.
async fn static_group(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    judge(size, GroupKind::Static, size.changes / 5, directory, finding).await
}

async fn judge(
    size: &Size,
    kind: GroupKind,
    changes: u32,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let plan = Plan {
        seed: size.seed,
        kind,
        changes,
        member: workspace_binary("groups-member"),
        logs: directory.to_owned(),
        max_ack_pending: size.max_ack_pending,
        replicas: size.replicas,
    };
    let outcome = chaos::run(plan).await?;
    std::fs::write(directory.join("outcome.json"), serde_json::to_string(&outcome)?)?;
    finding.figures_of(&outcome)?;
    finding.broken.extend(outcome.verdict.broken);
    Ok(())
}
