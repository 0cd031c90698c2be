//! Streams: bodies of any size, event streams and WebSockets over tunnels, whole or visibly broken
//! off whatever fails, and none of them at the cost of the others.

mod attacks;
pub(crate) mod client;
mod crowd;
mod crowded;
mod cut_off;
mod foreign;
mod frozen;
mod pipe;
mod slow_paths;
mod soak;
mod switches;

use std::path::Path;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use http::{Method, StatusCode};
use natsway_testkit::TestBroker;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::attacks::{half_opened, strangers, taps};
use self::client::{SocketEnd, chat, download, events, read, upload};
use self::crowded::{idle_sockets, nuisances, stopped_readers};
use self::cut_off::cut_off;
use self::foreign::foreign_worker;
use self::frozen::frozen;
use self::pipe::{by_pipes, pipes_in_a_cluster, pipes_lose_their_broker};
use self::slow_paths::slow_paths;
use self::soak::soak;
use self::switches::switches;
use super::load::Load;
use super::scenario::{Scenario, run, scenario};
use super::stand::{PATIENT, Stand};
use super::{Finding, Report};

/// How large the proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of what is chosen by chance
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// Requests that a load beside streams makes at the least
    #[arg(long, env = "REQUESTS", default_value = "10000")]
    pub requests: usize,

    /// How often each scenario repeats its faults
    #[arg(long, env = "ROUNDS", default_value = "3")]
    pub rounds: usize,

    /// Connections of a load beside streams
    #[arg(long, env = "CONNECTIONS", default_value = "32")]
    pub connections: usize,

    /// How long what is frozen stays so, in seconds; a tunnel is lost after 20
    #[arg(long, env = "FROZEN_SECONDS", default_value = "25")]
    pub frozen_seconds: u64,

    /// Switches between two versions under streams
    #[arg(long, env = "SWITCHES", default_value = "20")]
    pub switches: usize,

    /// Downloads of the soak
    #[arg(long, env = "DOWNLOADS", default_value = "50000")]
    pub downloads: usize,

    /// The part of each crowd of clients that there is, of 100
    #[arg(long, env = "PERCENT", default_value = "100")]
    pub percent: usize,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

/// Sizes around what travels in one message, and beyond every window.
const SIZES: [u64; 8] = [0, 1, 65_535, 65_536, 65_537, 262_145, 1 << 20, 20 << 20];

impl Size {
    /// The clients that there are of a crowd of so many.
    fn share(&self, clients: usize) -> usize {
        (clients * self.percent / 100).max(1)
    }
}

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 20] = [
    scenario!(intact, "bodies of any size go up and down as they are, beside each other"),
    scenario!(
        worker_killed,
        "one of two workers is killed under downloads: each is whole or visibly broken off"
    ),
    scenario!(
        gateway_killed,
        "the gateway is killed under downloads: none looks whole that is not, and workers let go"
    ),
    scenario!(broker_killed, "the broker is killed under streams: all of them go on to their end"),
    scenario!(
        frozen,
        "worker, gateway, broker or the way between them stand still: whole or visibly broken off"
    ),
    scenario!(
        rolling_restart,
        "workers are replaced under streams and load: no request fails, all end whole or announced"
    ),
    scenario!(
        switches,
        "versions switch, programs restart: streams end whole or announced, no request fails"
    ),
    scenario!(
        strangers,
        "connections of strangers at the tunnels' address are no tunnels, and cost no stream"
    ),
    scenario!(
        half_opened,
        "thousands of connections stop at each step of an opening: a worker gets its tunnel"
    ),
    scenario!(taps, "who hears requests, and answers too, and dials with that has no tunnel"),
    scenario!(
        foreign_worker,
        "a worker that answers in every wrong way gets no stream of others, and ends none"
    ),
    scenario!(
        cut_off,
        "a gateway without its broker keeps its streams through a switch, and opens none"
    ),
    scenario!(
        stopped_readers,
        "400 readers of 1 GiB stop: the gateway stays below 300 MiB, and others are served"
    ),
    scenario!(idle_sockets, "an idle WebSocket costs the gateway at most 32 KiB"),
    scenario!(
        nuisances,
        "slow clients, single bytes, empty frames and cancels by the hundred: no other stream \
         suffers"
    ),
    scenario!(
        slow_paths,
        "workers are 20, 50 and 100 ms away, also by 10 Mbit/s: rates and waits, by the window"
    ),
    scenario!(
        soak,
        "downloads of mixed sizes by the ten thousand: each is whole, and nothing is left behind"
    ),
    scenario!(
        by_pipes,
        "workers that do not dial: streams go whole by the broker, beside small requests"
    ),
    scenario!(
        pipes_lose_their_broker,
        "the broker is killed under pipes: their streams break off visibly, and new ones go"
    ),
    scenario!(
        pipes_in_a_cluster,
        "a broker of three is killed: a pipe elsewhere goes on, its own breaks and is replaced"
    ),
];

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    run("streams", (size.seed, &size.only), size, &SCENARIOS).await
}

