//! The worker's end: what was taken from a tunnel, and when it may be left.

use bytes::{Buf, Bytes};
use natsway_wire::frame::{Frame, FrameKind, FrameQueue, Hello, LEASE};

use super::clocks::ClockBounds;
use super::gateway::put_pong;
use super::{UNSENT_BYTES, Violation};

/// Ticks between two looks at the gateway's clock: 5 s, in which two clocks drift by less than a
/// millisecond.
const TICKS_BETWEEN_PINGS: u32 = 10;

/// Ticks without a frame after which the gateway counts as gone: 30 s. It pings at each of its own,
/// and a gateway that stood still does no harm: its requests say how old they are.
const SILENT_TICKS: u32 = 60;

/// A request that was taken. It is given back to its [`WorkerEnd`], answered or not.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a tunnel is not left before each request was given back"]
pub struct Taken(u64);

/// What a frame meant.
#[derive(Debug, PartialEq, Eq)]
pub enum WorkerHeard {
    /// Nothing that the driver has to do anything about.
    Nothing,
    /// The gateway said what it is; requests follow.
    Opened,
    /// A request for one of the tunnel's subjects.
    Request(Taken, u16, Bytes),
    /// Nobody waits any more for the request of this [key](Taken::key).
    Cancel(u64),
    /// The gateway sends no request any more.
    Drained,
}

/// One tunnel, as the worker sees it.
#[derive(Debug)]
pub struct WorkerEnd {
    state: State,
    gateway: Option<Hello>,
    /// Whether requests may still come.
    is_sent_to: bool,
    out: FrameQueue,
    /// Requests that were ever taken.
    taken: u64,
    /// Requests that were not given back.
    held: usize,
    clocks: ClockBounds,
    /// A ping is out.
    is_asking: bool,
    ticks: u32,
    silent_ticks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// New requests are not wanted; those that come all the same are taken.
    Draining,
    /// The goodbye was said: what comes is not heard.
    Left,
}

impl Taken {
    /// Names the request on its tunnel, as a [`WorkerHeard::Cancel`] does.
    pub fn key(&self) -> u64 {
        self.0
    }
}

impl WorkerEnd {
    /// Returns the end of a tunnel that was just welcomed, and says what the worker is. `clock_ms`
    /// is the clock by which it will judge how old requests are.
    pub fn new(hello: &Hello, clock_ms: u64) -> Self {
        let mut out = FrameQueue::default();
        out.put(FrameKind::Hello, 0, clock_ms, &hello.encode());
        Self {
            state: State::Open,
            gateway: None,
            is_sent_to: true,
            out,
            taken: 0,
            held: 0,
            clocks: ClockBounds::default(),
            is_asking: false,
            ticks: 0,
            silent_ticks: 0,
        }
    }

    /// Returns what is to be written, in bytes that are taken out as the stream accepts them.
    pub fn out(&mut self) -> &mut FrameQueue {
        &mut self.out
    }

    /// Returns what the gateway said of itself; `None` before that.
    pub fn gateway(&self) -> Option<&Hello> {
        self.gateway.as_ref()
    }

    /// Returns how many requests were not given back.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether a reply may be put behind what waits to be written.
    pub fn has_room(&self) -> bool {
        self.out.remaining() < UNSENT_BYTES
    }

