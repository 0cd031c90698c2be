//! Requests that can be told apart: each carries a nonce, and its answer must carry it back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// No answer at all within this is a transport error: longer than any route's time-out here.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a client waits after a request that failed.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// How one request ended.
#[derive(Clone, Debug)]
pub struct RequestOutcome {
    /// Which request.
    pub nonce: u64,
    /// GET or POST, by chance.
    pub method: Method,
    /// The status, or why there is none.
    pub status: Result<u16, String>,
    /// Whether the body was this request's own.
    pub own: bool,
    /// Since the load began.
    pub answered_at: Duration,
    /// From sending to the whole answer.
    pub took: Duration,
    /// What it went over; `None` when there was no connection to be had.
    pub through: Option<Through>,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// The gateway's port.
    pub port: u16,
    /// When it was made, since the load began.
    pub made_at: Duration,
}

impl RequestOutcome {
    /// A failed request: a transport error, a status that it should not have had, or a body not its
    /// own.
    pub fn failed(&self) -> bool {
        self.status != Ok(200) || !self.own
    }
}

/// A running load: connections that each send one request after the other.
pub struct Load {
    tasks: JoinSet<Vec<RequestOutcome>>,
    stop: CancellationToken,
    answered: Arc<AtomicUsize>,
    started: Instant,
}

/// A load that has ended.
#[derive(Debug)]
pub struct Tally {
    /// Every request.
    pub outcomes: Vec<RequestOutcome>,
    /// How long the load lasted.
    pub lasted: Duration,
}

impl Load {
    /// Starts `connections` clients of the gateway at `port`; `seed` decides which requests are
    /// POSTs.
    pub fn start(port: u16, connections: usize, seed: u64) -> Self {
        Self::start_across(&[port], connections, seed, 0)
    }

    /// The same for several gateways: a client that cannot connect to one tries the next, and
    /// retries nothing else. Loads that run at the same time begin with nonces far apart.
    pub fn start_across(ports: &[u16], connections: usize, seed: u64, first_nonce: u64) -> Self {
        let (stop, answered, started) =
            (CancellationToken::new(), Arc::<AtomicUsize>::default(), Instant::now());
        let next_nonce = Arc::new(AtomicU64::new(first_nonce));
        let mut tasks = JoinSet::new();
        for number in 0..connections {
            let first = number % ports.len();
            let ports = [&ports[first..], &ports[..first]].concat();
            let client = Client {
                ports,
                seed,
                next_nonce: Arc::clone(&next_nonce),
                answered: Arc::clone(&answered),
                started,
                connection: None,
            };
            tasks.spawn(client.run(stop.clone()));
        }
        Self { tasks, stop, answered, started }
    }

