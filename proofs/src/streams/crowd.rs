//! Streams of every kind at once, and how they ended.

use std::time::Duration;

use natsway_testkit::eventually;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{Events, Seen, SocketEnd, Uploaded, chat, download, events, upload};
use crate::Finding;
use crate::stand::{DEADLINE, Stand};

/// More than all buffers on the way hold, and read or written for some 2.5 seconds.
const BODY_BYTES: u64 = 20 << 20;
const RATE: u32 = 8 << 20;
const EVENTS: u64 = 120;
const EVENTS_MS: u64 = 20;

/// A stream may end this long after what struck it, not later: a tunnel is lost after 20 s.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Clients with a stream each.
pub(super) struct Crowd {
    downloads: Vec<JoinHandle<anyhow::Result<Seen>>>,
    uploads: Vec<JoinHandle<anyhow::Result<Uploaded>>>,
    events: Vec<JoinHandle<anyhow::Result<Events>>>,
    sockets: Vec<JoinHandle<anyhow::Result<(usize, SocketEnd)>>>,
    stop: CancellationToken,
}

/// How they ended.
#[derive(Debug, Default, serde::Serialize)]
pub(super) struct Ended {
    /// With all that was asked for.
    pub(super) complete: usize,
    /// Where their client saw it.
    pub(super) broken_off: usize,
    /// WebSockets that were told that they are to come again.
    pub(super) sockets_told: usize,
    /// WebSockets that lived until their client left.
    pub(super) sockets_lived: usize,
    /// Whatever else: each breaks a promise.
    pub(super) dishonest: Vec<String>,
}

impl Crowd {
    /// How many it has that the gateway counts: an upload is a request until its answer begins.
    const COUNTED: f64 = 10.0;

    /// Opens them all, and waits until the gateway has them.
    pub(super) async fn start(stand: &Stand) -> Self {
        let port = stand.port;
        let stop = CancellationToken::new();
        let downloads = (0..4).map(|number| {
            let is_chunked = number % 2 == 0;
            tokio::spawn(async move { download(&[port], BODY_BYTES, is_chunked, Some(RATE)).await })
        });
        let uploads = (0..4).map(|number| {
            let is_chunked = number % 2 == 0;
            tokio::spawn(async move { upload(&[port], BODY_BYTES, is_chunked, Some(RATE)).await })
        });
        let events = (0..2)
            .map(|_| tokio::spawn(async move { events(&[port], Some(EVENTS), EVENTS_MS).await }));
        let sockets = (0..4).map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move { chat(&[port], Duration::from_millis(20), stop).await })
        });
        let (downloads, uploads) = (downloads.collect(), uploads.collect());
        let (events, sockets) = (events.collect(), sockets.collect());
        let crowd = Self { downloads, uploads, events, sockets, stop };
        eventually(DEADLINE, async || {
            let open = stand.metric(r#"natsway_streams_open{route="prove",version="blue"}"#).await;
            match open {
                Ok(Self::COUNTED) => Ok(()),
                other => Err(format!("streams: {other:?}")),
            }
        })
        .await;
        crowd
    }

    /// Waits until every stream has ended, and says how.
    pub(super) async fn end(self) -> anyhow::Result<Ended> {
        let mut ended = Ended::default();
        for download in self.downloads {
            match within(download).await? {
                None => ended.dishonest.push("a download hangs".to_owned()),
                Some(Ok(seen)) if seen.is_complete(BODY_BYTES) => ended.complete += 1,
                Some(Ok(seen)) if seen.status.is_success() && !seen.is_honest(BODY_BYTES) => {
                    ended.dishonest.push(format!("a download: {seen:?}"));
                }
                Some(_) => ended.broken_off += 1,
            }
        }
        for upload in self.uploads {
            match within(upload).await? {
                None => ended.dishonest.push("an upload hangs".to_owned()),
                Some(Ok(answer)) if answer.is_complete(BODY_BYTES) => ended.complete += 1,
                Some(Ok(answer)) if answer.status.is_success() => {
                    ended.dishonest.push(format!("an upload: {answer:?}"));
                }
                Some(_) => ended.broken_off += 1,
            }
        }
        for events in self.events {
            match within(events).await? {
                None => ended.dishonest.push("events hang".to_owned()),
                Some(Ok(seen)) if !seen.is_in_order || seen.is_whole && seen.count < EVENTS => {
                    ended.dishonest.push(format!("events: {seen:?}"));
                }
                Some(Ok(seen)) if seen.is_whole => ended.complete += 1,
                Some(_) => ended.broken_off += 1,
            }
        }
        self.stop.cancel();
        for socket in self.sockets {
            match within(socket).await? {
                None => ended.dishonest.push("a WebSocket hangs".to_owned()),
                Some(Ok((_, SocketEnd::Closed(1_000)))) => ended.sockets_lived += 1,
                Some(Ok((_, SocketEnd::Closed(1_012)))) => ended.sockets_told += 1,
                Some(Ok((_, SocketEnd::Cut))) => ended.broken_off += 1,
                Some(other) => ended.dishonest.push(format!("a WebSocket: {other:?}")),
            }
        }
        Ok(ended)
    }
}

/// The task's outcome, unless it takes too long.
async fn within<T>(
    mut task: JoinHandle<anyhow::Result<T>>,
) -> anyhow::Result<Option<anyhow::Result<T>>> {
    match tokio::time::timeout(ENDS_WITHIN, &mut task).await {
        Ok(ended) => Ok(Some(ended?)),
        Err(_) => {
            task.abort();
            Ok(None)
        }
    }
}

impl Ended {
    /// Notes the figures under a name, and what breaks a promise.
    pub(super) fn note(&self, name: &str, finding: &mut Finding) -> anyhow::Result<()> {
        finding.figure(name, serde_json::to_value(self)?);
        for dishonest in &self.dishonest {
            finding.promise(false, || format!("{name}: {dishonest}"));
        }
        Ok(())
    }
}
