//! What is broken under load, and what it costs.

use std::path::Path;
use std::time::Duration;

use crate::groups::ledger::LedgerReport;
use crate::groups::member::now_ns;
use http::Method;

use super::group::{Group, STREAM};
use super::stage::{ROUTES_STREAM, Stage};
use super::{failed, settle};
use crate::load::{Load, Tally};
use crate::{Finding, Size};

const GATEWAYS: usize = 2;
const WORKERS: usize = 3;

/// How long the load goes on with a broker away: longer than anything waits that could hide what is
/// broken.
const AWAY: Duration = Duration::from_secs(4);

/// How long a broker is frozen: longer than everybody takes to notice, so that all of them move.
const FROZEN: Duration = Duration::from_secs(9);

/// Whose broker is broken next.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// The one that leads JetStream.
    MetaLeader,
    /// The one that leads the stream of the consumer group.
    StreamLeader,
    /// The one that leads the bucket of the routes.
    RoutesLeader,
    /// One that a gateway sends its requests to.
    GatewaysBroker,
}

impl Victim {
    const ALL: [Self; 4] =
        [Self::MetaLeader, Self::StreamLeader, Self::RoutesLeader, Self::GatewaysBroker];

    async fn place(self, stage: &Stage) -> usize {
        match self {
            Self::MetaLeader => stage.meta_leader().await,
            Self::StreamLeader => stage.stream_leader(STREAM).await,
            Self::RoutesLeader => stage.stream_leader(ROUTES_STREAM).await,
            Self::GatewaysBroker => stage.gateway_broker().await,
        }
    }
}

/// Every kind of broker is killed with SIGKILL and comes back.
pub(super) async fn broker_killed(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    broken(size, directory, finding, async |stage, place| {
        stage.cluster[place].kill9();
        tokio::time::sleep(AWAY).await;
        stage.cluster[place].start_again().await;
    })
    .await
}

/// Every kind of broker stands still for a while: its connections stay open, and nothing comes
/// back.
pub(super) async fn broker_frozen(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    broken(size, directory, finding, async |stage, place| {
        stage.cluster[place].freeze();
        tokio::time::sleep(FROZEN).await;
        stage.cluster[place].thaw();
    })
    .await
}

/// Breaks one broker after the other under load, with a group and a publisher beside, and judges.
async fn broken(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
    fault: impl AsyncFn(&mut Stage, usize),
) -> anyhow::Result<()> {
    let mut stage = Stage::start(directory, GATEWAYS, WORKERS, size.transport).await?;
    let mut group = Group::start(&stage).await?;
    let load = Load::start_across(&stage.ports(), size.connections, size.seed, 0);
    let mut choices = size.choices();
    let mut broken = Vec::new();
    for _ in 0..size.rounds {
        let mut victims = Victim::ALL;
        choices.shuffle(&mut victims);
        for victim in victims {
            tokio::time::sleep(Duration::from_millis(choices.u64(500..1_500))).await;
            let place = victim.place(&stage).await;
            eprintln!("  {victim:?}: broker {place}, at {:.1} s", load.elapsed().as_secs_f64());
            broken.push(format!("{victim:?} {place}"));
            let since = now_ns();
            fault(&mut stage, place).await;
            stage.cluster.ready().await;
            group.fault(since);
        }
    }
    stage.members(WORKERS).await;
    stage.ready().await;
    let so_far = load.answered();
    load.reach(so_far + size.requests / 10).await;
    let tally = settle(finding, &stage, load).await?;
    finding.figure("faults", broken.len());
    finding.figure("victims", broken);
    judge_posts(finding, &tally, size, Victim::ALL.len() * size.rounds);
    let verdict = group.judge().await;
    stage.keep_logs()?;
    let (verdict, settled_after) = verdict?;
    finding.figure("group_settled_after_ms", u64::try_from(settled_after.as_millis())?);
    judge_group(finding, &verdict)
}

/// A POST fails only when it was out as the broker broke, and says honestly that it may have run.
fn judge_posts(finding: &mut Finding, tally: &Tally, size: &Size, faults: usize) {
    let posts = failed(tally, &Method::POST);
    // A connection has one request out at a time.
    let most = faults * size.connections;
    finding.promise(posts <= most, || {
        format!("{posts} POSTs failed, more than can have been out: {}", tally.failures())
    });
    let wrong = tally.failed().into_iter().filter(|outcome| outcome.status != Ok(504)).count();
    finding.promise(wrong == 0, || format!("{wrong} failures are no 504: {}", tally.failures()));
}

fn judge_group(finding: &mut Finding, verdict: &LedgerReport) -> anyhow::Result<()> {
    finding.promise(verdict.kept(), || format!("the group: {}", verdict.broken.join("; ")));
    finding.promise(verdict.published > 0, || "nothing was published".to_owned());
    finding.figure("group", serde_json::to_value(verdict)?);
    Ok(())
}

/// All workers are told to leave at the same moment, and others come: nothing fails, for the
/// gateways stand in.
pub(super) async fn workers_restart(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut stage = Stage::start(directory, GATEWAYS, WORKERS, size.transport).await?;
    let load = Load::start_across(&stage.ports(), size.connections, size.seed, 0);
    let share = size.requests / (size.rounds + 1);
    for round in 0..size.rounds {
        load.reach((round + 1) * share).await;
        let mut leaving = std::mem::take(&mut stage.workers);
        leaving.iter_mut().for_each(|worker| worker.terminate());
        for worker in &mut leaving {
            let status = worker.wait_exit(super::stage::DEADLINE).await;
            anyhow::ensure!(status.success(), "a worker left with {status}: {}", worker.stderr());
        }
        // Behind those that left: a restart of all of them leaves a gap with nobody there.
        (0..WORKERS).for_each(|_| stage.add_worker());
        stage.members(WORKERS).await;
    }
    load.reach(size.requests).await;
    finding.figure("restarts", size.rounds * WORKERS);
    finding.figure("moved", stage.metric("natsway_failed_attempts_total{reason=\"moved\"}").await);
    let tally = settle(finding, &stage, load).await?;
    finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
    stage.keep_logs()
}
