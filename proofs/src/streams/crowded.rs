//! Many clients that do nothing, and clients that do everything badly: what they cost, and what
//! others notice of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::join_all;
use http::Method;
use natsway_testkit::http2::{self, PREFACE, flag, frame, kind, settings};
use natsway_testkit::{TestBroker, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Size;
use super::client::{Events, SocketEnd, chat, connect, download, events, read, socket};
use crate::stand::{DEADLINE, Extras, PATIENT, Stand, memory};
use crate::{Finding, Transport};

/// What readers ask for and do not read.
const STOPPED_BYTES: u64 = 1 << 30;

/// What the kernel holds for each of them; it doubles this.
const STOPPED_BUFFER_BYTES: u32 = 32 << 10;

/// What 400 of them may have a gateway take.
const STOPPED_LIMIT_MIB: usize = 300;

/// What an idle WebSocket may cost a gateway.
const IDLE_LIMIT_BYTES: usize = 32 << 10;

/// What clients may have a worker take whose bodies nobody reads.
const UNREAD_LIMIT_MIB: usize = 64;

const MORE_STREAMS: Extras<'static> = Extras {
    gateway: &["--max-streams", "4096", "--shards", "2"],
    worker: &["--max-streams", "4096"],
    routes: "",
    transport: Transport::Broker,
};

async fn stand(broker: &TestBroker, directory: &Path, extras: Extras<'_>) -> anyhow::Result<Stand> {
    let urls = (&*broker.url(), &*broker.url());
    Stand::start_with(directory, urls, PATIENT, 1, extras).await
}

/// Waits until the gateway has so many streams.
async fn streams_open(stand: &Stand, streams: usize) {
    eventually(DEADLINE, async || {
        let sample = r#"natsway_streams_open{route="prove",version="blue"}"#;
        match stand.metric(sample).await {
            Ok(open) if open == streams as f64 => Ok(()),
            other => Err(format!("{other:?} of {streams} streams")),
        }
    })
    .await;
}

/// Waits until the gateway's memory grows no more: what comes for readers that stopped has come.
async fn settled(stand: &Stand) {
    const STILL: Duration = Duration::from_secs(1);
    let (mut last, mut since) = (0, Instant::now());
    eventually(DEADLINE, async || {
        let resident = memory(&stand.gateway).map_err(|error| error.to_string())?.resident;
        if resident.abs_diff(last) > 1 << 20 {
            (last, since) = (resident, Instant::now());
        }
        if since.elapsed() > STILL { Ok(()) } else { Err(format!("{resident} bytes")) }
    })
    .await;
}

