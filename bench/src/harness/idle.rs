//! Connections that ask nothing: what it costs to have them.

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What accepting them took is over then.
const SETTLE: Duration = Duration::from_millis(500);

/// Opens so many connections, each having been answered once so that it is a connection of HTTP,
/// and holds them.
///
/// # Errors
/// They cannot all be opened.
pub async fn open(port: u16, connections: u32) -> anyhow::Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(connections as usize);
    for number in 0..connections {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.with_context(|| {
            format!("connection {number} of {connections}; is `ulimit -n` large enough?")
        })?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        let mut answer = [0; 1024];
        let read =
            tokio::time::timeout(Duration::from_secs(10), stream.read(&mut answer)).await??;
        anyhow::ensure!(read > 0, "connection {number} of {connections} was closed");
        open.push(stream);
    }
    tokio::time::sleep(SETTLE).await;
    Ok(open)
}
