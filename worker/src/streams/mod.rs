//! What does not fit in a message: bodies that go on by streams, on tunnels to gateways.
//!
//! A job that needs a stream [waits](Streams::wait) under a token that it says in its answer. The
//! gateway opens a stream with that token, on a [tunnel](tunnels) that this worker dialled, and
//! [`Opened`] takes the two together. What nobody takes in time is given up.

mod body;
mod pipes;
mod tunnels;
mod ways;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use ipnet::IpNet;
use natsway_tunnel::dial::Reach;
use natsway_tunnel::http2::Settings;
use natsway_wire::offer::{StreamToken, TunnelSecret};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task;
use tokio_util::sync::CancellationToken;

pub(crate) use self::body::{End, StreamBody, StreamWriter, stream_body};
pub(crate) use self::pipes::PipeEnd;
use self::tunnels::{TunnelPlace, Tunnels};
use self::ways::Ways;

/// How long what waits for its stream is held. Longer than a gateway takes to open it, and no more:
/// it has a place among the streams, and its client may be gone.
pub(crate) const HELD_FOR: Duration = Duration::from_secs(6);

/// Of the time that there is for leaving, the part in which streams are ended that would go on. A
/// busy machine needs some for thousands of them.
const ENDING_PART: u32 = 5;

/// That part at the least and at the most.
const ENDING: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);

/// What is kept of it for cutting off what has not ended by then.
const CUTTING: Duration = Duration::from_millis(100);

/// When the streams end of a worker that leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamDrain {
    /// When those are ended that would go on.
    pub(crate) end_at: Instant,
    deadline: Instant,
}

impl StreamDrain {
    /// One that begins now and is over by `deadline`.
    pub(crate) fn until(deadline: Instant) -> Self {
        Self::between(Instant::now(), deadline)
    }

    fn between(now: Instant, deadline: Instant) -> Self {
        let left = deadline.saturating_duration_since(now);
        let ending = (left / ENDING_PART).clamp(*ENDING.start(), *ENDING.end());
        Self { end_at: deadline.checked_sub(ending).unwrap_or(deadline), deadline }
    }
}

/// How a worker makes tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelMode {
    /// To gateways that it can reach; by pipes on the broker to the others, if they take those.
    #[default]
    Auto,
    /// To gateways that it can reach.
    Direct,
    /// By pipes on the broker; requests that are no streams come by the broker as they are.
    Broker,
    /// Never: what does not fit in a message is refused.
    Off,
}

/// How a worker makes tunnels.
#[derive(Clone, Debug)]
pub(crate) struct TunnelOptions {
    pub(crate) mode: TunnelMode,
    /// Where tunnels may go; private networks without.
    pub(crate) reach: Option<Vec<IpNet>>,
    pub(crate) allows_cleartext: bool,
    pub(crate) settings: Settings,
    /// Of all readers together.
    pub(crate) max_streams: usize,
}

impl Default for TunnelOptions {
    fn default() -> Self {
        Self {
            mode: TunnelMode::default(),
            reach: None,
            allows_cleartext: false,
            settings: Settings::default(),
            max_streams: 1_000,
        }
    }
}

/// The streams of one reader.
#[derive(Debug)]
pub(crate) struct Streams {
    mode: TunnelMode,
    tunnels: Tunnels,
    waiting: Arc<Mutex<HashMap<StreamToken, oneshot::Sender<Opened>>>>,
    /// Those of all readers.
    permits: Arc<Semaphore>,
    max_streams: usize,
    /// The tasks that their deadlines do not end any more.
    unbound: Arc<Mutex<HashMap<task::Id, ()>>>,
    /// Cancelled when streams that go on must end.
    ending: CancellationToken,
}

/// What a request says of its sender's tunnels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered<'r> {
    /// Where it takes them.
    pub(crate) offer: &'r Bytes,
    /// Where it hears by the broker; not there for a request of a tunnel.
    pub(crate) reply: Option<&'r Subject>,
    /// Which of the worker's subjects the request came by.
    pub(crate) endpoint: usize,
}

/// A stream that the gateway opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// What comes up: a body, or nothing.
    pub(crate) body: Incoming,
    /// The connection that it becomes, if that was asked for.
    pub(crate) upgrade: Option<OnUpgrade>,
    /// What goes down.
    pub(crate) respond: oneshot::Sender<Response<StreamBody>>,
}

/// A job that waits for its stream. Dropping it gives up.
#[derive(Debug)]
pub(crate) struct Waiting {
    token: StreamToken,
    opened: oneshot::Receiver<Opened>,
    waiting: Arc<Mutex<HashMap<StreamToken, oneshot::Sender<Opened>>>>,
}

/// One of the worker's streams. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    _permit: OwnedSemaphorePermit,
    /// That of its tunnel, once there is one.
    _place: Option<TunnelPlace>,
}

/// A task that its deadline does not end, as long as this is held.
#[derive(Debug)]
pub(crate) struct Unbound {
    id: Option<task::Id>,
    unbound: Arc<Mutex<HashMap<task::Id, ()>>>,
}

impl Streams {
    /// Returns one without tunnels; they run on `runtime`, and streams take one of the `permits`.
    pub(crate) fn new(
        options: TunnelOptions,
        permits: Arc<Semaphore>,
        runtime: Handle,
        pipes: PipeEnd,
    ) -> Self {
        let waiting = Arc::<Mutex<HashMap<_, _>>>::default();
        let TunnelOptions { mode, reach, allows_cleartext, settings, max_streams } = options;
        let reach = reach.map_or_else(Reach::default, Reach::new).with_cleartext(allows_cleartext);
        let ways = Ways::new(mode, reach, pipes);
        Self {
            mode,
            tunnels: Tunnels::new(ways, settings, runtime, Arc::clone(&waiting)),
            waiting,
            permits,
            max_streams,
            unbound: Arc::default(),
            ending: CancellationToken::new(),
        }
    }

