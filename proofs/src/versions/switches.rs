//! Switching versions and restarting gateways, with nothing broken on purpose: zero failed
//! requests.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use natsway_testkit::eventually;
use serde_json::Value;

use super::fleet::{Fleet, ROUTE, until};
use super::{Size, none_failed, settle, under_load};
use crate::Finding;
use crate::load::Load;
use crate::stand::{DEADLINE, PATIENT};

/// A route's change is to be in force everywhere within this.
const IN_FORCE_LIMIT: Duration = Duration::from_millis(100);

/// Switches under load: no request fails, and none reaches a version after its drain was said to be
/// complete.
pub(super) async fn blue_green(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let fleet_of_two = Fleet::start(directory, 2, &size.transport.with(PATIENT)).await?;
    let (fleet, load) = under_load(fleet_of_two, size, &[("blue", None), ("green", None)]).await;
    switch_to_and_fro(size.switches, &fleet, &load, finding).await?;
    let tally = settle(finding, &fleet, load, directory).await?;
    none_failed(finding, &tally);
    Ok(())
}

/// Switches under load so many times, beginning with blue; what reaches a version after its drain
/// is counted.
pub(super) async fn switch_to_and_fro(
    switches: usize,
    fleet: &Fleet,
    load: &Load,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut documents = fleet.documents().await?;
    let (mut late, mut slowest, mut idle) = (0, Duration::ZERO, 0);
    for switch in 0..switches {
        let (from, to) = if switch % 2 == 0 { ("blue", "green") } else { ("green", "blue") };
        let (began, before) = (Instant::now(), fleet.reached(to)?);
        fleet.start_rollout(to, &["--strategy", "blue-green"]).await?;
        // What is first said of this rollout is that it has begun, so an earlier one's end is not
        // taken for its own.
        until(&mut documents, |rollout| rollout["phase"] == "checking").await?;
        let rollout = fleet.done(&mut documents).await?;
        let at_report = fleet.reached(from)?;
        slowest = slowest.max(began.elapsed());
        finding.promise(rollout["phase"] == "promoted" && rollout["behind"].is_null(), || {
            format!("switch {switch} ended so: {rollout}")
        });
        load.more(256).await;
        late += u64::from(fleet.reached(from)? > at_report);
        idle += u64::from(fleet.reached(to)? == before);
    }
    finding.figure("switches", switches);
    finding.figure("slowest_switch_ms", u64::try_from(slowest.as_millis())?);
    finding.figure("reached_after_drain", late);
    finding.promise(late == 0, || {
        format!("after {late} drains that were complete, requests reached the old version")
    });
    finding.promise(idle == 0, || format!("{idle} switches changed nothing"));
    Ok(())
}

/// A pair of gateways is restarted, one after the other, behind clients that try the other one when
/// they cannot connect.
pub(super) async fn gateway_restarts(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let (mut fleet, load) = under_load(
        Fleet::start(directory, 2, &size.transport.with(PATIENT)).await?,
        size,
        &[("blue", None)],
    )
    .await;
    for _ in 0..size.restarts {
        for index in 0..2 {
            fleet.gateways[index].process.terminate();
            let status = fleet.gateways[index].process.wait_exit(DEADLINE).await;
            finding.promise(status.success(), || format!("a gateway left with {status}"));
            fleet.start_again(index).await;
            load.more(size.connections).await;
        }
    }
    let tally = settle(finding, &fleet, load, directory).await?;
    finding.figure("restarts", 2 * size.restarts);
    none_failed(finding, &tally);
    Ok(())
}

/// How long a change of a route takes until every gateway goes by it.
pub(super) async fn propagation(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    const GATEWAYS: usize = 4;
    let fleet = Fleet::start(directory, GATEWAYS, &size.transport.with(PATIENT)).await?;
    let bucket = fleet.bucket().await?;
    let inbox = fleet.client.new_inbox();
    let mut answers = fleet.client.subscribe(inbox.clone()).await?;
    let mut taken = Vec::new();
    for round in 0..size.rounds {
        let (mut document, revision) = fleet.document().await?;
        document["max_body_bytes"] = Value::from(10_000 + round);
        let written = Instant::now();
        let revision =
            bucket.update(ROUTE, serde_json::to_vec(&document)?.into(), revision).await?;
        let mut current = std::collections::HashSet::new();
        eventually(DEADLINE, async || {
            let ask = natsway_wire::control::report_subject();
            fleet
                .client
                .publish_with_reply(ask, inbox.clone(), "".into())
                .await
                .map_err(|error| error.to_string())?;
            while let Ok(Some(answer)) =
                tokio::time::timeout(Duration::from_millis(2), answers.next()).await
            {
                let report: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
                if report["revision"].as_u64() >= Some(revision) {
                    current.insert(report["id"].to_string());
                }
            }
            if current.len() == GATEWAYS {
                Ok(())
            } else {
                Err(format!("{} of {GATEWAYS}", current.len()))
            }
        })
        .await;
        taken.push(written.elapsed());
        // Gateways answer so many questions at once, and then four a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    taken.sort();
    let ms = |duration: Duration| duration.as_micros() as f64 / 1_000.0;
    let (median, slowest) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    finding.figure("gateways", GATEWAYS);
    finding.figure("changes", size.rounds);
    finding.figure("in_force_median_ms", ms(median));
    finding.figure("in_force_slowest_ms", ms(slowest));
    finding.promise(median < IN_FORCE_LIMIT, || {
        format!("a change takes {median:?} until it is in force")
    });
    Ok(())
}
