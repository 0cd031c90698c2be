//! Workers far from their gateway: how fast a body goes, and what a small message waits beside it,
//! by the window that is set. A measurement: what it says of rates is for reading, not for
//! judging.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http::Method;
use natsway_testkit::{LinkShape, TcpLink, TestBroker, free_port};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::Size;
use super::client::{download, read, socket, upload};
use crate::Finding;
use crate::stand::{Extras, PATIENT, Stand};

const ROUND_TRIPS_MS: [u64; 3] = [20, 50, 100];
const WINDOWS: [u64; 3] = [256 << 10, 1 << 20, 4 << 20];

/// 10 Mbit/s.
const NARROW: u64 = 10_000_000 / 8;

/// Messages of each measurement.
const ECHOES: usize = 60;

/// One path and one window.
#[derive(Debug, Serialize)]
struct Measured {
    round_trip_ms: u64,
    mbit_per_second: Option<u64>,
    window_kib: u64,
    down_mib_per_second: f64,
    up_mib_per_second: f64,
    /// A message and its echo on a WebSocket that shares the tunnel.
    echo_ms: Quantiles,
    echo_beside_download_ms: Quantiles,
    /// A request that goes by the broker, over a way of the same delay.
    request_ms: Quantiles,
    request_beside_download_ms: Quantiles,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    median: f64,
    p99: f64,
}

impl Quantiles {
    fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let ms = |duration: Duration| (duration.as_secs_f64() * 1e4).round() / 10.0;
        Self { median: ms(took[took.len() / 2]), p99: ms(took[took.len() * 99 / 100]) }
    }
}

/// Every path with every window; the short form takes one of each.
pub(super) async fn slow_paths(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut measured = Vec::new();
    for rate in [None, Some(NARROW)] {
        for round_trip in ROUND_TRIPS_MS {
            for window in WINDOWS {
                if size.percent < 100 && !measured.is_empty() {
                    continue;
                }
                let row = measure(directory, round_trip, rate, window, finding).await?;
                eprintln!("  {}", serde_json::to_string(&row)?);
                measured.push(row);
            }
        }
    }
    finding.figure("paths", serde_json::to_value(measured)?);
    Ok(())
}

async fn measure(
    directory: &Path,
    round_trip_ms: u64,
    rate: Option<u64>,
    window: u64,
    finding: &mut Finding,
) -> anyhow::Result<Measured> {
    let way = LinkShape::delayed(Duration::from_millis(round_trip_ms) / 2);
    let shape = rate.map_or(way, |rate| way.with_rate(rate));
    let broker = TestBroker::start().await;
    let to_broker = TcpLink::to_port(broker.port()).await;
    let port = free_port();
    let tunnels = TcpLink::to_port(port).await;
    let (listen, address) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", tunnels.port()));
    let window_text = window.to_string();
    let gateway = [
        &["--tunnel-listen", &*listen, "--tunnel-address", &*address][..],
        &["--tunnel-window", &*window_text, "--shards", "1"],
    ]
    .concat();
    let worker = ["--tunnel-window", &*window_text];
    let extras = Extras { gateway: &gateway, worker: &worker, ..Extras::default() };
    let urls = (&*to_broker.url(), &*broker.url());
    let stand = Stand::start_with(directory, urls, PATIENT, 1, extras).await?;
    to_broker.shape(way);
    tunnels.shape(shape);
    let ports = [stand.port];

    let mut echo = socket(&ports).await?;
    let echo_ms = Quantiles::of(echoes(&mut echo).await?);
    let request_ms = Quantiles::of(requests(&ports).await?);
    // Some five seconds of each.
    let per_second = rate.unwrap_or(window * 1_000 / round_trip_ms).min(64 << 20);
    let bytes = 5 * per_second;
    let began = Instant::now();
    let seen = download(&ports, bytes, false, None).await?;
    let down = began.elapsed();
    finding.promise(seen.is_complete(bytes), || format!("{round_trip_ms} ms: {seen:?}"));
    let began = Instant::now();
    let answer = upload(&ports, bytes, false, None).await?;
    let up = began.elapsed();
    finding.promise(answer.is_complete(bytes), || format!("{round_trip_ms} ms: {answer:?}"));

    let bulk = tokio::spawn(async move { download(&ports, 1 << 40, false, None).await });
    tokio::time::sleep(Duration::from_millis(10 * round_trip_ms)).await;
    let echo_beside_download_ms = Quantiles::of(echoes(&mut echo).await?);
    let request_beside_download_ms = Quantiles::of(requests(&ports).await?);
    bulk.abort();
    let mib_per_second = |took: Duration| {
        (bytes as f64 / f64::from(1 << 20) / took.as_secs_f64() * 100.0).round() / 100.0
    };
    Ok(Measured {
        round_trip_ms,
        mbit_per_second: rate.map(|rate| rate * 8 / 1_000_000),
        window_kib: window >> 10,
        down_mib_per_second: mib_per_second(down),
        up_mib_per_second: mib_per_second(up),
        echo_ms,
        echo_beside_download_ms,
        request_ms,
        request_beside_download_ms,
    })
}

async fn echoes(socket: &mut WebSocketStream<TcpStream>) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..ECHOES {
        let sent = Instant::now();
        socket.send(Message::text("a small message")).await?;
        let answer = socket.next().await.transpose()?;
        anyhow::ensure!(matches!(answer, Some(Message::Text(_))), "{answer:?}");
        took.push(sent.elapsed());
    }
    Ok(took)
}

async fn requests(ports: &[u16]) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..ECHOES / 3 {
        let sent = Instant::now();
        let seen = read(ports, Method::GET, "/", None).await?;
        anyhow::ensure!(seen.status.is_success() && seen.is_whole, "{seen:?}");
        took.push(sent.elapsed());
    }
    Ok(took)
}
