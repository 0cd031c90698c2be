//! So many requests, no more and no less, and each is answered as it should.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::service::GREETING;

/// Asks a port of 127.0.0.1 for the greeting, over connections that each ask one request at a time.
///
/// # Errors
/// A connection breaks, or something else comes back.
pub(super) async fn ask(port: u16, connections: u32, requests: u64) -> anyhow::Result<()> {
    let left = Arc::new(AtomicU64::new(requests));
    let mut asking = JoinSet::new();
    for _ in 0..connections {
        asking.spawn(ask_in_turn(port, Arc::clone(&left)));
    }
    while let Some(asked) = asking.join_next().await {
        asked.context("a connection's task ended")??;
    }
    Ok(())
}

async fn ask_in_turn(port: u16, left: Arc<AtomicU64>) -> anyhow::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // What clients send as a rule.
    let request = || {
        Request::get("/")
            .header("host", "localhost")
            .header("user-agent", "bench")
            .header("accept", "*/*")
            .body(Full::<Bytes>::default())
    };
    let take = |left: u64| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        sender.ready().await?;
        let response = sender.send_request(request()?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(
            status == 200 && body == GREETING,
            "answered {status} {:?}",
            String::from_utf8_lossy(&body)
        );
    }
    Ok(())
}
