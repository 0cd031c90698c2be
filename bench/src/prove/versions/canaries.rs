//! New versions that are bad in different ways, and one that is not.

use std::path::Path;
use std::time::Instant;

use super::fleet::Fleet;
use super::{Size, none_failed, settle};
use crate::prove::Finding;
use crate::prove::load::{Load, Outcome};

/// Short, so that a version that never answers is known for it soon.
const TIMES: &str = "timeout = \"3s\"\ntry_timeout = \"1s\"";

/// How long a sound version takes for a request: longer than the noise of a busy machine.
const SOUND: &str = "delays=10";

/// One request in twenty fails.
pub(super) async fn fails(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    goes_back(size, directory, finding, "fails=5", "errors are").await
}

/// Every request takes three times as long.
pub(super) async fn slow(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    goes_back(size, directory, finding, "delays=30", "p9").await
}

/// Every request panics.
pub(super) async fn panics(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    goes_back(size, directory, finding, "panics", "errors are").await
}

/// No request is answered.
pub(super) async fn hangs(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    goes_back(size, directory, finding, "hangs", "errors are").await
}

/// As good as the old version: it is promoted, and no request fails on the way.
pub(super) async fn healthy(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(directory, 2, TIMES).await?;
    fleet.add_workers("blue", 1, Some(SOUND)).await;
    fleet.add_workers("green", 1, Some(SOUND)).await;
    let load = Load::start_across(&fleet.ports(), size.connections, size.seed, 0);
    load.reach(500).await;
    let began = Instant::now();
    fleet.start_rollout("green", &arguments(size).each_ref().map(String::as_str)).await?;
    let rollout = fleet.done(&mut fleet.documents().await?).await?;
    finding.figure("promoted_after_s", began.elapsed().as_secs());
    finding.promise(rollout["phase"] == "promoted", || format!("a healthy version ended so: {rollout}"));
    let tally = settle(finding, &fleet, load, directory).await?;
    none_failed(finding, &tally);
    Ok(())
}

fn arguments(size: &Size) -> [String; 8] {
    let hold = format!("{}s", size.hold_seconds);
    ["--strategy", "canary", "--steps", "1,5,25,50,100", "--hold", &hold, "--patience", "60s"]
        .map(str::to_owned)
}

/// A bad version goes back by itself, with the reason, and afterwards nobody sees it any more.
async fn goes_back(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
    misbehave: &str,
    expected: &str,
) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(directory, 2, TIMES).await?;
    fleet.add_workers("blue", 1, Some(SOUND)).await;
    fleet.add_workers("green", 1, Some(misbehave)).await;
    let load = Load::start_across(&fleet.ports(), size.connections, size.seed, 0);
    load.reach(500).await;
    let began = Instant::now();
    fleet.start_rollout("green", &arguments(size).each_ref().map(String::as_str)).await?;
    let rollout = fleet.done(&mut fleet.documents().await?).await?;
    let back_at = load.elapsed();
    let back_after = began.elapsed();
    let so_far = load.answered();
    load.reach(so_far + 10 * size.connections).await;
    let tally = settle(finding, &fleet, load, directory).await?;

    let reason = rollout["reason"].as_str().unwrap_or_default();
    finding.figure("back_after_ms", u64::try_from(back_after.as_millis())?);
    finding.figure("step", rollout["step"].clone());
    finding.figure("reason", reason);
    let exposure = &rollout["exposure"];
    let count = |name: &str| exposure[name].as_u64().unwrap_or(0) as f64;
    let percent = |part: f64, whole: f64| (10_000.0 * part / whole.max(1.0)).round() / 100.0;
    finding.figure("requests_that_saw_it_percent", percent(count("new_requests"), count("requests")));
    finding
        .figure("clients_failed_percent", percent(tally.failed().len() as f64, tally.outcomes.len() as f64));
    finding.promise(rollout["phase"] == "rolled-back" && reason.contains(expected), || {
        format!("a version with {misbehave} ended so: {rollout}")
    });
    let is_after = |outcome: &&&Outcome| outcome.answered_at.saturating_sub(outcome.took) > back_at;
    let late = tally.failed().iter().filter(is_after).count();
    finding.promise(late == 0, || format!("{late} requests failed that were sent after it was gone"));
    Ok(())
}
