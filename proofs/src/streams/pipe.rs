//! Streams by pipes on the broker: whole while it lives, visibly broken off when it is lost, and no
//! hindrance to small requests.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::{join_all, try_join_all};
use natsway_testkit::{Cluster, TestBroker, eventually};
use tokio_util::sync::CancellationToken;

use super::client::{Seen, SocketEnd, chat, download, events, upload};
use super::{MIDDLE, SIZES, Size, judge, slow_downloads};
use crate::load::{Load, Tally};
use crate::stand::{DEADLINE, Extras, PATIENT, Stand};
use crate::{Finding, Transport};

/// One thread, so that all streams go by one pipe; and workers that do not dial.
const EXTRAS: Extras<'_> = Extras {
    gateway: &["--shards", "1"],
    worker: &["--tunnel", "broker"],
    routes: "",
    transport: Transport::Broker,
};

/// A body that goes on at full speed while others are looked at.
const BULK_BYTES: u64 = 32 << 20;

async fn start(directory: &Path, url: &str) -> anyhow::Result<Stand> {
    Stand::start_with(directory, (url, url), PATIENT, 1, EXTRAS).await
}

/// Streams went by pipes, and by nothing else.
async fn only_pipes(stand: &Stand, finding: &mut Finding) -> anyhow::Result<()> {
    let (tunnels, pipes) =
        (stand.metric("natsway_tunnels").await?, stand.metric("natsway_pipes").await?);
    finding.promise(pipes >= 1.0 && tunnels == pipes, || {
        format!("{tunnels} tunnels by {pipes} pipes")
    });
    Ok(())
}

pub(super) async fn by_pipes(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = start(directory, &broker.url()).await?;
    let ports = [stand.port];
    let mut transfers = 0;
    for bytes in SIZES {
        for is_chunked in [false, true] {
            let downloads = (0..2).map(|_| download(&ports, bytes, is_chunked, None));
            for seen in try_join_all(downloads).await? {
                transfers += 1;
                finding.promise(seen.is_whole && seen.is_intact && seen.bytes == bytes, || {
                    format!("{bytes} bytes, chunked {is_chunked}: {seen:?}")
                });
            }
            let sent = upload(&ports, bytes, is_chunked, None).await?;
            transfers += 1;
            finding.promise(sent.is_complete(bytes), || format!("{bytes} bytes up: {sent:?}"));
        }
    }
    finding.figure("transfers", transfers);
    let begun = Instant::now();
    let large = BULK_BYTES * size.rounds as u64;
    let seen = download(&ports, large, false, None).await?;
    finding.promise(seen.is_whole && seen.is_intact && seen.bytes == large, || format!("{seen:?}"));
    let rate = large as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64();
    finding.figure("mib_per_second", rate.round());
    let seen = events(&ports, Some(20), 5).await?;
    finding.promise(seen.is_whole && seen.is_in_order && seen.count == 20, || format!("{seen:?}"));
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    let socket = async move { chat(&ports, Duration::from_millis(5), cancelled).await };
    let socket = tokio::spawn(socket);
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.cancel();
    let (messages, end) = socket.await??;
    finding.promise(messages > 10 && end == SocketEnd::Closed(1_000), || {
        format!("{messages} messages, {end:?}")
    });
    beside_bulk(size, stand.port, finding).await?;
    only_pipes(&stand, finding).await?;
    let broken = stand.metric("natsway_pipes_broken_total").await?;
    finding.promise(broken == 0.0, || format!("{broken} pipes broke"));
    stand.all_let_go().await;
    Ok(())
}

/// Small requests are answered beside bodies at full speed.
async fn beside_bulk(size: &Size, port: u16, finding: &mut Finding) -> anyhow::Result<()> {
    let p99_ms = |tally: &Tally| {
        let mut took: Vec<_> = tally.outcomes.iter().map(|outcome| outcome.took).collect();
        took.sort_unstable();
        took.get(took.len() * 99 / 100).map_or(0.0, |took| took.as_secs_f64() * 1_000.0)
    };
    let mut figures = Vec::new();
    for bulk in [0, 4] {
        let stop = CancellationToken::new();
        let bodies: Vec<_> =
            (0..bulk).map(|_| tokio::spawn(in_a_row(port, stop.clone()))).collect();
        let load = Load::start(port, size.connections, size.seed);
        load.reach(size.requests).await;
        let tally = load.stop().await;
        stop.cancel();
        let mut bytes = 0;
        for body in bodies {
            bytes += body.await??;
        }
        finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
        finding.promise(bulk == 0 || bytes > 0, || "no body went beside them".to_owned());
        figures.push((tally.rate(), p99_ms(&tally)));
    }
    for (name, (rate, p99)) in ["alone", "beside"].into_iter().zip(figures) {
        finding.figure(&format!("requests_per_second_{name}"), rate);
        finding.figure(&format!("p99_ms_{name}"), p99.round());
    }
    Ok(())
}