async fn intact(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 2).await?;
    let ports = [stand.port];
    let mut transfers = 0;
    for round in 0..size.rounds {
        for bytes in SIZES {
            for is_chunked in [false, true] {
                let downloads = (0..4).map(|_| download(&ports, bytes, is_chunked, None));
                for seen in try_join_all(downloads).await? {
                    transfers += 1;
                    finding.promise(seen.is_complete(bytes), || {
                        format!("round {round}, {bytes} bytes, chunked {is_chunked}: {seen:?}")
                    });
                    let said = seen.headers.get("content-length").and_then(|v| v.to_str().ok());
                    let expected = Some(bytes.to_string()).filter(|_| !is_chunked || bytes == 0);
                    // What is small is whole when it is sent, so its length is known in any case.
                    let is_small = bytes <= 65_536;
                    finding.promise(said == expected.as_deref() || is_small, || {
                        format!("{bytes} bytes, chunked {is_chunked}: length {said:?}")
                    });
                }
                let uploads = (0..4).map(|_| upload(&ports, bytes, is_chunked, None));
                for arrived in try_join_all(uploads).await? {
                    transfers += 1;
                    let is_complete = arrived.is_complete(bytes);
                    finding.promise(is_complete, || format!("{arrived:?} of {bytes} bytes"));
                }
            }
        }
        let path = format!("/download?bytes={}", 1_u64 << 30);
        let head = read(&ports, Method::HEAD, &path, None).await?;
        let said = head.headers.get("content-length").and_then(|value| value.to_str().ok());
        finding.promise(head.bytes == 0 && said == Some("1073741824"), || {
            format!("HEAD of a large body: {head:?}")
        });
        let events = events(&ports, Some(20), 5).await?;
        let is_complete = events.is_whole && events.is_in_order && events.count == 20;
        finding.promise(is_complete, || format!("events: {events:?}"));
    }
    finding.figure("transfers", transfers);
    stand.all_let_go().await;
    Ok(())
}

/// Starts downloads that take a while, in both forms.
async fn slow_downloads(port: u16, count: usize) -> Vec<anyhow::Result<client::Seen>> {
    let ports = [port];
    let downloads =
        (0..count).map(|number| download(&ports, SLOW_BYTES, number % 2 == 0, Some(SLOW_RATE)));
    join_all(downloads).await
}

/// Cut in the middle: it takes four seconds to read, and is more than all buffers on the way hold.
const SLOW_BYTES: u64 = 64 << 20;
const SLOW_RATE: u32 = 16 << 20;

/// When it is cut.
const MIDDLE: Duration = Duration::from_millis(1_000);

fn judge(finding: &mut Finding, seen: &[anyhow::Result<client::Seen>]) -> (usize, usize) {
    let (mut whole, mut broken_off) = (0, 0);
    for seen in seen {
        match seen {
            Ok(seen) if seen.status == StatusCode::OK => {
                finding.promise(seen.is_honest(SLOW_BYTES), || format!("not honest: {seen:?}"));
                match seen.is_whole {
                    true => whole += 1,
                    false => broken_off += 1,
                }
            }
            Ok(seen) => {
                let is_error = seen.status.is_server_error();
                finding.promise(is_error, || format!("neither a body nor an error: {seen:?}"));
                broken_off += 1;
            }
            // The connection ended before there was a head.
            Err(_) => broken_off += 1,
        }
    }
    finding.figure("whole", whole);
    finding.figure("broken_off", broken_off);
    (whole, broken_off)
}

async fn worker_killed(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 2).await?;
    let port = stand.port;
    let downloads = tokio::spawn(async move { slow_downloads(port, 8).await });
    tokio::time::sleep(MIDDLE).await;
    let mut victim = stand.workers.remove(0);
    victim.kill9();
    let (whole, broken_off) = judge(finding, &downloads.await?);
    finding.promise(broken_off > 0, || "the killed worker had no stream".to_owned());
    finding.promise(whole > 0, || "the other worker's streams did not go on".to_owned());
    stand.all_let_go().await;
    let after = download(&[port], 1 << 20, false, None).await?;
    finding.promise(after.is_whole, || format!("afterwards: {after:?}"));
    finding.figure("seed", size.seed);
    Ok(())
}

async fn gateway_killed(_: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 1).await?;
    let port = stand.port;
    let downloads = tokio::spawn(async move { slow_downloads(port, 8).await });
    tokio::time::sleep(MIDDLE).await;
    stand.gateway.kill9();
    let (whole, broken_off) = judge(finding, &downloads.await?);
    finding.promise(whole == 0 && broken_off == 8, || format!("{whole} look whole"));
    // A worker whose streams went nowhere leaves at once: nothing holds it.
    let started = std::time::Instant::now();
    stand.retire_worker(0).await?;
    finding.figure("worker_left_ms", u64::try_from(started.elapsed().as_millis())?);
    Ok(())
}