    /// Whether there are any.
    pub(crate) fn is_on(&self) -> bool {
        self.mode != TunnelMode::Off
    }

    /// Takes one of the streams, unless as many run as may.
    pub(crate) fn try_take(&self) -> Option<StreamPermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(StreamPermit { _permit: permit, _place: None })
    }

    /// Returns how many of all readers run, or wait to be opened.
    pub(crate) fn open(&self) -> usize {
        self.max_streams - self.permits.available_permits()
    }

    /// Returns the secret of a tunnel to the gateway that made this offer; `None` if it cannot be
    /// reached. Dials it the first time. The stream has its place there.
    ///
    /// # Cancel safety
    /// The tunnel is dialled all the same.
    pub(crate) async fn tunnel(
        &self,
        offered: Offered<'_>,
        stream: &mut StreamPermit,
    ) -> Option<TunnelSecret> {
        if self.mode == TunnelMode::Off {
            return None;
        }
        let (secret, place) = self.tunnels.secret(offered).await?;
        stream._place = Some(place);
        Some(secret)
    }

    /// Begins to wait for a stream.
    pub(crate) fn wait(&self) -> Waiting {
        let token = StreamToken(random_16());
        let (sender, opened) = oneshot::channel();
        self.lock_waiting().insert(token, sender);
        Waiting { token, opened, waiting: Arc::clone(&self.waiting) }
    }

    /// Has the deadline of the task that calls this not end it. Its first poll may be outside of
    /// it, so it gives way once.
    pub(crate) async fn unbind(&self) -> Unbound {
        task::yield_now().await;
        let id = task::try_id();
        if let Some(id) = id {
            self.unbound.lock().unwrap_or_else(PoisonError::into_inner).insert(id, ());
        }
        Unbound { id, unbound: Arc::clone(&self.unbound) }
    }

    /// Whether a task's deadline does not end it.
    pub(crate) fn is_unbound(&self, id: task::Id) -> bool {
        self.unbound.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    /// Completes when streams that go on must end.
    pub(crate) async fn ended(&self) {
        self.ending.cancelled().await;
    }

    /// Whether streams that go on must end.
    pub(crate) fn have_ended(&self) -> bool {
        self.ending.is_cancelled()
    }

    /// Returns what is cancelled when streams that go on must end.
    pub(crate) fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// Ends every tunnel and its streams at once: the right to serve was taken away.
    pub(crate) fn cut(&self) {
        self.tunnels.cut();
    }

    /// Leaves: no further stream is taken once nothing waits for one; those that run go on to their
    /// end, or as long as `drain` says.
    pub(crate) async fn leave(&self, drain: StreamDrain) {
        let in_order = async {
            while !self.lock_waiting().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.tunnels.leave().await;
        };
        if tokio::time::timeout_at(drain.end_at.into(), in_order).await.is_err() {
            self.ending.cancel();
            // What ends in the way of its kind does so now; the rest is cut off.
            let cut_at = drain.deadline.checked_sub(CUTTING).unwrap_or(drain.deadline);
            if tokio::time::timeout_at(cut_at.into(), self.tunnels.leave()).await.is_err() {
                self.tunnels.cut();
                self.tunnels.leave().await;
            }
        }
    }

    fn lock_waiting(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<StreamToken, oneshot::Sender<Opened>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// What to say, so that the stream is opened.
    pub(crate) fn token(&self) -> StreamToken {
        self.token
    }

    /// Waits for the stream; `None` when nobody opened it in time.
    pub(crate) async fn opened(mut self) -> Option<Opened> {
        tokio::time::timeout(HELD_FOR, &mut self.opened).await.ok()?.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.unbound.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
}

/// Hands a stream to the job that waits for it, and returns what that answers.
///
/// # Errors
/// Nobody waits under this token: the stream is refused. Or the job ended: it is cancelled.
async fn take_over(
    waiting: Arc<Mutex<HashMap<StreamToken, oneshot::Sender<Opened>>>>,
    mut request: Request<Incoming>,
) -> Result<Response<StreamBody>, h2::Error> {
    let token = StreamToken::parse(request.uri().path());
    let job = token
        .and_then(|token| waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&token));
    let job = job.ok_or(h2::Reason::REFUSED_STREAM)?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (respond, response) = oneshot::channel();
    let opened = Opened { body: request.into_body(), upgrade, respond };
    job.send(opened).map_err(|_| h2::Reason::REFUSED_STREAM)?;
    Ok(response.await.map_err(|_| h2::Reason::CANCEL)?)
}

pub(crate) fn random_16() -> [u8; 16] {
    (u128::from(natsway_boot::random_u64()) << 64 | u128::from(natsway_boot::random_u64()))
        .to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_a_fifth_of_the_drain_to_end_within_bounds() {
        for (drain_ms, ending_ms) in [(100, 500), (2_500, 500), (8_000, 1_600), (60_000, 5_000)] {
            let now = Instant::now() + Duration::from_secs(60);
            let deadline = now + Duration::from_millis(drain_ms);
            let drain = StreamDrain::between(now, deadline);
            assert_eq!(drain.end_at + Duration::from_millis(ending_ms), deadline, "{drain_ms}");
            assert_eq!(drain.deadline, deadline);
        }
    }
}