/// Each asks for a gigabyte and reads nothing of it.
pub(super) async fn stopped_readers(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = stand(&broker, directory, MORE_STREAMS).await?;
    let ports = [stand.port];
    download(&ports, 1 << 20, false, None).await?;
    let before = memory(&stand.gateway)?.resident;
    let readers = size.share(400);
    let mut stopped = Vec::new();
    for _ in 0..readers {
        // What the kernel takes for them is not read either, and would only take long to fill.
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(STOPPED_BUFFER_BYTES)?;
        let mut stream = socket.connect(([127, 0, 0, 1], stand.port).into()).await?;
        let request = format!("GET /download?bytes={STOPPED_BYTES} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stopped.push(stream);
    }
    streams_open(&stand, readers).await;
    settled(&stand).await;
    let began = Instant::now();
    let mut beside = Vec::new();
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        let seen = download(&ports, 1 << 20, false, None).await?;
        finding.promise(seen.is_complete(1 << 20), || format!("beside them: {seen:?}"));
        beside.push(asked.elapsed());
    }
    let after = memory(&stand.gateway)?.resident;
    let worker = memory(&stand.workers[0])?.resident;
    beside.sort_unstable();
    finding.figure("readers", readers);
    finding.figure("gateway_mib", after >> 20);
    finding.figure("gateway_kib_each", (after.saturating_sub(before) / readers) >> 10);
    finding.figure("worker_mib", worker >> 20);
    finding.figure("beside_median_ms", ms(beside[beside.len() / 2]));
    finding.promise(after >> 20 < STOPPED_LIMIT_MIB, || format!("{} MiB", after >> 20));
    drop(stopped);
    stand.all_let_go().await;
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

/// WebSockets on which nobody says anything.
pub(super) async fn idle_sockets(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = stand(&broker, directory, MORE_STREAMS).await?;
    let ports = [stand.port];
    // What the first ones cost is not theirs.
    let mut sockets = Vec::new();
    for _ in 0..16 {
        sockets.push(socket(&ports).await?);
    }
    let before = memory(&stand.gateway)?.resident;
    let count = size.share(1_500);
    for _ in 0..count {
        sockets.push(socket(&ports).await?);
    }
    streams_open(&stand, sockets.len()).await;
    let after = memory(&stand.gateway)?.resident;
    let each = after.saturating_sub(before) / count;
    finding.figure("sockets", sockets.len());
    finding.figure("gateway_bytes_each", each);
    finding.figure("worker_mib", memory(&stand.workers[0])?.resident >> 20);
    finding.promise(each <= IDLE_LIMIT_BYTES, || format!("{each} bytes each"));
    drop(sockets);
    stand.all_let_go().await;
    Ok(())
}

const ASK_FOR_SOCKET: &str = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n\
     upgrade: websocket\r\nsec-websocket-version: 13\r\n\
     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What a client does that is no good one.
#[derive(Clone, Copy, Debug)]
enum Nuisance {
    /// It reads a few KiB each second.
    SlowReader,
    /// It writes a byte now and then.
    SlowWriter,
    /// It writes single bytes as fast as it can, to a handler that does not read.
    Bytes,
    /// It writes frames without a byte, by HTTP/2.
    EmptyFrames,
    /// It asks and leaves at once, again and again.
    Cancels,
    /// It sends the shortest messages of a WebSocket that sends them back, and reads nothing.
    Messages,
    /// The same by HTTP/2, each byte in a frame of its own.
    SocketFrames,
}

impl Nuisance {
    const ALL: [Self; 7] = [
        Self::SlowReader,
        Self::SlowWriter,
        Self::Bytes,
        Self::EmptyFrames,
        Self::Cancels,
        Self::Messages,
        Self::SocketFrames,
    ];

    /// The shortest message of a WebSocket, as clients send it: masked by nothing.
    const MESSAGE: [u8; 7] = [0x82, 0x81, 0, 0, 0, 0, b'x'];

    /// What a client may send of one stream of HTTP/2 before the gateway has said anything.
    const FIRST_WINDOW_BYTES: usize = 65_535;

    /// Does it until the connection is closed.
    async fn go(self, port: u16) -> anyhow::Result<()> {
        const POST: &str = "POST /upload HTTP/1.1\r\nhost: a\r\n";
        let mut stream = connect(&[port]).await?;
        match self {
            Self::SlowReader => {
                drop(stream);
                download(&[port], STOPPED_BYTES, true, Some(16 << 10)).await?;
            }
            Self::SlowWriter => {
                let head = format!("{POST}content-length: {STOPPED_BYTES}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                loop {
                    stream.write_all(b"x").await?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Self::Bytes => {
                // That its client is gone cannot be seen behind what nobody reads, so not for long.
                let head = b"POST /slow?ms=3000 HTTP/1.1\r\nhost: a\r\n\
                             transfer-encoding: chunked\r\n\r\n";
                stream.write_all(head).await?;
                let chunks = b"1\r\nx\r\n".repeat(1_000);
                loop {
                    stream.write_all(&chunks).await?;
                }
            }
            Self::EmptyFrames => {
                let post = http2::request("POST", "/upload");
                let mut begin = [PREFACE, &settings(&[])].concat();
                begin.extend(frame(kind::HEADERS, flag::END_HEADERS, 1, &post));
                stream.write_all(&begin).await?;
                loop {
                    let full = frame(kind::DATA, 0, 1, &[b'x'; 1_000]);
                    let empty = frame(kind::DATA, 0, 1, &[]).repeat(10);
                    stream.write_all(&[full, empty].concat()).await?;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Self::Messages => {
                stream.write_all(ASK_FOR_SOCKET.as_bytes()).await?;
                let messages = Self::MESSAGE.repeat(1_000);
                loop {
                    stream.write_all(&messages).await?;
                }
            }
            Self::SocketFrames => {
                let mut ask = http2::request("CONNECT", "/ws");
                http2::put_field(&mut ask, false, ":protocol", "websocket");
                http2::put_field(&mut ask, false, "sec-websocket-version", "13");
                let mut begin = [PREFACE, &settings(&[])].concat();
                begin.extend(frame(kind::HEADERS, flag::END_HEADERS, 1, &ask));
                stream.write_all(&begin).await?;
                let bytes = Self::MESSAGE.iter().cycle().take(Self::FIRST_WINDOW_BYTES);
                let frames: Vec<u8> =
                    bytes.flat_map(|byte| frame(kind::DATA, 0, 1, &[*byte])).collect();
                for some in frames.chunks(64 << 10) {
                    stream.write_all(some).await?;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Self::Cancels => {
                let request = format!("GET /download?bytes={STOPPED_BYTES} HTTP/1.1\r\n");
                stream.write_all(format!("{request}host: a\r\n\r\n").as_bytes()).await?;
                if fastrand::bool() {
                    // Its answer has begun.
                    stream.read_u8().await?;
                }
            }
        }
        Ok(())
    }
}

/// All of them at once, while a few clients use streams as they are meant: those notice nothing,
/// and no tunnel ends.
pub(super) async fn nuisances(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let stand = stand(&broker, directory, MORE_STREAMS).await?;
    let witnesses = Witnesses::start(&stand).await?;
    let tunnels = stand.metric("natsway_tunnels_opened_total").await?;
    let port = stand.port;
    let nuisances: Vec<_> = (0..size.share(100).max(10))
        .map(|number| {
            let nuisance = Nuisance::ALL[number % Nuisance::ALL.len()];
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    // That it is cut off is its own affair.
                    nuisance.go(port).await.ok();
                }
            }))
        })
        .collect();
    let slowest = witnesses.use_streams(size.rounds, finding).await?;
    finding.figure("slowest_ms", ms(slowest));
    finding.figure("nuisances", nuisances.len());
    let worker = memory(&stand.workers[0])?.peak >> 20;
    finding.figure("worker_peak_mib", worker);
    finding.figure("gateway_peak_mib", memory(&stand.gateway)?.peak >> 20);
    finding.promise(worker < UNREAD_LIMIT_MIB, || format!("the worker took {worker} MiB"));
    drop(nuisances);
    let after = stand.metric("natsway_tunnels_opened_total").await?;
    finding.promise(after == tunnels, || format!("of {tunnels} tunnels {after} were opened"));
    stand.all_let_go().await;
    Ok(())
}

/// Clients that use streams as they are meant.
struct Witnesses {
    port: u16,
    events: Vec<JoinHandle<anyhow::Result<Events>>>,
    sockets: Vec<JoinHandle<anyhow::Result<(usize, SocketEnd)>>>,
    stop: CancellationToken,
}

impl Witnesses {
    const EVENTS_MS: u64 = 10;

    /// Starts so many that each thread of the gateway has some.
    async fn start(stand: &Stand) -> anyhow::Result<Self> {
        let (port, stop) = (stand.port, CancellationToken::new());
        let events = (0..4)
            .map(|_| tokio::spawn(async move { events(&[port], None, Self::EVENTS_MS).await }));
        let events: Vec<_> = events.collect();
        streams_open(stand, events.len()).await;
        let sockets = (0..4).map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move { chat(&[port], Duration::from_millis(5), stop).await })
        });
        let sockets: Vec<_> = sockets.collect();
        streams_open(stand, events.len() + sockets.len()).await;
        Ok(Self { port, events, sockets, stop })
    }

    /// Downloads and asks for a few seconds, and returns the longest that either took.
    async fn use_streams(self, rounds: usize, finding: &mut Finding) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let (mut slowest, mut downloads, mut failed) = (Duration::ZERO, 0, Vec::new());
        while began.elapsed() < Duration::from_secs(2 * rounds as u64) {
            let asked = Instant::now();
            let seen = download(&[self.port], 1 << 20, downloads % 2 == 0, None).await;
            let small = read(&[self.port], Method::GET, "/", None).await;
            slowest = slowest.max(asked.elapsed());
            downloads += 1;
            match (seen, small) {
                (Ok(seen), Ok(small)) if seen.is_complete(1 << 20) && small.is_whole => {}
                other => failed.push(format!("{other:?}")),
            }
        }
        finding.figure("downloads", downloads);
        finding.promise(failed.is_empty(), || {
            format!("{} of {downloads}: {}", failed.len(), failed[0])
        });
        for stream in &self.events {
            finding.promise(!stream.is_finished(), || "a stream of events ended".to_owned());
            stream.abort();
        }
        self.stop.cancel();
        let mut messages = 0;
        for socket in join_all(self.sockets).await {
            let (sent, end) = socket??;
            messages += sent;
            finding.promise(end == SocketEnd::Closed(1_000), || format!("a WebSocket: {end:?}"));
        }
        ensure!(messages > 0, "nothing was said");
        finding.figure("messages", messages);
        Ok(slowest)
    }
}
