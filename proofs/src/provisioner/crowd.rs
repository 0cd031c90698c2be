//! Clients of a gateway that come and go in crowds, each at its own pace.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two requests of one client.
const PACE: Duration = Duration::from_secs(1);

/// No answer within this is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a worker takes for a request, in milliseconds; it waits, and needs no processor for
/// that.
pub(super) const WORK_MS: u32 = 50;

/// Everybody who asks.
pub(super) struct Crowd {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    began: Instant,
    clients: JoinSet<()>,
    stop: CancellationToken,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// When it was sent, since the crowd began.
    pub(super) at: Duration,
    /// The status, or why there is none.
    pub(super) status: Result<u16, String>,
    /// How long it took.
    pub(super) took: Duration,
}

impl Crowd {
    /// Nobody yet; all will ask the gateway at `port`.
    pub(super) fn new(port: u16) -> Self {
        let (asked, clients, stop) = (Arc::default(), JoinSet::new(), CancellationToken::new());
        Self { port, asked, began: Instant::now(), clients, stop }
    }

    /// Lets so many more come, each of whom asks once a second from a random moment on. They go
    /// when the token is cancelled.
    pub(super) fn come(&mut self, clients: usize) -> CancellationToken {
        let leave = self.stop.child_token();
        for _ in 0..clients {
            let (asked, began, port, leave) =
                (Arc::clone(&self.asked), self.began, self.port, leave.clone());
            self.clients.spawn(async move {
                let mut client = Client { port, connection: None };
                let mut next = tokio::time::Instant::now() + PACE.mul_f64(fastrand::f64());
                while leave.run_until_cancelled(tokio::time::sleep_until(next)).await.is_some() {
                    next += PACE;
                    let (at, sent) = (began.elapsed(), Instant::now());
                    let status = client.ask().await;
                    let outcome = Asked { at, status, took: sent.elapsed() };
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
        leave
    }

    /// Since the crowd began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What was asked so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everybody finishes and goes; gives all that was asked.
    pub(super) async fn leave(mut self) -> Vec<Asked> {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.asked()
    }
}

impl Asked {
    /// Whether it was not answered as it should be.
    pub(super) fn failed(&self) -> bool {
        self.status != Ok(200)
    }
}

/// Every request on a line, for looking closer.
pub(super) fn csv(asked: &[Asked]) -> String {
    let line = |of: &Asked| {
        let status = of.status.as_ref().map_or_else(|error| format!("{error:?}"), u16::to_string);
        format!("{},{status},{}\n", of.at.as_millis(), of.took.as_micros())
    };
    std::iter::once("at_ms,status,took_us\n".to_owned()).chain(asked.iter().map(line)).collect()
}

struct Client {
    port: u16,
    connection: Option<SendRequest<Empty<Bytes>>>,
}

impl Client {
    async fn ask(&mut self) -> Result<u16, String> {
        match tokio::time::timeout(PATIENCE, self.exchange()).await {
            Ok(Ok(status)) => Ok(status),
            failed => {
                self.connection = None;
                Err(match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer".to_owned(),
                })
            }
        }
    }

    async fn exchange(&mut self) -> anyhow::Result<u16> {
        let is_usable = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !is_usable {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            self.connection = Some(sender);
        }
        let connection = self.connection.as_mut().expect("it was just made");
        let request = Request::get(format!("/slow?ms={WORK_MS}"))
            .header("host", "prove.test")
            .body(Empty::new())?;
        let response = connection.send_request(request).await?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        Ok(status)
    }
}
