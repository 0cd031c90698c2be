//! The gateway's end: what is out on a tunnel, and what became of it.

use std::time::Instant;

use bytes::Bytes;
use natsway_wire::frame::{Frame, FrameKind, FrameQueue, HEAD_BYTES, Hello};
use slab::Slab;

use super::pulse::{ControlAnswer, Pulse};
use super::{UNSENT_BYTES, Violation};
use crate::{LIFETIME, LIFETIME_GRACE};

/// Names a request on its tunnel: how many were sent up to it, and where it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey(u64);

/// What became of a request that its tunnel does not answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It may be sent elsewhere, whatever its method.
    NeverRan,
    /// Its worker may have run it.
    Unknown,
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unsendable {
    /// The tunnel takes none: not yet, or not any more.
    NotOpen,
    /// As much waits to be written as may.
    Full,
    /// It is longer than the worker takes.
    TooLarge,
}

/// What a frame meant. `T` is what the driver knows a request by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayHeard<T> {
    /// Nothing that the driver has to do anything about.
    Nothing,
    /// The worker said what it is; requests may be sent.
    Opened,
    /// The answer to a request, and that is not out any more.
    Reply(T, Bytes),
    /// An answer that nobody waits for.
    Late,
    /// The worker takes no new requests.
    Draining,
    /// The worker has left: what it did not answer, each with what became of it.
    Left(Vec<(T, Fate)>),
}

/// One tunnel, as the gateway sees it.
#[derive(Debug)]
pub struct GatewayEnd<T> {
    state: State,
    name: String,
    /// The longest reply that it takes.
    payload_bytes: u32,
    worker: Option<Hello>,
    out: FrameQueue,
    requests: Slab<Request<T>>,
    /// How many requests were ever sent, which is the number of the last one.
    sent: u32,
    /// Where the last of them ends among the bytes of the tunnel.
    sent_end: u64,
    pulse: Pulse,
    in_hand: u16,
    /// When it was first told the time, after the hello.
    since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The worker has not said its hello.
    Opening,
    Open,
    /// No request is sent any more; those that are out are answered.
    Draining,
    /// Nothing is out, and nothing comes.
    Ended,
}

#[derive(Debug)]
struct Request<T> {
    number: u32,
    /// Where its last byte is among those of the tunnel.
    end: u64,
    waiter: T,
}

impl RequestKey {
    fn new(number: u32, place: usize) -> Self {
        let place = u32::try_from(place).expect("requests that are out are far below 2^32");
        Self(u64::from(number) << 32 | u64::from(place))
    }

    fn number(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn place(self) -> usize {
        self.0 as u32 as usize
    }
}

impl<T: Copy> GatewayEnd<T> {
    /// Returns the end of a tunnel that was just welcomed, of the gateway of this name, which takes
    /// replies of up to `payload_bytes`.
    pub fn new(name: String, payload_bytes: u32) -> Self {
        Self {
            state: State::Opening,
            name,
            payload_bytes,
            worker: None,
            out: FrameQueue::default(),
            requests: Slab::new(),
            sent: 0,
            sent_end: 0,
            pulse: Pulse::default(),
            in_hand: 0,
            since: None,
        }
    }

    /// Returns what is to be written, in bytes that are taken out as the stream accepts them.
    pub fn out(&mut self) -> &mut FrameQueue {
        &mut self.out
    }

    /// Returns what the worker said of itself; `None` before that.
    pub fn worker(&self) -> Option<&Hello> {
        self.worker.as_ref()
    }

    /// Whether requests may be sent, and are answered as far as one can tell.
    pub fn is_usable(&self) -> bool {
        self.state == State::Open && !self.is_stalled()
    }

    /// Whether the worker has not answered several pings: it is not chosen, and nothing is failed.
    pub fn is_stalled(&self) -> bool {
        self.state != State::Ended && self.pulse.is_stalled()
    }

    /// Whether nothing more comes or goes.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Returns how many requests are out.
    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// Returns how many requests the worker had in hand, of all senders, when it last said so.
    pub fn in_hand(&self) -> u16 {
        self.in_hand
    }