async fn in_a_row(port: u16, stop: CancellationToken) -> anyhow::Result<u64> {
    let (mut bytes, ports) = (0, [port]);
    while !stop.is_cancelled() {
        let seen = tokio::select! {
            seen = download(&ports, BULK_BYTES, false, None) => seen?,
            () = stop.cancelled() => return Ok(bytes.max(1)),
        };
        anyhow::ensure!(seen.is_whole && seen.bytes == BULK_BYTES, "{seen:?}");
        bytes += seen.bytes;
    }
    Ok(bytes)
}

pub(super) async fn pipes_lose_their_broker(
    _: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut broker = TestBroker::start().await;
    let stand = start(directory, &broker.url()).await?;
    let port = stand.port;
    let downloads = tokio::spawn(async move { slow_downloads(port, 4).await });
    let stop = CancellationToken::new();
    let socket = async move { chat(&[port], Duration::from_millis(20), stop).await };
    let socket = tokio::spawn(socket);
    tokio::time::sleep(MIDDLE).await;
    broker.kill9();
    let killed = Instant::now();
    let (whole, broken_off) = judge(finding, &downloads.await?);
    finding.promise((whole, broken_off) == (0, 4), || {
        format!("{whole} of 4 look whole, {broken_off} broke off")
    });
    let (_, end) = socket.await??;
    finding.promise(matches!(end, SocketEnd::Closed(1_012) | SocketEnd::Cut), || {
        format!("the WebSocket: {end:?}")
    });
    let took = killed.elapsed();
    finding.figure("noticed_after_ms", u64::try_from(took.as_millis())?);
    finding.promise(took < Duration::from_secs(10), || format!("noticed after {took:?}"));
    stand.all_let_go().await;
    broker.start_again().await;
    streams_again(&stand, finding).await?;
    Ok(())
}

/// Waits until a new stream goes through.
async fn streams_again(stand: &Stand, finding: &mut Finding) -> anyhow::Result<()> {
    let begun = Instant::now();
    eventually(DEADLINE, async || match download(&[stand.port], 1 << 20, true, None).await {
        Ok(seen) if seen.is_whole && seen.bytes == 1 << 20 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    finding.figure("streams_again_after_ms", u64::try_from(begun.elapsed().as_millis())?);
    only_pipes(stand, finding).await
}

/// How many connections for pipes each broker has; `None` for one that is gone.
async fn pipe_connections(cluster: &Cluster) -> Vec<Option<usize>> {
    let counted = cluster.iter().map(async |broker| {
        let page = broker.monitor("/connz").await.ok()?;
        let connections = page["connections"].as_array()?;
        let names = connections.iter().filter_map(|connection| connection["name"].as_str());
        Some(names.filter(|name| name.contains(" pipes")).count())
    });
    join_all(counted).await
}

pub(super) async fn pipes_in_a_cluster(
    _: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3).await;
    let stand = start(directory, &cluster.url()).await?;
    let port = stand.port;
    // Two connections on three brokers: one of these carries neither.
    let downloads = tokio::spawn(async move { slow_downloads(port, 4).await });
    tokio::time::sleep(MIDDLE).await;
    let carried = pipe_connections(&cluster).await;
    let free = carried.iter().position(|count| *count == Some(0)).context("a broker without")?;
    cluster[free].kill9();
    let (whole, broken_off) = judge(finding, &downloads.await?);
    finding.promise((whole, broken_off) == (4, 0), || {
        format!("a broker without the pipe is lost: {whole} whole, {broken_off} broke off")
    });
    stand.all_let_go().await;
    streams_again(&stand, finding).await?;
    // Now one that carries it.
    let downloads = tokio::spawn(async move { slow_downloads(port, 4).await });
    tokio::time::sleep(MIDDLE).await;
    let carried = pipe_connections(&cluster).await;
    let used = carried.iter().position(|count| count.is_some_and(|count| count > 0));
    cluster[used.context("a broker of the pipe")?].kill9();
    let seen: Vec<anyhow::Result<Seen>> = downloads.await?;
    let (whole, broken_off) = judge(finding, &seen);
    finding.promise((whole, broken_off) == (0, 4), || {
        format!("a broker of the pipe is lost: {whole} whole, {broken_off} broke off")
    });
    stand.all_let_go().await;
    streams_again(&stand, finding).await?;
    Ok(())
}
