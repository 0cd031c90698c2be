//! Where the answers of one tunnel leave, from any thread.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use natsway_boot::Clock;
use natsway_tunnel::unary::{Taken, WorkerEnd};
use natsway_wire::frame::Hello;
use tokio::sync::Notify;

use super::lock;
use crate::handler::outbox::SendError;
use crate::telemetry::metrics::Load;

/// A tunnel that was not used for so long is of no use to anybody.
const IDLE: Duration = Duration::from_secs(60);

/// Tells tunnels apart.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Where answers leave.
#[derive(Debug)]
pub(super) struct Outlet {
    id: u64,
    clock: Clock,
    load: Arc<Load>,
    pub(super) state: Mutex<State>,
    /// Notified when there is room for an answer again, and when the connection is gone.
    pub(super) changed: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) end: WorkerEnd,
    /// Wakes the task that moves frames.
    pub(super) waker: Option<Waker>,
    is_gone: bool,
    /// When the last request came.
    pub(super) used: Instant,
}

impl Outlet {
    pub(super) fn new(hello: &Hello, load: Arc<Load>) -> Arc<Self> {
        let (clock, now) = (Clock::start(), Instant::now());
        let end = WorkerEnd::new(hello, clock.unix_ms_at(now));
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            clock,
            load,
            state: Mutex::new(State { end, waker: None, is_gone: false, used: now }),
            changed: Notify::new(),
        })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn age_ms(&self, sent_ms: u64, deadline_ms: u32) -> Option<u32> {
        lock(&self.state).end.age_ms(sent_ms, deadline_ms, self.now_ms())
    }

    /// Wants no new requests.
    pub(super) fn drain(&self) {
        self.change(|end| end.drain());
    }

    /// The connection is gone.
    pub(super) fn gone(&self) {
        lock(&self.state).is_gone = true;
        self.changed.notify_waiters();
    }

    /// Whether nothing came by it for long, and nothing is held.
    pub(super) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.end.held() == 0 && state.used.elapsed() > IDLE
    }

    /// Answers a request; returns whether that will be written.
    pub(super) fn answer(&self, taken: Taken, message: &Bytes) -> bool {
        let in_hand = self.in_hand();
        self.change(|end| end.answer(taken, message, in_hand))
    }

    pub(super) fn drop_request(&self, taken: Taken) {
        self.change(|end| end.drop_request(taken));
    }

    /// Returns how long an answer may be.
    pub(super) fn most_bytes(&self) -> usize {
        let state = lock(&self.state);
        state.end.gateway().map_or(0, |gateway| gateway.payload_bytes as usize)
    }

    /// Waits until an answer of this length may be given.
    ///
    /// # Errors
    /// [`SendError::TooLarge`], or the connection is gone.
    pub(super) async fn has_room(&self, bytes: usize) -> Result<(), SendError> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let state = lock(&self.state);
                let most = state.end.gateway().map_or(0, |gateway| gateway.payload_bytes);
                if state.is_gone {
                    return Err(SendError::Late);
                }
                if bytes > most as usize {
                    return Err(SendError::TooLarge);
                }
                if state.end.has_room() {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Changes the end, and has what that adds be written. Leaves once nothing is held that was to
    /// be answered.
    fn change<R>(&self, change: impl FnOnce(&mut WorkerEnd) -> R) -> R {
        let mut state = lock(&self.state);
        let changed = change(&mut state.end);
        if state.end.may_leave() {
            state.end.goodbye();
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        changed
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.clock.unix_ms_at(Instant::now())
    }

    /// What the worker has in hand, of all senders.
    pub(super) fn in_hand(&self) -> u16 {
        u16::try_from(self.load.requests()).unwrap_or(u16::MAX)
    }
}
