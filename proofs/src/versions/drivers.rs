//! The gateway that drives a rollout is killed at every step, and once frozen: another carries on.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_nats::jetstream::kv;
use natsway_testkit::eventually;
use serde_json::Value;

use super::fleet::{Fleet, is_done, until};
use super::{Size, settle, under_load};
use crate::Finding;
use crate::load::{Load, RequestOutcome, Tally};
use crate::stand::{DEADLINE, PATIENT};

/// How long after a lease ends another gateway has it, at the latest.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// Clients read an answer some time after it was given.
const READ: Duration = Duration::from_secs(1);

/// The canary's steps; how long they are held comes with the size.
const CANARY: [&str; 4] = ["--steps", "5,25,50,100", "--patience", "60s"];

/// Whoever drives a canary is killed while it is checked, at each step and while the old version
/// drains; at the last step it is frozen instead, and wakes when all is done: no step is taken
/// twice or left out, and the one that woke changes nothing.
pub(super) async fn driver_killed(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let fleet = Fleet::start(directory, 3, &size.transport.with(PATIENT)).await?;
    let (fleet, load) = under_load(fleet, size, &[("blue", Some("delays=5"))]).await;
    let documents = fleet.documents().await?;
    let mut chase = Chase { fleet, load, documents, kills: Vec::new() };
    let hold = format!("{}s", size.hold_seconds);
    chase.fleet.start_rollout("green", &[&CANARY[..], &["--hold", &hold]].concat()).await?;
    // Nobody announces green yet, so that it is checked for as long as this takes.
    chase.kill_at("checking", 0, finding).await?;
    chase.fleet.add_workers("green", 1, Some("delays=5")).await;
    for step in 0..3 {
        chase.kill_at("canary", step, finding).await?;
    }
    chase.reaches("canary", 3).await?;
    let sleeper = driver(&chase.fleet).await?;
    let port = chase.fleet.gateways[sleeper].port;
    chase.fleet.gateways[sleeper].process.freeze();
    // The drain waits for the one that is frozen, long enough to find who drives it.
    chase.kill_at("draining", 3, finding).await?;
    let Chase { mut fleet, load, mut documents, kills } = chase;
    let rollout = fleet.done(&mut documents).await?;
    let (_, revision) = fleet.document().await?;

    let woke = load.elapsed();
    fleet.gateways[sleeper].process.thaw();
    eventually(DEADLINE, async || {
        let gateway = &fleet.gateways[sleeper];
        let taken_in = gateway.metric("natsway_routes_revision").await.unwrap_or(0.0);
        // The broker may have dropped it meanwhile.
        let connected = gateway.metric("natsway_broker_connections").await.unwrap_or(0.0);
        (taken_in >= revision as f64 && connected >= 2.0)
            .then_some(())
            .ok_or_else(|| format!("at revision {taken_in} of {revision}, {connected} connections"))
    })
    .await;
    let back = load.elapsed() + READ;
    load.more(20 * size.connections).await;
    let (_, later) = fleet.document().await?;
    finding.promise(later == revision, || "the driver that woke wrote a step".to_owned());

    finding.figure("kills", kills.len());
    finding.promise(rollout["phase"] == "promoted", || format!("it ended so: {rollout}"));
    let expected = [
        "5 % to green",
        "25 % to green",
        "50 % to green",
        "100 % to green",
        "all traffic to green",
    ];
    let taken = expected.map(|step| notes(&rollout).filter(|note| note.contains(step)).count());
    // "5 % to green" is the end of "25 % to green" as well.
    finding.promise(taken == [2, 1, 1, 1, 1], || {
        format!("not each step once: {}", rollout["history"])
    });
    let tally = settle(finding, &fleet, load, directory).await?;
    judge(finding, &tally, &kills, port, woke..back);
    Ok(())
}

fn notes(rollout: &Value) -> impl Iterator<Item = &str> {
    rollout["history"].as_array().into_iter().flatten().filter_map(|note| note["what"].as_str())
}

/// What a gateway held that was killed is lost, and says so; what one held that was frozen until
/// the broker dropped it is answered that it did not run or that nobody knows. Nothing else may
/// fail.
fn judge(
    finding: &mut Finding,
    tally: &Tally,
    kills: &[Kill],
    woken: u16,
    waking: std::ops::Range<Duration>,
) {
    let is_held = |outcome: &RequestOutcome| {
        let went_over = |kill: &Kill| {
            outcome
                .through
                .is_some_and(|through| through.port == kill.port && through.made_at <= kill.over)
        };
        outcome.status.is_err()
            && kills.iter().any(|kill| went_over(kill) && outcome.answered_at >= kill.began)
    };
    let is_woken = |outcome: &RequestOutcome| {
        outcome.through.is_some_and(|through| through.port == woken)
            && waking.contains(&outcome.answered_at)
            && matches!(outcome.status, Ok(503 | 504))
    };
    let failed = tally.failed();
    let held = failed.iter().filter(|outcome| is_held(outcome)).count();
    let at_woken = failed.iter().filter(|outcome| is_woken(outcome)).count();
    let others: Vec<_> =
        failed.iter().filter(|outcome| !is_held(outcome) && !is_woken(outcome)).take(5).collect();
    finding.figure("failed_at_killed_gateways", held);
    finding.figure("failed_at_the_gateway_that_woke", at_woken);
    finding.figure("failed_otherwise", failed.len() - held - at_woken);
    finding.promise(others.is_empty(), || format!("failed with no fault to blame: {others:?}"));
}

