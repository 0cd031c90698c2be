//! A connection that a request became: bytes from either end go to the other, as they come.

use std::io;
use std::time::Duration;

use natsway_caller::stream::activity::Watch;
use natsway_caller::stream::{BrokenOff, UpgradedStream};
use natsway_tunnel::pieces::Pieces;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::OpenStream;
use super::websocket::FrameBoundary;

/// The worker's end of a connection, and what concerns it.
pub struct Spliced {
    /// The worker's end.
    pub worker: UpgradedStream,
    /// Where frames end, if it is a WebSocket.
    pub frames: Option<FrameBoundary>,
    /// What ends it.
    pub watch: Watch,
    /// Cancelled when it must end, because the gateway leaves.
    pub closing: CancellationToken,
    /// The most by which the end comes later, so that not all come at once.
    pub spread: Duration,
    /// How long the client may take nothing.
    pub write_timeout: Duration,
    /// Its place among the shard's.
    pub open: OpenStream,
}

impl std::fmt::Debug for Spliced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spliced").finish_non_exhaustive()
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceEnd {
    /// Both ends said so.
    Closed,
    /// The client is gone.
    Client,
    /// The worker is gone, or its gateway leaves.
    Worker,
    /// It was ended here.
    Watch(BrokenOff),
    /// One of the last two, and the client of a WebSocket was told by a Close.
    Announced,
}

impl SpliceEnd {
    /// Whether the end of the client's connection must not look like one in order: its worker has
    /// not ended what it sent.
    pub fn is_abort(self) -> bool {
        matches!(self, Self::Worker | Self::Watch(_))
    }
}

/// Passes bytes both ways until both ends have said that there are no more, one is gone, nothing
/// comes any more, or the gateway leaves.
///
/// # Cancel safety
/// Dropping the future cuts both ends off.
pub async fn splice(
    client: impl AsyncRead + AsyncWrite + Unpin,
    first: &[u8],
    spliced: Spliced,
) -> SpliceEnd {
    let Spliced { worker, mut frames, mut watch, closing, spread, write_timeout, open: _open } =
        spliced;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (worker, place) = worker.into_parts();
    let (mut from_worker, mut to_worker) = tokio::io::split(worker);
    let activity = watch.activity();
    let up = async {
        if !first.is_empty() && to_worker.write_all(first).await.is_err() {
            return SpliceEnd::Worker;
        }
        let mut pieces = Pieces::for_tunnel();
        loop {
            match pieces.next(&mut from_client).await {
                Ok(piece) if piece.is_empty() => {
                    let shut = to_worker.shutdown().await;
                    return if shut.is_ok() { SpliceEnd::Closed } else { SpliceEnd::Worker };
                }
                Ok(piece) => {
                    activity.note();
                    if to_worker.write_all(&piece).await.is_err() {
                        return SpliceEnd::Worker;
                    }
                }
                Err(_) => return SpliceEnd::Client,
            }
        }
    };
    let down = async {
        let mut pieces = Pieces::joined();
        loop {
            match pieces.next(&mut from_worker).await {
                // A WebSocket does not end without a Close: whoever sent it is gone.
                Ok(piece)
                    if piece.is_empty()
                        && frames.as_ref().is_some_and(|frames| !frames.has_closed()) =>
                {
                    return SpliceEnd::Worker;
                }
                Ok(piece) if piece.is_empty() => {
                    let shut = to_client.shutdown().await;
                    return if shut.is_ok() { SpliceEnd::Closed } else { SpliceEnd::Client };
                }
                Ok(piece) => {
                    activity.note();
                    let mut left = &piece[..];
                    while !left.is_empty() {
                        // What was taken is noted with the write itself: this may end between two.
                        let writing = to_client.write(left);
                        match tokio::time::timeout(write_timeout, writing).await {
                            Ok(Ok(taken)) if taken > 0 => {
                                if let Some(frames) = &mut frames {
                                    frames.sent(&left[..taken]);
                                }
                                left = &left[taken..];
                            }
                            _ => return SpliceEnd::Client,
                        }
                    }
                    if to_client.flush().await.is_err() {
                        return SpliceEnd::Client;
                    }
                }
                Err(_) => {
                    place.broke_off();
                    return SpliceEnd::Worker;
                }
            }
        }
    };
    let ended = {
        let gateway_ends = async {
            closing.cancelled().await;
            tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
        };
        tokio::select! {
            ended = both(up, down) => ended,
            why = watch.ended() => SpliceEnd::Watch(why),
            () = gateway_ends => SpliceEnd::Worker,
        }
    };
    if ended.is_abort()
        && let Some(close) = frames.and_then(|frames| frames.close())
    {
        // Who does not take it is gone.
        let is_told = told(&mut to_client, &close).await.is_ok();
        return if is_told { SpliceEnd::Announced } else { ended };
    }
    ended
}

async fn told(client: &mut (impl AsyncWrite + Unpin), close: &[u8]) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(1);
    let telling = async {
        client.write_all(close).await?;
        client.shutdown().await
    };
    tokio::time::timeout(LIMIT, telling).await?
}

/// Waits for both directions to end in order, or for the first that does not.
async fn both(
    up: impl Future<Output = SpliceEnd>,
    down: impl Future<Output = SpliceEnd>,
) -> SpliceEnd {
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        ended = &mut up => match ended {
            SpliceEnd::Closed => down.await,
            ended => ended,
        },
        ended = &mut down => match ended {
            SpliceEnd::Closed => up.await,
            ended => ended,
        },
    }
}