    /// Requests that were answered, or failed, so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Since the load began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until so many requests were answered.
    pub async fn reach(&self, requests: usize) {
        while self.answered() < requests {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until so many more were answered.
    pub async fn more(&self, requests: usize) {
        self.reach(self.answered() + requests).await;
    }

    /// Waits until the load has lasted so long.
    pub async fn last(&self, duration: Duration) {
        tokio::time::sleep(duration.saturating_sub(self.elapsed())).await;
    }

    /// Lets what is in hand finish.
    pub async fn stop(mut self) -> Tally {
        self.stop.cancel();
        let mut outcomes = Vec::new();
        while let Some(client) = self.tasks.join_next().await {
            outcomes.extend(client.expect("a client does not panic"));
        }
        outcomes.sort_by_key(|outcome| outcome.nonce);
        Tally { outcomes, lasted: self.started.elapsed() }
    }
}

impl Tally {
    /// The requests that failed.
    pub fn failed(&self) -> Vec<&RequestOutcome> {
        self.outcomes.iter().filter(|outcome| outcome.failed()).collect()
    }

    /// Answered requests a second.
    pub fn rate(&self) -> f64 {
        (self.outcomes.len() as f64 / self.lasted.as_secs_f64()).round()
    }

    /// The longest time that an answer took.
    pub fn slowest(&self) -> Duration {
        self.outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default()
    }

    /// Every request on a line, for looking closer.
    pub fn csv(&self) -> String {
        let mut text = "nonce,method,status,own,answered_ms,took_us,port\n".to_owned();
        for RequestOutcome { nonce, method, status, own, answered_at, took, through } in
            &self.outcomes
        {
            let status = status.as_ref().map_or_else(|error| format!("{error:?}"), u16::to_string);
            let port = through.map_or(0, |through| through.port);
            let (answered_ms, took_us) = (answered_at.as_millis(), took.as_micros());
            let line = format!("{nonce},{method},{status},{own},{answered_ms},{took_us},{port}\n");
            text.push_str(&line);
        }
        text
    }

    /// How many requests failed in which way, for a message.
    pub fn failures(&self) -> String {
        let mut kinds = std::collections::BTreeMap::<String, usize>::new();
        for outcome in self.failed() {
            let how = match &outcome.status {
                Ok(200) => "a body not its own".to_owned(),
                Ok(status) => status.to_string(),
                Err(error) => error.clone(),
            };
            *kinds.entry(format!("{} {how}", outcome.method)).or_default() += 1;
        }
        kinds.iter().map(|(kind, count)| format!("{count} x {kind}")).collect::<Vec<_>>().join(", ")
    }
}

/// GET or POST, half of the requests each; of the nonce alone, whichever connection gets to send
/// it.
fn method_of(seed: u64, nonce: u64) -> Method {
    // Nonces far apart (by the golden ratio of the range), because seeds next to each other begin
    // alike.
    let apart = nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match fastrand::Rng::with_seed(seed.wrapping_add(apart)).bool() {
        true => Method::GET,
        false => Method::POST,
    }
}

/// One connection's worth of load.
struct Client {
    ports: Vec<u16>,
    seed: u64,
    next_nonce: Arc<AtomicU64>,
    answered: Arc<AtomicUsize>,
    started: Instant,
    connection: Option<(Through, SendRequest<Full<Bytes>>)>,
}

impl Client {
    async fn run(mut self, stop: CancellationToken) -> Vec<RequestOutcome> {
        let mut outcomes = Vec::new();
        while !stop.is_cancelled() {
            let nonce = self.next_nonce.fetch_add(1, Ordering::Relaxed);
            let outcome = self.request(nonce).await;
            self.answered.fetch_add(1, Ordering::Relaxed);
            if outcome.failed() {
                // A client that is refused comes back after a while; a busy loop would measure
                // refusals.
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            outcomes.push(outcome);
        }
        outcomes
    }

    async fn request(&mut self, nonce: u64) -> RequestOutcome {
        let method = method_of(self.seed, nonce);
        let sent = Instant::now();
        let answer = match tokio::time::timeout(PATIENCE, self.exchange(nonce, &method)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer".to_owned()),
        };
        let through = self.connection.as_ref().map(|(through, _)| *through);
        if answer.is_err() {
            self.connection = None;
        }
        let own = answer.as_ref().is_ok_and(|(_, own)| *own);
        let status = answer.map(|(status, _)| status);
        let (answered_at, took) = (self.started.elapsed(), sent.elapsed());
        RequestOutcome { nonce, method, status, own, answered_at, took, through }
    }

    async fn exchange(&mut self, nonce: u64, method: &Method) -> Result<(u16, bool), String> {
        let mark = format!("nonce-{nonce}-");
        let body = if *method == Method::POST { mark.clone() } else { String::new() };
        let request = Request::builder()
            .method(method)
            .uri(format!("/echo?mark={mark}"))
            .header("host", "prove.test")
            .header("x-nonce", nonce.to_string())
            .body(Full::from(body))
            .expect("a request of plain parts");
        let connection = self.connect().await?;
        let response = connection
            .send_request(request)
            .await
            .map_err(|error| format!("transport: {error}"))?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| format!("body: {error}"))?
            .to_bytes();
        // The query comes back, and the body of a POST: both marks are there, or the answer is
        // another's.
        let marks = String::from_utf8_lossy(&body).matches(&mark).count();
        let expected = if *method == Method::POST { 2 } else { 1 };
        Ok((status, marks >= expected))
    }

    /// The connection, made anew when the server closed the last one after an answer.
    async fn connect(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, String> {
        let usable = match &mut self.connection {
            Some((_, connection)) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.connection = None;
            let addresses: Vec<_> =
                self.ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
            let stream = TcpStream::connect(&addresses[..])
                .await
                .map_err(|error| format!("connect: {error}"))?;
            stream.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
            let port = stream.peer_addr().map_err(|error| format!("connect: {error}"))?.port();
            let (sender, connection) =
                handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            self.connection = Some((Through { port, made_at: self.started.elapsed() }, sender));
        }
        let (_, connection) = self.connection.as_mut().expect("it was just made");
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_the_mix_and_half_of_it_are_posts() {
        let mix = |seed| (0..10_000).map(move |nonce| method_of(seed, nonce) == Method::POST);
        assert!(mix(1).eq(mix(1)) && !mix(1).eq(mix(1_000_000)));
        let posts = mix(1).filter(|is_post| *is_post).count();
        assert!((4_500..5_500).contains(&posts), "{posts}");
        let alternations = mix(1).zip(mix(1).skip(1)).filter(|(one, next)| one != next).count();
        assert!((4_500..5_500).contains(&alternations), "in no pattern: {alternations}");
    }
}
