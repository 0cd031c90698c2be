//! Streams of every kind, while versions are switched and workers and gateways are replaced under
//! them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Size;
use super::client::{SocketEnd, chat, download, events};
use crate::Finding;
use crate::ledger::Ledger;
use crate::load::Load;
use crate::stand::{DEADLINE, PATIENT};
use crate::versions::fleet::{Fleet, ROUTE, is_done, until};

/// How often a client says something on its WebSocket, and how often an event comes.
const PAUSE: Duration = Duration::from_millis(50);
const EVENTS_MS: u64 = 50;

/// What a download takes: less than anybody waits for it who leaves, and more than is buffered.
const DOWNLOAD_BYTES: u64 = 6 << 20;
const DOWNLOAD_RATE: u32 = 8 << 20;

/// How long programs wait for streams when they leave, where there are all of them, and where there
/// is a part: the way there is what is proven, not the waiting, but many take some time to end.
const DRAIN: Duration = Duration::from_secs(10);
const SHORT_DRAIN: Duration = Duration::from_millis(2_500);

/// Everything goes on through switches, and through restarts of workers and gateways.
pub(super) async fn switches(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(directory, 0, PATIENT).await?;
    let drain = if size.percent < 100 { SHORT_DRAIN } else { DRAIN };
    let drain = format!("{}ms", drain.as_millis());
    fleet.environment.push(("NATSWAY_DRAIN_TIMEOUT", drain.clone()));
    fleet.environment.push(("NATSWAY_WORKER_DRAIN_TIMEOUT", drain));
    for _ in 0..2 {
        fleet.add_gateway(None).await;
    }
    for version in ["blue", "green"] {
        fleet.add_workers(version, size.share(2), None).await;
    }
    let load = Load::start_across(&fleet.ports(), size.connections, size.seed, 0);
    let crowd = Crowd::start(size, &fleet.ports());
    let restarts = replace_everything(size, &mut fleet, &load, finding).await?;
    load.reach(size.requests).await;
    crowd.end(finding).await?;
    let tally = load.stop().await;
    std::fs::write(directory.join("outcomes.csv"), tally.csv())?;
    finding.figure("switches", size.switches);
    finding.figure("gateway_restarts", restarts);
    finding.figure("requests", tally.outcomes.len());
    finding.figure("failed", tally.failed().len());
    finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
    let repeated = Ledger::read(&fleet.run_logs()?)?.repeated_posts(&tally);
    finding.promise(repeated == 0, || format!("{repeated} POSTs ran more than once"));
    fleet.all_let_go().await;
    Ok(())
}

/// Switches to and fro. After each switch the version that was left has its workers replaced, and
/// one of the gateways is restarted in turn.
async fn replace_everything(
    size: &Size,
    fleet: &mut Fleet,
    load: &Load,
    finding: &mut Finding,
) -> anyhow::Result<usize> {
    let mut documents = fleet.documents().await?;
    for switch in 0..size.switches {
        let (from, to) = if switch % 2 == 0 { ("blue", "green") } else { ("green", "blue") };
        fleet.start_rollout(to, &["--strategy", "blue-green"]).await?;
        until(&mut documents, |rollout| rollout["phase"] == "checking").await?;
        let ended =
            until(&mut documents, |rollout| is_done(rollout["phase"].as_str().unwrap_or_default()));
        let rollout = ended.await.with_context(|| format!("switch {switch} of {ROUTE}"))?;
        finding.promise(rollout["phase"] == "promoted", || format!("switch {switch}: {rollout}"));
        fleet.restart_workers(from).await?;
        load.more(size.connections).await;
        let index = switch % 2;
        fleet.gateways[index].process.terminate();
        let status = fleet.gateways[index].process.wait_exit(DEADLINE).await;
        finding.promise(status.success(), || format!("a gateway left with {status}"));
        fleet.start_again(index).await;
        load.more(size.connections).await;
    }
    Ok(size.switches)
}

/// Clients with a stream each, one after the other: whoever is told to come again does.
struct Crowd {
    sockets: Vec<JoinHandle<Streamed>>,
    events: Vec<JoinHandle<Streamed>>,
    downloads: Vec<JoinHandle<Streamed>>,
    stop: CancellationToken,
}

