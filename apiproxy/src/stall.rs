//! Clients that do not take what they are sent, or take it so slowly that it costs them nothing to
//! fill our memory. Nothing else ends such a connection: it would keep its answers, and its place
//! among the connections, for as long as its client likes.
//!
//! Three things can stand still: the socket, into which no more can be written
//! ([`WriteTimeoutStream`]); a connection as a whole, and in HTTP/2 a single answer, whose window
//! its client leaves shut while it takes everything else ([`StallDetector`]).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::linger::HasLeft;
use crate::memory::{Account, BodyBudget};

/// What is read at once from a client for whose larger buffer there is no room.
const LEAST_READ_BYTES: usize = 4 * 1024;

/// A client's socket. It gives first what was read of it before, fails once nothing could be
/// written for a while though something was to be, and has the buffers that are read into counted.
#[derive(Debug)]
pub struct WriteTimeoutStream {
    stream: TcpStream,
    first: FirstBytes,
    limit: Duration,
    /// Ends when it has stood still for too long; there only while it stands still.
    stalled: Option<Pin<Box<Sleep>>>,
    inbound: Rc<Inbound>,
    /// What the buffer has beyond what every connection may have.
    buffer: BodyBudget,
    /// The size up to which the buffer is counted.
    counted_bytes: usize,
}

/// What was read of a socket to see what the client speaks.
#[derive(Clone, Copy, Debug)]
pub struct FirstBytes {
    /// What was read, and room behind it.
    pub bytes: [u8; Self::MOST],
    /// How many of them were read.
    pub count: usize,
}

impl FirstBytes {
    /// As many as HTTP/2's preface has.
    pub const MOST: usize = 24;
}

/// What the reader of a connection knows of its requests.
#[derive(Debug, Default)]
pub struct Inbound {
    /// Whether heads come in frames, which are bounded and taken one by one.
    has_frames: Cell<bool>,
    /// Whether what comes belongs to a request that is counted by itself.
    in_request: Cell<bool>,
    /// Bytes that came since then and belong to a head that is not here whole.
    head_bytes: Cell<usize>,
    /// Whether the connection ends by a reset.
    resets: Cell<bool>,
}

impl Inbound {
    /// Heads come in frames: no buffer keeps them.
    pub fn expect_frames(&self) {
        self.has_frames.set(true);
    }

    /// The request is answered: what comes now is another head.
    pub fn end_request(&self) {
        self.in_request.set(false);
    }

    /// The connection must not end as if all were in order.
    pub fn reset_on_close(&self) {
        self.resets.set(true);
    }

    /// A head is here whole: what comes now belongs to its request.
    pub fn begin_request(&self) {
        self.in_request.set(true);
        self.head_bytes.set(0);
    }
}

impl WriteTimeoutStream {
    /// Returns a socket that may stand still for `limit`. Its account counts what buffers have
    /// above `free_bytes`.
    pub fn new(
        stream: TcpStream,
        first: FirstBytes,
        limit: Duration,
        inbound: Rc<Inbound>,
        account: &Rc<Account>,
        free_bytes: usize,
    ) -> Self {
        let (stalled, buffer) = (None, BodyBudget::arriving(account));
        Self { stream, first, limit, stalled, inbound, buffer, counted_bytes: free_bytes }
    }

    fn in_time(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        let error =
            io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of what it is sent");
        Poll::Ready(Err(error))
    }

    /// Counts a buffer of this size, if there is room for one.
    fn count_buffer(&mut self, bytes: usize) -> bool {
        let bytes = bytes.next_power_of_two();
        let more = bytes - self.counted_bytes;
        let has_room = self.buffer.reach(self.buffer.bytes() + more);
        if has_room {
            self.counted_bytes = bytes;
        }
        has_room
    }