    /// Sends a request for one of the tunnel's subjects.
    ///
    /// # Errors
    /// [`Unsendable`]: nothing of it was taken.
    pub fn send(
        &mut self,
        subject: u16,
        payload: &Bytes,
        waiter: T,
    ) -> Result<RequestKey, Unsendable> {
        use bytes::Buf;
        let Some(worker) = self.worker.as_ref().filter(|_| self.state == State::Open) else {
            return Err(Unsendable::NotOpen);
        };
        if payload.len() > worker.payload_bytes as usize {
            return Err(Unsendable::TooLarge);
        }
        let unsent = self.out.remaining();
        if unsent > 0 && unsent + HEAD_BYTES + payload.len() > UNSENT_BYTES {
            return Err(Unsendable::Full);
        }
        // Numbers are not used twice: after so many a tunnel makes room for another one.
        let Some(number) = self.sent.checked_add(1) else { return Err(Unsendable::NotOpen) };
        self.sent = number;
        let place = self.requests.vacant_entry();
        let key = RequestKey::new(number, place.key());
        self.out.put(FrameKind::Request, subject, key.0, payload);
        self.sent_end = self.out.end();
        place.insert(Request { number, end: self.sent_end, waiter });
        Ok(key)
    }

    /// Whether what waits may be written: without a [lease](natsway_wire::frame::LEASE) no request
    /// may. To be asked before each write; the tunnel is [lost](Self::lost) if not, since half a
    /// request cannot be taken back.
    pub fn may_write(&self, has_lease: bool) -> bool {
        has_lease || self.sent_end <= self.out.written()
    }

    /// Nobody waits for a request any more: its worker is told to drop it.
    pub fn cancel(&mut self, key: RequestKey) {
        if self.take(key).is_some() {
            self.out.put_empty(FrameKind::Cancel, 0, key.0);
        }
    }

    /// Nobody waits for a request any more, and its worker may go on with it.
    pub fn abandon(&mut self, key: RequestKey) {
        self.take(key);
    }

    /// Sends no request any more, and says so. The worker leaves once it has answered the others.
    pub fn drain(&mut self) {
        if matches!(self.state, State::Opening | State::Open) {
            self.state = State::Draining;
            self.out.put_empty(FrameKind::Drain, 0, 0);
        }
    }

    /// Takes note of the time, after all that had come by then was heard, and asks whether the
    /// worker is there. `clock_ms` is the clock by which requests are stamped. Returns whether the
    /// tunnel is [lost](Self::lost): its worker did not leave when its time was over.
    ///
    /// A worker renews a tunnel within its [`LIFETIME`]. One that does not may have lost the right
    /// to serve, so it gets no more requests a little later. Those that are out it may answer.
    pub fn tick(&mut self, now: Instant, clock_ms: u64) -> bool {
        use bytes::Buf;
        if !matches!(self.state, State::Open | State::Draining) || self.worker.is_none() {
            return false;
        }
        let age = now.saturating_duration_since(*self.since.get_or_insert(now));
        if age > LIFETIME + LIFETIME_GRACE {
            self.drain();
        }
        if age > LIFETIME + 2 * LIFETIME_GRACE && self.requests.is_empty() {
            return true;
        }
        self.pulse.tick(now);
        // A ping behind what the worker does not take would say nothing.
        if self.out.remaining() < UNSENT_BYTES {
            self.out.put_empty(FrameKind::Ping, 0, clock_ms);
        }
        false
    }

    /// Takes note of what the worker's control thread said by the broker while the tunnel is
    /// stalled; returns whether the tunnel is [lost](Self::lost) by that.
    pub fn asked_by_broker(&mut self, answer: ControlAnswer) -> bool {
        self.pulse.asked_by_broker(answer)
    }