/// What one client saw.
#[derive(Default)]
struct Streamed {
    /// Streams that were complete, or ended as they say.
    ended: usize,
    /// Messages, events or bytes.
    pieces: u64,
    /// The others.
    broken: Vec<String>,
}

impl Crowd {
    fn start(size: &Size, ports: &[u16]) -> Self {
        let stop = CancellationToken::new();
        // Half of them try the one gateway first, and half the other.
        let ports_of = |number: usize| -> Arc<[u16]> {
            let first = number % ports.len();
            [&ports[first..], &ports[..first]].concat().into()
        };
        let sockets = (0..size.share(200))
            .map(|number| tokio::spawn(sockets_in_a_row(ports_of(number), stop.clone())));
        let events = (0..size.share(100))
            .map(|number| tokio::spawn(events_in_a_row(ports_of(number), stop.clone())));
        let downloads = (0..size.share(20).max(4))
            .map(|number| tokio::spawn(downloads_in_a_row(ports_of(number), stop.clone())));
        Self {
            sockets: sockets.collect(),
            events: events.collect(),
            downloads: downloads.collect(),
            stop,
        }
    }

    async fn end(self, finding: &mut Finding) -> anyhow::Result<()> {
        self.stop.cancel();
        for (name, clients) in
            [("sockets", self.sockets), ("events", self.events), ("downloads", self.downloads)]
        {
            let mut sum = Streamed::default();
            let count = clients.len();
            for client in join_all(clients).await {
                let client = client?;
                sum.ended += client.ended;
                sum.pieces += client.pieces;
                sum.broken.extend(client.broken);
            }
            finding.figure(name, count);
            finding.figure(&format!("{name}_ended"), sum.ended);
            finding.figure(&format!("{name}_pieces"), sum.pieces);
            finding.figure(&format!("{name}_broken"), sum.broken.len());
            finding.promise(sum.broken.is_empty(), || {
                let first = &sum.broken[..sum.broken.len().min(3)];
                format!("{} of {name} ended otherwise: {first:?}", sum.broken.len())
            });
            // Each had one at least, and was told to come again now and then.
            finding.promise(sum.ended > count, || format!("{} {name} ended", sum.ended));
        }
        Ok(())
    }
}

impl Streamed {
    /// Takes note of a stream, and waits a moment before the next if it was none.
    async fn note(&mut self, pieces: u64, broken: Option<String>) {
        self.pieces += pieces;
        match broken {
            None => self.ended += 1,
            Some(how) => {
                self.broken.push(how);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn sockets_in_a_row(ports: Arc<[u16]>, stop: CancellationToken) -> Streamed {
    let mut streamed = Streamed::default();
    while !stop.is_cancelled() {
        match chat(&ports, PAUSE, stop.clone()).await {
            Ok((messages, SocketEnd::Closed(1_000 | 1_001 | 1_012))) => {
                streamed.note(messages as u64, None).await;
            }
            other => streamed.note(0, Some(format!("{other:?}"))).await,
        }
    }
    streamed
}

async fn events_in_a_row(ports: Arc<[u16]>, stop: CancellationToken) -> Streamed {
    let mut streamed = Streamed::default();
    loop {
        let seen = tokio::select! {
            seen = events(&ports, None, EVENTS_MS) => seen,
            () = stop.cancelled() => return streamed,
        };
        match seen {
            Ok(seen) if seen.is_whole && seen.is_in_order => streamed.note(seen.count, None).await,
            other => streamed.note(0, Some(format!("{other:?}"))).await,
        }
    }
}

async fn downloads_in_a_row(ports: Arc<[u16]>, stop: CancellationToken) -> Streamed {
    let mut streamed = Streamed::default();
    while !stop.is_cancelled() {
        let is_chunked = fastrand::bool();
        match download(&ports, DOWNLOAD_BYTES, is_chunked, Some(DOWNLOAD_RATE)).await {
            Ok(seen) if seen.is_complete(DOWNLOAD_BYTES) => streamed.note(seen.bytes, None).await,
            other => streamed.note(0, Some(format!("{other:?}"))).await,
        }
    }
    streamed
}
