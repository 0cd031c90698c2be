//! A cluster that forms while gateways and workers are there already.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use natsway_testkit::{TestBroker, eventually};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::stage::{DEADLINE, ROUTES, Stage};
use crate::probe;
use crate::{Finding, Size};

/// How long one broker of three is alone: it has no JetStream, for there is nobody to agree with.
const ALONE: Duration = Duration::from_secs(3);

/// One broker is there, and later the others: a gateway says that it is ready exactly when it has
/// its routes, all of them, and not before.
pub(super) async fn forming(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    for _ in 0..size.rounds {
        form_once(directory, finding).await?;
    }
    finding.figure("clusters_formed", size.rounds);
    Ok(())
}

async fn form_once(directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let mut cluster = TestBroker::builder().jetstream().start_cluster(3).await;
    // Whatever they agreed on is gone with their stores; what is left are the addresses.
    for broker in cluster.iter_mut() {
        broker.kill9();
        broker.forget();
    }
    cluster[0].start_again().await;
    let mut stage = Stage::on(directory, cluster).await?;
    stage.add_gateway()?;
    stage.add_gateway()?;
    stage.add_worker();
    let stop = CancellationToken::new();
    let untrue = Arc::new(AtomicUsize::new(0));
    let mut probes = JoinSet::new();
    for gateway in &stage.gateways {
        probes.spawn(watch(gateway.port, gateway.admin_port, Arc::clone(&untrue), stop.clone()));
    }
    for gateway in &stage.gateways {
        eventually(DEADLINE, async || probe::get(gateway.admin_port, "/livez").await.map(|_| ()))
            .await;
    }
    tokio::time::sleep(ALONE).await;
    for gateway in &stage.gateways {
        let told = probe::get(gateway.admin_port, "/readyz").await?;
        finding.promise(told.0 == 503, || format!("ready without its routes: {told:?}"));
    }
    stage.cluster[1].start_again().await;
    stage.cluster[2].start_again().await;
    stage.ready().await;
    stage.members(1).await;
    // Whichever gateway fills the bucket, and however often it is interrupted, all of it is there
    // in the end.
    eventually(DEADLINE, async || match stage.metric("natsway_routes{state=\"serving\"}").await {
        serving if serving == ROUTES * stage.gateways.len() as f64 => Ok(()),
        serving => Err(format!("{serving} routes at {} gateways", stage.gateways.len())),
    })
    .await;
    stop.cancel();
    let mut looks = 0;
    while let Some(looked) = probes.join_next().await {
        looks += looked?;
    }
    finding.figure("looks", looks);
    let untrue = untrue.load(Ordering::Relaxed);
    finding.promise(untrue == 0, || format!("{untrue} times a ready gateway had no routes"));
    stage.keep_logs()
}

/// Asks whether a gateway is ready, and if it says so sends a request at once; counts those that it
/// has no routes for.
async fn watch(
    port: u16,
    admin_port: u16,
    untrue: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> usize {
    let mut looks = 0;
    while !stop.is_cancelled() {
        looks += 1;
        if let Ok((200, _)) = probe::get(admin_port, "/readyz").await
            && let Ok((503, body)) = probe::get(port, "/version").await
            && body.contains("no_routes_yet")
        {
            untrue.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    looks
}
