//! The long proof: chaos until enough membership changes were made, judged; then a fifth as many disturbances of a
//! static group. One line of JSON for each.
//!
//! `SEED` replays a run's plan, `CHANGES` sets its length (1,000), `MAX_ACK_PENDING` the consumers' limit (200), and
//! `REPLICAS` how many copies there are of everything, on as many brokers (1).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use natsway_groups_proof::chaos::{self, Plan};
use natsway_partitioned_consumer::GroupKind;

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text}: expected a number")),
        Err(_) => Ok(default),
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    natsway_groups_proof::usage::answer_help(
        "Chaos of consumer groups, judged: exit code 1 when a promise was broken. A line of JSON for each kind of group",
        "prove-groups",
        &[
            ("SEED", "replays a run's plan (random)"),
            ("CHANGES", "changes of the membership; a fifth as many disturbances of a static group (1000)"),
            ("MAX_ACK_PENDING", "the consumers' limit (200)"),
            ("REPLICAS", "copies of everything, on as many brokers (1)"),
        ],
    );
    let seed = number("SEED", fastrand::u64(..))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let logs = std::path::absolute(target.join("prove/groups").join(seed.to_string()))?;
    if logs.exists() {
        std::fs::remove_dir_all(&logs)?;
    }
    eprintln!("SEED={seed}, logs under {}", logs.display());
    let changes = number("CHANGES", 1_000)?;
    let max_ack_pending = number("MAX_ACK_PENDING", 200)?;
    let replicas = number("REPLICAS", 1)?;
    let member = std::env::current_exe()?.with_file_name("groups-member");
    let mut kept = true;
    for (kind, changes) in [(GroupKind::Elastic, changes), (GroupKind::Static, changes / 5)] {
        let logs = logs.join(kind.as_str());
        let member = member.clone();
        let plan = Plan { seed, kind, changes, member, logs: logs.clone(), max_ack_pending, replicas };
        let outcome = chaos::run(plan).await?;
        let line = serde_json::to_string(&outcome)?;
        std::fs::write(logs.join("outcome.json"), &line)?;
        println!("{line}");
        kept &= outcome.verdict.kept();
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