    fn poll_socket(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let head_bytes = self.inbound.head_bytes.get();
        if head_bytes + buffer.remaining() > self.counted_bytes
            && !self.count_buffer(head_bytes + buffer.remaining())
        {
            if head_bytes + LEAST_READ_BYTES > self.counted_bytes {
                self.buffer.account().budget().metrics().closed.inc();
                let error = io::Error::new(
                    io::ErrorKind::OutOfMemory,
                    "no room for a head as long as this",
                );
                return Poll::Ready(Err(error));
            }
            // What is not touched of a larger buffer takes no memory.
            let mut few = [0; LEAST_READ_BYTES];
            let mut few = ReadBuf::new(&mut few);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut few))?;
            buffer.put_slice(few.filled());
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl HasLeft for WriteTimeoutStream {
    fn has_left(&self) -> bool {
        let ready = self.stream.ready(Interest::READABLE).now_or_never();
        matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
    }
}

impl Drop for WriteTimeoutStream {
    fn drop(&mut self) {
        if self.inbound.resets.get() {
            // Without it the client sees an orderly end, which is no worse than before.
            self.stream.set_zero_linger().ok();
        }
    }
}

impl AsyncRead for WriteTimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if this.first.count > 0 && buffer.remaining() >= this.first.count {
            buffer.put_slice(&this.first.bytes[..this.first.count]);
            this.first.count = 0;
            // With what came since then, as one read: who reads sizes buffers by what comes at
            // once.
            if let Poll::Ready(read) = this.poll_socket(cx, buffer) {
                read?;
            }
        } else {
            ready!(this.poll_socket(cx, buffer))?;
        }
        if !this.inbound.in_request.get() && !this.inbound.has_frames.get() {
            let head_bytes = &this.inbound.head_bytes;
            head_bytes.set(head_bytes.get() + buffer.filled().len() - before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WriteTimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// HTTP is done with writing when it asks for this: answers without a body are gone by now.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.buffer.account().flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How fast a client must take its answers.
#[derive(Clone, Copy, Debug)]
pub struct SendRate {
    /// The time over which it is judged.
    pub span: Duration,
    /// Bytes a second, for each MiB of answers that wait; 0 for a single byte now and then.
    pub bytes_per_second: u32,
}

impl SendRate {
    fn span_bytes(&self) -> u64 {
        let bytes = self.span.as_secs_f64() * f64::from(self.bytes_per_second);
        (bytes as u64).max(1)
    }
}

/// What a span of time has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// All goes on, or there is nothing to send.
    Steady,
    /// An answer was left standing while the connection took others.
    Stalled,
    /// The connection takes less than it must.
    TooSlow,
}

/// The answers of one connection that are on their way, judged by spans of time.
///
/// Over each span the connection must take its rate for each MiB that waits. Each answer must take
/// a quarter of its fair share of what the connection took in the span before, but no more than the
/// rate: so a slow network that many answers share ends none of them, and a window that is opened
/// by a byte now and then keeps none.
#[derive(Debug)]
pub struct StallDetector {
    rate: SendRate,
    /// The number of the span that is now.
    span: Cell<u64>,
    answers: Cell<usize>,
    /// Of these, those that began in this span.
    begun: Cell<usize>,
    /// Answers by whether their last span with a share taken is even or odd: this one or the one
    /// before.
    shared: [Cell<usize>; 2],
    unsent_bytes: Cell<u64>,
    /// What was taken in this span.
    taken_bytes: Cell<u64>,
    /// What each answer must take in this span.
    share_bytes: Cell<u64>,
}

impl StallDetector {
    /// Returns a detector for a connection that has nothing to send.
    pub fn new(rate: SendRate) -> Rc<Self> {
        let (span, answers, begun, shared, unsent_bytes, taken_bytes) = Default::default();
        let share_bytes = Cell::new(1);
        Rc::new(Self { rate, span, answers, begun, shared, unsent_bytes, taken_bytes, share_bytes })
    }

    /// Returns how many answers are on their way.
    pub fn answers(&self) -> usize {
        self.answers.get()
    }

    /// Counts an answer of so many bytes, until what is returned is dropped.
    pub fn begin(self: &Rc<Self>, bytes: usize) -> UnsentBytes {
        let (span, bytes) = (self.span.get(), bytes as u64);
        add(&self.answers, 1);
        add(&self.begun, 1);
        add(&self.shared[parity(span)], 1);
        self.unsent_bytes.set(self.unsent_bytes.get() + bytes);
        UnsentBytes {
            of: Rc::clone(self),
            bytes,
            began: span,
            shared: span,
            current: span,
            taken_bytes: 0,
        }
    }

    /// Waits until an answer or the connection was too slow over a span.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing but the time that was waited.
    pub async fn stalled(&self) -> Pace {
        loop {
            tokio::time::sleep(self.rate.span).await;
            match self.end_span() {
                Pace::Steady => {}
                pace => return pace,
            }
        }
    }

    /// Ends a span of time.
    fn end_span(&self) -> Pace {
        const MIB: u64 = 1 << 20;
        let (span, taken) = (self.span.get(), self.taken_bytes.take());
        let waited = (self.answers.get() - self.begun.take()) as u64;
        // Who took no share is stuck in the next span as well, unless it gets on.
        let stuck = self.shared[1 - parity(span)].take();
        add(&self.shared[parity(span)], stuck as isize);
        let least = self.rate.span_bytes();
        let share = taken / waited.max(1) / 4;
        self.share_bytes.set(share.clamp(1, least));
        self.span.set(span + 1);
        if waited > 0 && taken < least.saturating_mul(self.unsent_bytes.get().div_ceil(MIB).max(1))
        {
            Pace::TooSlow
        } else if stuck > 0 {
            Pace::Stalled
        } else {
            Pace::Steady
        }
    }
}

fn parity(span: u64) -> usize {
    (span & 1) as usize
}

fn add(count: &Cell<usize>, change: isize) {
    count.set(count.get().saturating_add_signed(change));
}

/// An answer that its client has not taken whole.
#[derive(Debug)]
pub struct UnsentBytes {
    of: Rc<StallDetector>,
    bytes: u64,
    /// The span in which it began.
    began: u64,
    /// The last span in which it took its share.
    shared: u64,
    /// The span for which it counts what it took.
    current: u64,
    taken_bytes: u64,
}

impl UnsentBytes {
    /// So many bytes of it were taken.
    pub fn got_on(&mut self, bytes: usize) {
        let (of, now, bytes) = (&self.of, self.of.span.get(), bytes as u64);
        of.taken_bytes.set(of.taken_bytes.get() + bytes);
        if self.shared == now {
            return;
        }
        if self.current != now {
            (self.current, self.taken_bytes) = (now, 0);
        }
        self.taken_bytes += bytes;
        if self.taken_bytes >= of.share_bytes.get() {
            add(&of.shared[self.counted_in()], -1);
            add(&of.shared[parity(now)], 1);
            self.shared = now;
        }
    }

    /// Where it is counted: what is older than the span before counts as of that one.
    fn counted_in(&self) -> usize {
        let now = self.of.span.get();
        if self.shared == now { parity(now) } else { 1 - parity(now) }
    }
}

impl Drop for UnsentBytes {
    fn drop(&mut self) {
        let of = &self.of;
        add(&of.answers, -1);
        if self.began == of.span.get() {
            add(&of.begun, -1);
        }
        add(&of.shared[self.counted_in()], -1);
        of.unsent_bytes.set(of.unsent_bytes.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// 1,000 bytes a span.
    fn detector() -> Rc<StallDetector> {
        StallDetector::new(SendRate { span: Duration::from_secs(10), bytes_per_second: 100 })
    }

    #[test]
    fn nothing_to_send_is_steady() {
        let detector = detector();
        assert_eq!([(); 3].map(|()| detector.end_span()), [Pace::Steady; 3]);
        drop(detector.begin(5));
        let answer = detector.begin(5);
        assert_eq!(detector.end_span(), Pace::Steady, "it began in the span that ends");
        drop(answer);
        assert_eq!(detector.end_span(), Pace::Steady);
        assert_eq!(detector.answers(), 0);
    }

    #[test]
    fn a_byte_now_and_then_is_too_slow() {
        let detector = detector();
        let mut answer = detector.begin(MIB);
        assert_eq!(detector.end_span(), Pace::Steady);
        answer.got_on(1_000);
        assert_eq!(detector.end_span(), Pace::Steady);
        answer.got_on(999);
        assert_eq!(detector.end_span(), Pace::TooSlow);
    }

    #[test]
    fn who_has_more_waiting_must_take_more() {
        let detector = detector();
        let mut answers: Vec<_> = (0..10).map(|_| detector.begin(MIB)).collect();
        detector.end_span();
        answers.iter_mut().for_each(|answer| answer.got_on(1_000));
        assert_eq!(detector.end_span(), Pace::Steady);
        answers.iter_mut().for_each(|answer| answer.got_on(999));
        assert_eq!(detector.end_span(), Pace::TooSlow);
    }

    #[test]
    fn an_answer_whose_window_is_shut_is_stuck_while_others_get_on() {
        let detector = detector();
        let (mut quick, mut shut) = (detector.begin(MIB), detector.begin(1_000));
        for _ in 0..2 {
            detector.end_span();
            quick.got_on(100_000);
            shut.got_on(1);
        }
        assert_eq!(detector.end_span(), Pace::Stalled);
        quick.got_on(100_000);
        assert_eq!(detector.end_span(), Pace::Stalled, "it is still stuck");
        quick.got_on(100_000);
        shut.got_on(1_000);
        assert_eq!(detector.end_span(), Pace::Steady);
        quick.got_on(100_000);
        drop(shut);
        assert_eq!(detector.end_span(), Pace::Steady);
    }

    #[test]
    fn answers_that_share_a_slow_network_are_not_stuck() {
        let detector = detector();
        // Each is slower than the rate for one alone; all together are not.
        let mut answers: Vec<_> = (0..40).map(|_| detector.begin(50_000)).collect();
        for _ in 0..10 {
            assert_eq!(detector.end_span(), Pace::Steady);
            answers.iter_mut().for_each(|answer| answer.got_on(100));
        }
    }

    #[test]
    fn figures_return_to_zero_whatever_becomes_of_the_answers() {
        for seed in 0..200 {
            let mut choices = fastrand::Rng::with_seed(seed);
            let (detector, mut answers) = (detector(), Vec::new());
            for _ in 0..300 {
                match choices.u8(0..4) {
                    0 => answers.push(detector.begin(choices.usize(0..3_000_000))),
                    1 if !answers.is_empty() => {
                        drop(answers.swap_remove(choices.usize(..answers.len())))
                    }
                    2 if !answers.is_empty() => {
                        let chosen = choices.usize(..answers.len());
                        answers[chosen].got_on(choices.usize(1..5_000));
                    }
                    _ => drop(detector.end_span()),
                }
                let shared = detector.shared[0].get() + detector.shared[1].get();
                assert_eq!((detector.answers(), shared), (answers.len(), answers.len()));
                assert!(detector.begun.get() <= answers.len());
            }
            drop(answers);
            let begun = (detector.begun.get(), detector.unsent_bytes.get());
            assert_eq!((detector.answers(), begun), (0, (0, 0)));
        }
    }
}
