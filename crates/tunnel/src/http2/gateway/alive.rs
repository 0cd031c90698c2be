//! Keeps a tunnel's connection, and asks whether the worker is there.

use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};

/// Why a tunnel is no more.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionLost {
    /// The connection broke, or somebody on it broke the protocol.
    #[error("the tunnel broke")]
    Broken(#[source] h2::Error),
    /// The worker did not say in time that it is there.
    #[error("the worker is silent")]
    Silent,
}

/// Keeps a connection until it ends, or its worker is silent.
///
/// # Cancel safety
/// Dropping the future ends the connection, and every stream on it.
pub(super) async fn drive<T>(
    mut connection: Connection<T, Bytes>,
    interval: Duration,
    timeout: Duration,
) -> Result<(), ConnectionLost>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let pings = connection.ping_pong().expect("they are taken once");
    tokio::select! {
        ended = connection => ended.map_err(ConnectionLost::Broken),
        () = silence(pings, interval, timeout) => Err(ConnectionLost::Silent),
    }
}

/// Asks again and again, and returns once no answer comes.
async fn silence(mut pings: PingPong, interval: Duration, timeout: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let answered = tokio::time::timeout(timeout, pings.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}
