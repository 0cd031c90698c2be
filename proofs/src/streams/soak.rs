//! Very many downloads of mixed sizes, each checked, and what is left behind.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::future::join_all;
use natsway_testkit::{Process, TestBroker};

use super::Size;
use super::client::Client;
use crate::Finding;
use crate::stand::{Extras, PATIENT, Stand, memory};

const CLIENTS: usize = 16;

/// What either end may have more of memory behind the second half of the downloads than before it:
/// what allocators keep.
const LEAK_MIB: usize = 16;

/// The gateway's threads, each with a tunnel from each worker.
const SHARDS: usize = 2;
const WORKERS: usize = 2;

/// Keep-alive clients download one body after the other.
pub(super) async fn soak(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let extras = Extras { gateway: &["--shards", "2"], ..Extras::default() };
    let urls = (&*broker.url(), &*broker.url());
    let stand = Stand::start_with(directory, urls, PATIENT, WORKERS, extras).await?;
    let began = Instant::now();
    let (first, second) = (size.downloads / 2, size.downloads - size.downloads / 2);
    let mut bytes = download_all(stand.port, first, size.seed, finding).await?;
    stand.all_let_go().await;
    let before = Left::of(&stand)?;
    bytes += download_all(stand.port, second, size.seed + 1, finding).await?;
    stand.all_let_go().await;
    let after = Left::of(&stand)?;
    let took = began.elapsed();
    finding.figure("downloads", size.downloads);
    finding.figure("gib", (bytes as f64 / f64::from(1 << 30) * 10.0).round() / 10.0);
    finding.figure("seconds", took.as_secs());
    finding.figures_of(&after)?;
    for (name, was, is) in [
        ("gateway", before.gateway_mib, after.gateway_mib),
        ("worker", before.worker_mib, after.worker_mib),
    ] {
        finding.promise(is <= was + LEAK_MIB, || format!("the {name} grew: {was} to {is} MiB"));
    }
    let files = |left: &Left| left.gateway_files.max(left.worker_files);
    finding.promise(files(&after) <= files(&before) + CLIENTS, || {
        format!("open files: {before:?}, then {after:?}")
    });
    // Each lives for five minutes, and is dialled anew then.
    let tunnels = stand.metric("natsway_tunnels_opened_total").await?;
    let lives = usize::try_from(took.as_secs() / 240)? + 1;
    finding.figure("tunnels_opened", tunnels);
    finding.promise(tunnels <= (SHARDS * WORKERS * lives) as f64, || {
        format!("{tunnels} tunnels were opened in {took:?}")
    });
    Ok(())
}

/// What is held by processes that have nothing to do.
#[derive(Debug, serde::Serialize)]
struct Left {
    gateway_mib: usize,
    worker_mib: usize,
    gateway_files: usize,
    worker_files: usize,
}

impl Left {
    fn of(stand: &Stand) -> anyhow::Result<Self> {
        let files = |process: &Process| -> anyhow::Result<usize> {
            Ok(std::fs::read_dir(format!("/proc/{}/fd", process.pid()))?.count())
        };
        Ok(Self {
            gateway_mib: memory(&stand.gateway)?.resident >> 20,
            worker_mib: memory(&stand.workers[0])?.resident >> 20,
            gateway_files: files(&stand.gateway)?,
            worker_files: files(&stand.workers[0])?,
        })
    }
}

/// Downloads so many bodies, and returns their bytes.
async fn download_all(
    port: u16,
    downloads: usize,
    seed: u64,
    finding: &mut Finding,
) -> anyhow::Result<u64> {
    let (begun, bytes) = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
    let clients = (0..CLIENTS).map(|number| {
        let (begun, bytes) = (Arc::clone(&begun), Arc::clone(&bytes));
        let mut choices = fastrand::Rng::with_seed(seed << 8 | number as u64);
        tokio::spawn(async move {
            let mut client = Client::connect(&[port]).await?;
            while begun.fetch_add(1, Ordering::Relaxed) < downloads {
                let asked = asked_bytes(&mut choices);
                let seen = client.download(asked, choices.bool(), None).await?;
                if !seen.is_complete(asked) {
                    anyhow::bail!("{asked} bytes: {seen:?}");
                }
                bytes.fetch_add(asked, Ordering::Relaxed);
            }
            anyhow::Ok(())
        })
    });
    for client in join_all(clients).await {
        let ended = client?;
        finding.promise(ended.is_ok(), || format!("{ended:?}"));
    }
    Ok(bytes.load(Ordering::Relaxed))
}

/// Most are around what goes in a message; one in fifty is large.
fn asked_bytes(choices: &mut fastrand::Rng) -> u64 {
    match choices.u32(..50) {
        0 => choices.u64(..8 << 20),
        1..10 => 64 << 10,
        10..20 => (64 << 10) + choices.u64(..3) - 1,
        20..30 => choices.u64(..64 << 10),
        _ => choices.u64(64 << 10..512 << 10),
    }
}
