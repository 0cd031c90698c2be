//! New versions that are bad in different ways, and one that is not.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fleet::Fleet;
use super::{Size, none_failed, settle, under_load};
use crate::Finding;
use crate::load::{Load, RequestOutcome};

/// Short, so that a version that never answers is known for it soon.
const TIMES: &str = "timeout = \"3s\"\ntry_timeout = \"1s\"";

/// How long a sound version takes for a request: longer than the noise of an idle machine.
const SOUND: &str = "delays=10";

/// What is asked to find out how long a request takes under load.
const PROBES: usize = 40;

/// How a version behaves, by how long nearly every request takes with a sound one under the same
/// load.
type Behaviour = fn(Duration) -> String;

/// One request in twenty fails.
pub(super) async fn fails(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    goes_back(size, directory, finding, |_| "fails=5".to_owned(), "errors are").await
}

/// Every request takes three times as long, also where the machine is so busy that the sound
/// version is slow; and it is answered before it would be tried again.
pub(super) async fn slow(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let thrice = |usual: Duration| format!("delays={}", (3 * usual.as_millis()).clamp(30, 800));
    goes_back(size, directory, finding, thrice, "p9").await
}

/// Every request panics.
pub(super) async fn panics(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    goes_back(size, directory, finding, |_| "panics".to_owned(), "errors are").await
}

/// No request is answered.
pub(super) async fn hangs(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    goes_back(size, directory, finding, |_| "hangs".to_owned(), "errors are").await
}

/// As good as the old version: it is promoted, and no request fails on the way.
pub(super) async fn healthy(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let (fleet, load, rollout) = canary(size, directory, finding, |_| SOUND.to_owned()).await?;
    finding.figure("promoted_after_ms", lasted_ms(&rollout));
    finding.promise(rollout["phase"] == "promoted", || {
        format!("a healthy version ended so: {rollout}")
    });
    let tally = settle(finding, &fleet, load, directory).await?;
    none_failed(finding, &tally);
    Ok(())
}

/// A canary of a version that behaves so, beside a sound one and under load, until it is done. The
/// service waits in most of a request's time, so it takes more connections than elsewhere for as
/// many requests a second.
async fn canary(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
    green: Behaviour,
) -> anyhow::Result<(Fleet, Load, Value)> {
    let size = Size { connections: 2 * size.connections, ..size.clone() };
    let fleet = Fleet::start(directory, 2, &size.transport.with(TIMES)).await?;
    let (mut fleet, load) = under_load(fleet, &size, &[("blue", Some(SOUND))]).await;
    let green = green(usual(&fleet).await?);
    finding.figure("new_version", green.as_str());
    fleet.add_workers("green", 1, Some(&green)).await;
    fleet.start_rollout("green", &arguments(&size).each_ref().map(String::as_str)).await?;
    let rollout = fleet.done(&mut fleet.documents().await?).await?;
    Ok((fleet, load, rollout))
}

/// How long nineteen of twenty requests take at the most.
async fn usual(fleet: &Fleet) -> anyhow::Result<Duration> {
    let mut took = Vec::with_capacity(PROBES);
    for _ in 0..PROBES {
        let sent = Instant::now();
        crate::probe::get(fleet.gateways[0].port, "/").await?;
        took.push(sent.elapsed());
    }
    took.sort();
    Ok(took[PROBES * 19 / 20])
}

fn arguments(size: &Size) -> [String; 8] {
    let hold = format!("{}s", size.hold_seconds);
    ["--strategy", "canary", "--steps", "1,5,25,50,100", "--hold", &hold, "--patience", "60s"]
        .map(str::to_owned)
}

/// From its start to its end, as its history has it.
fn lasted_ms(rollout: &Value) -> u64 {
    let unix_ms =
        |note: Option<&Value>| note.and_then(|note| note["unix_ms"].as_u64()).unwrap_or(0);
    let notes = rollout["history"].as_array().map_or(&[][..], Vec::as_slice);
    unix_ms(notes.last()).saturating_sub(unix_ms(notes.first()))
}

/// A bad version goes back by itself, with the reason, and afterwards nobody sees it any more.
async fn goes_back(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
    misbehave: Behaviour,
    expected: &str,
) -> anyhow::Result<()> {
    let (fleet, load, rollout) = canary(size, directory, finding, misbehave).await?;
    let back_at = load.elapsed();
    load.more(20 * size.connections).await;
    let tally = settle(finding, &fleet, load, directory).await?;

    let reason = rollout["reason"].as_str().unwrap_or_default();
    finding.figure("back_after_ms", lasted_ms(&rollout));
    finding.figure("step", rollout["step"].clone());
    finding.figure("reason", reason);
    let exposure = &rollout["exposure"];
    let count = |name: &str| exposure[name].as_u64().unwrap_or(0) as f64;
    let percent = |part: f64, whole: f64| (10_000.0 * part / whole.max(1.0)).round() / 100.0;
    finding
        .figure("requests_that_saw_it_percent", percent(count("new_requests"), count("requests")));
    finding.figure(
        "clients_failed_percent",
        percent(tally.failed().len() as f64, tally.outcomes.len() as f64),
    );
    finding.promise(rollout["phase"] == "rolled-back" && reason.contains(expected), || {
        format!("the new version ended so: {rollout}")
    });
    let is_after =
        |outcome: &&&RequestOutcome| outcome.answered_at.saturating_sub(outcome.took) > back_at;
    let late = tally.failed().iter().filter(is_after).count();
    finding
        .promise(late == 0, || format!("{late} requests failed that were sent after it was gone"));
    Ok(())
}