/// When a gateway was killed, since the load began.
struct Kill {
    port: u16,
    began: Duration,
    over: Duration,
}

/// A rollout whose drivers are killed.
struct Chase {
    fleet: Fleet,
    load: Load,
    documents: kv::Watch,
    kills: Vec<Kill>,
}

impl Chase {
    /// Waits until the rollout is there.
    async fn reaches(&mut self, phase: &str, step: usize) -> anyhow::Result<()> {
        let is_there = |rollout: &Value| rollout["phase"] == phase && rollout["step"] == step;
        let over = |rollout: &Value| is_done(rollout["phase"].as_str().unwrap_or_default());
        let rollout =
            until(&mut self.documents, |rollout| is_there(rollout) || over(rollout)).await?;
        match is_there(&rollout) {
            true => Ok(()),
            false => bail!("it ended before it was {phase} at step {step}: {rollout}"),
        }
    }

    /// Kills whoever drives the rollout when it is there, before it gets any further, and starts
    /// that gateway again.
    async fn kill_at(
        &mut self,
        phase: &str,
        step: usize,
        finding: &mut Finding,
    ) -> anyhow::Result<()> {
        self.reaches(phase, step).await?;
        let driver = driver(&self.fleet).await?;
        let began = self.load.elapsed();
        self.fleet.gateways[driver].process.kill9();
        let (port, over) = (self.fleet.gateways[driver].port, self.load.elapsed());
        self.kills.push(Kill { port, began, over });
        let (document, _) = self.fleet.document().await?;
        let (at, now) = (&document["rollout"]["step"], &document["rollout"]["phase"]);
        finding.promise(now == phase && at == step, || {
            format!("when the driver of {phase} {step} was killed, it was {now} {at} already")
        });
        self.fleet.start_again(driver).await;
        Ok(())
    }
}

/// Which gateway has the lease and lives.
async fn driver(fleet: &Fleet) -> anyhow::Result<usize> {
    let context = async_nats::jetstream::new(fleet.client.clone());
    let until = Instant::now() + TAKE_OVER;
    while Instant::now() < until {
        let holder = match context.get_key_value("natsway-lease").await {
            Ok(bucket) => bucket.get("rollouts").await?,
            Err(_) => None,
        };
        let text =
            |report: &Value, name: &str| report[name].as_str().unwrap_or_default().to_owned();
        let reports = fleet.reports().await?;
        let hosts: HashMap<_, _> =
            reports.iter().map(|report| (text(report, "id"), text(report, "host"))).collect();
        let holder = holder.map(|holder| String::from_utf8_lossy(&holder).into_owned());
        // Hosts end with the address that the gateway serves. One that was killed has the lease a
        // little longer.
        if let Some(host) = holder.and_then(|holder| hosts.get(&holder).cloned()) {
            let is_at = |port: u16| host.ends_with(&format!(":{port}"));
            let driver = fleet.gateways.iter().position(|gateway| is_at(gateway.port));
            return driver.with_context(|| format!("{host} is none of our gateways"));
        }
    }
    bail!("nobody drives for {TAKE_OVER:?}")
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::load::Through;

    #[test]
    fn only_what_a_fault_explains_is_forgiven() {
        let at = Duration::from_secs;
        let outcome = |status: Result<u16, &str>, port, made_s, answered_s| RequestOutcome {
            nonce: 0,
            method: Method::GET,
            own: status == Ok(200),
            status: status.map_err(str::to_owned),
            answered_at: at(answered_s),
            took: Duration::ZERO,
            through: Some(Through { port, made_at: at(made_s) }),
        };
        let kills = [Kill { port: 1, began: at(10), over: at(11) }];
        let judged = |outcome: RequestOutcome| {
            let mut finding = Finding::new("test");
            judge(
                &mut finding,
                &Tally { outcomes: vec![outcome], lasted: at(60) },
                &kills,
                2,
                at(30)..at(31),
            );
            finding.broken.is_empty()
        };
        assert!(judged(outcome(Ok(200), 3, 0, 1)));
        assert!(judged(outcome(Err("transport"), 1, 9, 11)), "held by the one that was killed");
        assert!(!judged(outcome(Err("transport"), 1, 9, 9)), "before it was killed");
        assert!(!judged(outcome(Err("transport"), 1, 12, 13)), "at the one that took its place");
        assert!(!judged(outcome(Err("transport"), 3, 9, 11)), "at another");
        assert!(!judged(outcome(Ok(503), 1, 9, 11)), "it was answered");
        assert!(judged(outcome(Ok(504), 2, 9, 30)), "held by the one that was frozen");
        assert!(!judged(outcome(Ok(504), 2, 9, 40)), "long after it woke");
        assert!(!judged(outcome(Ok(500), 2, 9, 30)), "that is no honest answer");
    }
}
