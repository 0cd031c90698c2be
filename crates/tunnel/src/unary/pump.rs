//! Moves frames between one end of a tunnel and its connection, in one task.

use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Buf;
use natsway_wire::frame::{Frame, FrameQueue, FrameReader};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Interval, MissedTickBehavior, Sleep};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::{TICK, Violation};

/// Frames that are heard before other tasks have a turn.
const BATCH: usize = 256;

/// How often a write waits for the tasks that are ready, as long as they add to it.
const YIELDS: u32 = 4;

/// How long what still comes is read after the last frame was written. Closing before it is read
/// would have the peer's kernel throw away what it has of that frame.
const LINGER: Duration = Duration::from_secs(1);

/// One end of a tunnel, as the task that moves its frames knows it.
pub trait TunnelEnd {
    /// Hears a frame.
    ///
    /// # Errors
    /// [`Violation`]: the connection is closed.
    fn hear(&self, frame: Frame) -> Result<(), Violation>;

    /// Takes note that a [`TICK`] has passed and all that was there is heard; a break closes the
    /// connection.
    fn tick(&self) -> ControlFlow<()>;

    /// Calls `write` with what is to be written, and keeps the waker for whoever adds to it.
    fn with_out<R>(&self, waker: &Waker, write: impl FnOnce(&mut FrameQueue) -> R) -> R;

    /// Whether what waits may be written now.
    fn may_write(&self) -> bool;

    /// Whether others are likely to add to what waits within this turn of the runtime.
    fn expects_more(&self) -> bool;

    /// Whether the last frame was put into what is to be written.
    fn has_left(&self) -> bool;

    /// Whether the peer has said its last frame, and the connection is to be closed.
    fn is_left(&self) -> bool;
}

/// How a connection came to its end.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    /// The peer does not keep to the protocol.
    #[error("the peer does not keep to the protocol")]
    Violated(#[from] Violation),
    /// What waited may not be written any more.
    #[error("what waited may not be written any more")]
    NotAllowed,
    /// The end was told to give the connection up.
    #[error("the connection was given up")]
    GivenUp,
}

/// Moves frames until the connection ends, which is no error after a goodbye or where the peer
/// closed it. Payloads of up to `payload_bytes` are taken.
///
/// The connection is closed when this returns or is dropped.
///
/// # Errors
/// [`PumpError`].
pub async fn pump<I, E>(io: I, end: &E, payload_bytes: usize) -> Result<(), PumpError>
where
    I: AsyncRead + AsyncWrite + Unpin,
    E: TunnelEnd,
{
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pump = Pump {
        io,
        end,
        reader: FrameReader::new(payload_bytes),
        ticks,
        waiting_bytes: 0,
        yields: 0,
        is_flushed: true,
        lingering: None,
    };
    poll_fn(|cx| pump.poll(cx)).await
}

struct Pump<'e, I, E> {
    io: I,
    end: &'e E,
    reader: FrameReader,
    ticks: Interval,
    /// What waited to be written at the last look, while more is waited for.
    waiting_bytes: usize,
    yields: u32,
    is_flushed: bool,
    /// This end has closed its direction.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<I, E> Pump<'_, I, E>
where
    I: AsyncRead + AsyncWrite + Unpin,
    E: TunnelEnd,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        if let Poll::Ready(read) = self.poll_read(cx)? {
            match read {
                Read::Ended => return Poll::Ready(Ok(())),
                Read::Batch => cx.waker().wake_by_ref(),
            }
        } else {
            // All that was there is heard: silence is the peer's.
            while self.ticks.poll_tick(cx).is_ready() {
                if self.end.tick().is_break() {
                    return Poll::Ready(Err(PumpError::GivenUp));
                }
            }
        }
        if let Some(lingering) = &mut self.lingering {
            return lingering.as_mut().poll(cx).map(|()| Ok(()));
        }
        if self.waits_for_more(cx) {
            return Poll::Pending;
        }
        ready!(self.poll_write(cx))?;
        if self.end.has_left() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            let mut lingering = Box::pin(tokio::time::sleep(LINGER));
            let over = lingering.as_mut().poll(cx).map(|()| Ok(()));
            self.lingering = Some(lingering);
            return over;
        }
        Poll::Pending
    }

    /// Hears what is there; pending when that is all.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Read, PumpError>> {
        for _ in 0..BATCH {
            while let Some(frame) = self.reader.next_frame().map_err(Violation::from)? {
                self.end.hear(frame)?;
                if self.end.is_left() {
                    return Poll::Ready(Ok(Read::Ended));
                }
            }
            match ready!(poll_read_buf(Pin::new(&mut self.io), cx, self.reader.buffer())) {
                Ok(0) => return Poll::Ready(Ok(Read::Ended)),
                Ok(_) => {}
                // What was written last may have met a peer that was gone.
                Err(_) if self.lingering.is_some() => return Poll::Ready(Ok(Read::Ended)),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        Poll::Ready(Ok(Read::Batch))
    }

    /// Gives the tasks that are ready a turn, as long as they add to what waits: one write for all
    /// of them costs little more than one for each of them does.
    fn waits_for_more(&mut self, cx: &mut Context<'_>) -> bool {
        let waiting_bytes = self.end.with_out(cx.waker(), |out| out.remaining());
        let has_grown = waiting_bytes > self.waiting_bytes;
        if has_grown && self.yields < YIELDS && self.end.expects_more() {
            (self.waiting_bytes, self.yields) = (waiting_bytes, self.yields + 1);
            cx.waker().wake_by_ref();
            return true;
        }
        (self.waiting_bytes, self.yields) = (0, 0);
        false
    }

    /// Writes all that waits.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            let (io, end) = (Pin::new(&mut self.io), self.end);
            if !end.may_write() {
                return Poll::Ready(Err(PumpError::NotAllowed));
            }
            let written = end.with_out(cx.waker(), |out| match out.has_remaining() {
                true => poll_write_buf(io, cx, out).map_ok(Some),
                false => Poll::Ready(Ok(None)),
            });
            match ready!(written)? {
                Some(0) => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
                }
                Some(_) => self.is_flushed = false,
                None => break,
            }
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }
}

enum Read {
    Ended,
    Batch,
}