async fn broker_killed(_: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let mut broker = TestBroker::start().await;
    let stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 1).await?;
    let port = stand.port;
    let downloads = tokio::spawn(async move { slow_downloads(port, 4).await });
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    let socket = async move { chat(&[port], Duration::from_millis(20), cancelled).await };
    let socket = tokio::spawn(socket);
    tokio::time::sleep(MIDDLE).await;
    broker.kill9();
    let (whole, _) = judge(finding, &downloads.await?);
    finding.promise(whole == 4, || format!("{whole} of 4 downloads went on to their end"));
    stop.cancel();
    let (messages, end) = socket.await??;
    finding.figure("messages", messages);
    finding.promise(end == SocketEnd::Closed(1_000), || format!("the WebSocket: {end:?}"));
    Ok(())
}

async fn rolling_restart(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = Stand::start(directory, &broker.url(), &broker.url(), PATIENT, 2).await?;
    let port = stand.port;
    let load = Load::start(port, size.connections, size.seed);
    let stop = CancellationToken::new();
    let rows = Rows::start(port, 20, 10, &stop);
    let downloads = tokio::spawn(async move { slow_downloads(port, 8).await });
    for step in 0..2 * size.rounds {
        load.reach((step + 1) * size.requests / (2 * size.rounds + 1)).await;
        stand.retire_worker(0).await?;
        stand.add_worker();
        stand.members(2).await;
    }
    load.reach(size.requests).await;
    stop.cancel();
    rows.judge(finding, 0).await?;
    judge(finding, &downloads.await?);
    let tally = load.stop().await;
    finding.figure("requests", tally.outcomes.len());
    finding.figure("failed", tally.failed().len());
    finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
    stand.all_let_go().await;
    Ok(())
}

/// The messages of WebSockets, and how each of these ended.
type Chats = (usize, Vec<SocketEnd>);

/// WebSockets and event streams, each opened anew when it ends, until they are told to stop.
pub(crate) struct Rows {
    sockets: Vec<JoinHandle<anyhow::Result<Chats>>>,
    events: Vec<JoinHandle<anyhow::Result<EventsRow>>>,
}

impl Rows {
    /// Starts so many of each.
    pub(crate) fn start(
        port: u16,
        sockets: usize,
        events: usize,
        stop: &CancellationToken,
    ) -> Self {
        let socket = |_| tokio::spawn(sockets_in_a_row(port, stop.clone()));
        let event = |_| tokio::spawn(events_in_a_row(port, stop.clone()));
        Self {
            sockets: (0..sockets).map(socket).collect(),
            events: (0..events).map(event).collect(),
        }
    }

    /// Judges how they ended, once they have stopped: announced, but for as many as were `held` by
    /// what was hit.
    pub(crate) async fn judge(self, finding: &mut Finding, held: usize) -> anyhow::Result<()> {
        let (mut messages, mut closed, mut cut) = (0, 0, Vec::new());
        for socket in self.sockets {
            let (sent, ends) = socket.await??;
            messages += sent;
            closed += ends.len();
            cut.extend(
                ends.into_iter().filter(|end| !matches!(end, SocketEnd::Closed(1_000 | 1_012))),
            );
        }
        let (mut events, mut events_broken) = (0, 0);
        for row in self.events {
            let row = row.await??;
            events += row.ended;
            events_broken += row.broken;
        }
        finding.figure("messages", messages);
        finding.figure("sockets_closed", closed);
        finding.figure("event_streams_ended", events);
        finding.figure("streams_broken_off", cut.len() + events_broken);
        finding.promise(cut.len() + events_broken <= held, || {
            format!(
                "{held} streams were held by what was hit, and {events_broken} event streams broke \
                 off, WebSockets ended by {cut:?}"
            )
        });
        Ok(())
    }
}

/// How the event streams of a row ended.
#[derive(Default)]
struct EventsRow {
    /// Between two events, as documented.
    ended: usize,
    broken: usize,
}

/// Opens WebSockets one after the other, as a client does that connects again.
async fn sockets_in_a_row(port: u16, stop: CancellationToken) -> anyhow::Result<Chats> {
    let (mut messages, mut ends) = (0, Vec::new());
    while !stop.is_cancelled() {
        let (sent, end) = chat(&[port], Duration::from_millis(50), stop.clone()).await?;
        messages += sent;
        ends.push(end);
    }
    Ok((messages, ends))
}

/// Reads events, connecting again when they end.
async fn events_in_a_row(port: u16, stop: CancellationToken) -> anyhow::Result<EventsRow> {
    let (mut row, ports) = (EventsRow::default(), [port]);
    loop {
        tokio::select! {
            seen = events(&ports, None, 20) => {
                let seen = seen?;
                match seen.is_whole && seen.is_in_order {
                    true => row.ended += 1,
                    false => row.broken += 1,
                }
            }
            () = stop.cancelled() => return Ok(row),
        }
    }
}