    /// Hears a frame. `in_hand` is how many requests the worker has in hand, of all senders.
    ///
    /// # Errors
    /// [`Violation`]: the tunnel is to be closed.
    pub fn hear(
        &mut self,
        frame: Frame,
        clock_ms: u64,
        in_hand: u16,
    ) -> Result<WorkerHeard, Violation> {
        if self.state == State::Left || matches!(frame.kind, FrameKind::Ignorable(_)) {
            return Ok(WorkerHeard::Nothing);
        }
        let is_begun = self.gateway.is_some();
        // A gateway may send its drain first, when it leaves at once.
        let may_be_first = matches!(frame.kind, FrameKind::Hello | FrameKind::Drain);
        if (!is_begun && !may_be_first) || (is_begun && frame.kind == FrameKind::Hello) {
            return Err(Violation::OutOfPlace);
        }
        self.silent_ticks = 0;
        match frame.kind {
            FrameKind::Hello => {
                let hello = Hello::decode(&frame.payload)?;
                self.clocks.exchanged(hello.heard_ms, frame.key, clock_ms);
                self.gateway = Some(hello);
                Ok(WorkerHeard::Opened)
            }
            FrameKind::Request if self.is_sent_to => {
                self.taken += 1;
                self.held += 1;
                Ok(WorkerHeard::Request(Taken(frame.key), frame.detail, frame.payload))
            }
            FrameKind::Cancel => Ok(WorkerHeard::Cancel(frame.key)),
            FrameKind::Drain => {
                self.is_sent_to = false;
                Ok(WorkerHeard::Drained)
            }
            FrameKind::Ping => {
                put_pong(&mut self.out, in_hand, frame.key, clock_ms)?;
                Ok(WorkerHeard::Nothing)
            }
            FrameKind::Pong => {
                self.is_asking = false;
                if let Some(gateway_ms) = frame.clock_ms() {
                    self.clocks.exchanged(frame.key, gateway_ms, clock_ms);
                }
                Ok(WorkerHeard::Nothing)
            }
            FrameKind::Request
            | FrameKind::Reply
            | FrameKind::Goodbye
            | FrameKind::Ignorable(_) => Err(Violation::OutOfPlace),
        }
    }

    /// Returns how old a request is at most; `None` if it must not run, since its client may have
    /// been answered, or its gateway may go by routes that are none any more.
    pub fn age_ms(&mut self, sent_ms: u64, deadline_ms: u32, clock_ms: u64) -> Option<u32> {
        let Some(age_ms) = self.clocks.age_ms(sent_ms, clock_ms) else {
            // The next request shall not wait for the next tick.
            self.ask(clock_ms);
            return None;
        };
        let is_leased = u128::from(age_ms) < LEASE.as_millis();
        u32::try_from(age_ms).ok().filter(|age_ms| is_leased && *age_ms < deadline_ms)
    }

    /// Answers a request; a driver waits for [room](Self::has_room) first. Returns whether it will
    /// be sent: after the goodbye nothing is.
    pub fn answer(&mut self, taken: Taken, payload: &Bytes, in_hand: u16) -> bool {
        let Taken(key) = taken;
        self.held -= 1;
        if self.state == State::Left {
            return false;
        }
        self.out.put(FrameKind::Reply, in_hand, key, payload);
        true
    }

    /// Takes back a request that is not answered: it was cancelled, or its deadline has passed.
    pub fn drop_request(&mut self, taken: Taken) {
        let Taken(_) = taken;
        self.held -= 1;
    }

    /// Wants no new requests.
    pub fn drain(&mut self) {
        if self.state == State::Open {
            self.state = State::Draining;
            self.out.put_empty(FrameKind::Drain, 0, 0);
        }
    }

    /// Whether a goodbye leaves nothing behind: no request comes, and each that came was answered.
    pub fn may_leave(&self) -> bool {
        !self.is_sent_to && self.held == 0 && self.state != State::Left
    }

    /// Says goodbye, whatever is held: nothing is written after it.
    pub fn goodbye(&mut self) {
        if self.state != State::Left {
            self.state = State::Left;
            self.out.put_empty(FrameKind::Goodbye, 0, self.taken);
        }
    }

    /// Whether the goodbye was said.
    pub fn has_left(&self) -> bool {
        self.state == State::Left
    }

    /// Takes note that a [`TICK`](super::TICK) has passed, after all that had come by then was
    /// heard; returns whether the gateway counts as gone. A late tick is one tick.
    pub fn tick(&mut self, clock_ms: u64) -> bool {
        self.ticks = self.ticks.saturating_add(1);
        if self.gateway.is_some() && self.ticks >= TICKS_BETWEEN_PINGS {
            self.ask(clock_ms);
        }
        self.silent_ticks += 1;
        self.silent_ticks >= SILENT_TICKS
    }

    /// Asks for the gateway's clock.
    fn ask(&mut self, clock_ms: u64) {
        if self.state != State::Left && !self.is_asking && self.has_room() {
            (self.ticks, self.is_asking) = (0, true);
            self.out.put_empty(FrameKind::Ping, 0, clock_ms);
        }
    }
}