    /// Hears a frame. `clock_ms` is as for [`tick`](Self::tick).
    ///
    /// # Errors
    /// [`Violation`]: the tunnel is to be closed, and is [lost](Self::lost).
    pub fn hear(&mut self, frame: Frame, clock_ms: u64) -> Result<GatewayHeard<T>, Violation> {
        if let FrameKind::Ignorable(_) = frame.kind {
            return Ok(GatewayHeard::Nothing);
        }
        let is_begun = self.worker.is_some();
        if self.state == State::Ended || is_begun == (frame.kind == FrameKind::Hello) {
            return Err(Violation::OutOfPlace);
        }
        self.pulse.heard();
        match frame.kind {
            FrameKind::Hello => self.hear_hello(&frame, clock_ms),
            FrameKind::Reply => self.hear_reply(frame),
            FrameKind::Drain => {
                self.drain();
                Ok(GatewayHeard::Draining)
            }
            FrameKind::Goodbye => self.hear_goodbye(frame.key),
            FrameKind::Ping => {
                put_pong(&mut self.out, 0, frame.key, clock_ms)?;
                Ok(GatewayHeard::Nothing)
            }
            FrameKind::Pong => {
                self.in_hand = frame.detail;
                Ok(GatewayHeard::Nothing)
            }
            FrameKind::Request | FrameKind::Cancel | FrameKind::Ignorable(_) => {
                Err(Violation::OutOfPlace)
            }
        }
    }

    /// Ends a tunnel whose connection is gone or of no use: returns what is not answered, each with
    /// what became of it. Its last byte was not accepted by the stream: it never ran.
    pub fn lost(&mut self) -> Vec<(T, Fate)> {
        let written = self.out.written();
        self.end(|request| request.end > written)
    }

    fn hear_hello(&mut self, frame: &Frame, clock_ms: u64) -> Result<GatewayHeard<T>, Violation> {
        self.worker = Some(Hello::decode(&frame.payload)?);
        let hello = Hello {
            name: self.name.clone(),
            requests: 0,
            payload_bytes: self.payload_bytes,
            heard_ms: frame.key,
        };
        self.out.put(FrameKind::Hello, 0, clock_ms, &hello.encode());
        // It may have been told to drain before.
        if self.state == State::Opening {
            self.state = State::Open;
        }
        Ok(GatewayHeard::Opened)
    }

    fn hear_reply(&mut self, frame: Frame) -> Result<GatewayHeard<T>, Violation> {
        let key = RequestKey(frame.key);
        if key.number() == 0 || key.number() > self.sent {
            return Err(Violation::Unasked);
        }
        let written = self.out.written();
        let request = self.requests.get(key.place());
        match request.filter(|request| request.number == key.number()) {
            Some(request) if request.end > written => return Err(Violation::Unasked),
            Some(_) => {}
            None => return Ok(GatewayHeard::Late),
        }
        self.in_hand = frame.detail;
        let Request { waiter, .. } = self.requests.remove(key.place());
        Ok(GatewayHeard::Reply(waiter, frame.payload))
    }

    fn hear_goodbye(&mut self, taken: u64) -> Result<GatewayHeard<T>, Violation> {
        if taken > u64::from(self.sent) {
            return Err(Violation::Miscounted);
        }
        Ok(GatewayHeard::Left(self.end(|request| u64::from(request.number) > taken)))
    }

    fn end(&mut self, never_ran: impl Fn(&Request<T>) -> bool) -> Vec<(T, Fate)> {
        self.state = State::Ended;
        let fate = |request: Request<T>| match never_ran(&request) {
            true => (request.waiter, Fate::NeverRan),
            false => (request.waiter, Fate::Unknown),
        };
        self.requests.drain().map(fate).collect()
    }

    fn take(&mut self, key: RequestKey) -> Option<Request<T>> {
        self.requests.get(key.place()).filter(|request| request.number == key.number())?;
        Some(self.requests.remove(key.place()))
    }
}

/// Answers a ping, unless so much waits to be written that a peer must be playing with us.
pub(super) fn put_pong(
    out: &mut FrameQueue,
    detail: u16,
    key: u64,
    clock_ms: u64,
) -> Result<(), Violation> {
    use bytes::Buf;
    if out.remaining() > 2 * UNSENT_BYTES {
        return Err(Violation::Flood);
    }
    out.put_pong(detail, key, clock_ms);
    Ok(())
}
