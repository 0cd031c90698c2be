//! Who sends webhooks: half of them with an Idempotency-Key and again until they are acknowledged,
//! the others once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::judge::{Receipt, Told};

/// Longer than any time-out of the gateway.
const PATIENCE: Duration = Duration::from_secs(30);

/// Before a webhook is sent again.
const PAUSE: Duration = Duration::from_millis(200);

/// How often a webhook is sent again; brokers are never away for so long.
const MOST_TIMES: usize = 300;

/// Senders that are at work.
pub(super) struct Senders {
    tasks: JoinSet<Vec<Told>>,
    stop: CancellationToken,
    next: Arc<AtomicU64>,
}

impl Senders {
    /// Starts so many, each with a connection of its own.
    pub(super) fn start(port: u16, connections: u64) -> Self {
        let (mut tasks, stop, next) = (JoinSet::new(), CancellationToken::new(), Arc::default());
        for _ in 0..connections {
            let sender = Sender { port, next: Arc::clone(&next), connection: None };
            tasks.spawn(sender.run(stop.clone()));
        }
        Self { tasks, stop, next }
    }

    /// Webhooks that were begun.
    pub(super) fn sent(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Lets them finish what they have begun.
    pub(super) async fn stop(mut self) -> Vec<Told> {
        self.stop.cancel();
        let mut told = Vec::new();
        while let Some(sender) = self.tasks.join_next().await {
            told.extend(sender.expect("a sender does not panic"));
        }
        told
    }
}

struct Sender {
    port: u16,
    next: Arc<AtomicU64>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Sender {
    async fn run(mut self, stop: CancellationToken) -> Vec<Told> {
        let mut all = Vec::new();
        while !stop.is_cancelled() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            all.push(self.webhook(number).await);
        }
        all
    }

    async fn webhook(&mut self, number: u64) -> Told {
        let has_key = number.is_multiple_of(2);
        let mut told = Told { number, has_key, receipt: None, refusals: Vec::new() };
        let times = if has_key { MOST_TIMES } else { 1 };
        for _ in 0..times {
            match tokio::time::timeout(PATIENCE, self.send(number, has_key)).await {
                Ok(Ok((202, receipt))) => {
                    told.receipt = receipt;
                    return told;
                }
                Ok(Ok((status, _))) => told.refusals.push(status),
                Ok(Err(_)) | Err(_) => {
                    self.connection = None;
                    told.refusals.push(0);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        told
    }

    async fn send(&mut self, number: u64, has_key: bool) -> anyhow::Result<(u16, Option<Receipt>)> {
        let kind = ["push", "ping"][usize::from(number.is_multiple_of(3))];
        let mut request = Request::post(format!("/hooks/{kind}")).header("host", "prove.test");
        if has_key {
            request = request.header("idempotency-key", format!("webhook-{number}"));
        }
        let request = request.body(Full::from(number.to_string()))?;
        let response = self.connect().await?.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        let receipt = serde_json::from_slice::<Value>(&body).ok().and_then(|body| {
            let id = body["id"].as_str()?.to_owned();
            Some(Receipt { id, sequence: body["sequence"].as_u64()? })
        });
        anyhow::ensure!(status != 202 || receipt.is_some(), "a 202 that says nothing");
        Ok((status, receipt))
    }

    /// The connection, made anew when the server closed the last one.
    async fn connect(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        let usable = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.connection = None;
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            self.connection = Some(sender);
        }
        Ok(self.connection.as_mut().expect("it was just made"))
    }
}
