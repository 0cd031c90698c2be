//! The bytes of a pipe, for who reads and writes them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use natsway_wire::pipe::{CHUNK_BYTES, PipeMessage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use super::state::{PipeError, PipeState};

/// Bytes that wait to be sent; who writes more waits.
const SEND_BUFFER_BYTES: usize = 4 * CHUNK_BYTES;

/// What is shorter is copied when it comes: it would keep the whole of what the client of the
/// broker read at once.
const COPIED_BYTES: usize = 4 * 1024;

/// How pipes are at one end.
#[derive(Clone, Debug)]
pub struct PipeSettings {
    /// What the other end may be ahead of our reader, in bytes. That much is held at the most.
    pub window_bytes: u32,
    /// How fast the pipes that share this may be, both ways: what the other end sends is slowed
    /// down by what it is let send.
    pub pace: Option<Arc<Pace>>,
    /// Where they count.
    pub meter: Arc<PipeMeter>,
}

impl PipeSettings {
    /// Bytes that one pipe may hold at this end: what came and was not read, and what waits to be
    /// sent.
    pub fn pipe_bytes(window_bytes: u32) -> usize {
        window_bytes as usize + SEND_BUFFER_BYTES
    }
}

/// What pipes have done.
#[derive(Debug, Default)]
pub struct PipeMeter {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    broken: AtomicU64,
}

impl PipeMeter {
    /// Bytes that were sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Relaxed)
    }

    /// Bytes that came.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Relaxed)
    }

    /// Pipes that broke: something was lost, or the other end was.
    pub fn broken(&self) -> u64 {
        self.broken.load(Relaxed)
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn broke(&self) {
        self.broken.fetch_add(1, Relaxed);
    }
}

/// One end of a pipe, as a connection. Dropping it ends the pipe once what was written is sent.
///
/// Bytes that were written are sent as soon as they may be, so there is nothing to flush.
#[derive(Debug)]
pub struct PipeStream {
    shared: Arc<Shared>,
}

/// Completes when a pipe should take no further streams: either end's way to the broker will end.
#[derive(Clone, Debug)]
pub struct PipeLeaving(CancellationToken);

impl PipeLeaving {
    /// See the type.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }
}

/// What a stream and its driver share.
#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    /// Told when there may be something to send.
    pub(super) work: Notify,
    leaving: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    state: PipeState,
    /// What came and was not read, each with the length that it came in.
    incoming: VecDeque<(Bytes, usize)>,
    outgoing: BytesMut,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// No more is written.
    is_ending: bool,
    /// Nobody reads or writes any more, since when.
    dropped_at: Option<Instant>,
    broken: Option<PipeError>,
}

impl PipeStream {
    pub(super) fn new(state: PipeState) -> (Self, Arc<Shared>) {
        let inner = Inner {
            state,
            incoming: VecDeque::new(),
            outgoing: BytesMut::new(),
            reader: None,
            writer: None,
            is_ending: false,
            dropped_at: None,
            broken: None,
        };
        let (work, leaving) = (Notify::new(), CancellationToken::new());
        let shared = Arc::new(Shared { inner: Mutex::new(inner), work, leaving });
        (Self { shared: Arc::clone(&shared) }, shared)
    }

    /// Tells when the pipe should take no further streams.
    pub fn leaving(&self) -> PipeLeaving {
        PipeLeaving(self.shared.leaving.clone())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the other end said.
    pub(super) fn receive(&self, message: PipeMessage, meter: &PipeMeter) -> Result<(), PipeError> {
        let mut inner = self.lock();
        let had_room = inner.state.sendable() > 0;
        let data = inner.state.receive(message)?;
        if let Some(bytes) = data {
            meter.received(bytes.len());
            let length = bytes.len();
            let bytes = if length < COPIED_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes };
            // Nobody reads it any more.
            if inner.dropped_at.is_none() {
                inner.incoming.push_back((bytes, length));
            }
            inner.wake_reader();
            return Ok(());
        }
        if inner.state.peer_is_leaving() {
            self.leaving.cancel();
        }
        if inner.state.peer_has_ended() {
            inner.wake_reader();
            self.work.notify_one();
        } else if !had_room {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Returns the bytes of what was written that may be sent next.
    pub(super) fn next_bytes(&self) -> Option<usize> {
        let inner = self.lock();
        Some(inner.outgoing.len().min(inner.state.sendable())).filter(|bytes| *bytes > 0)
    }

    /// Takes so many of them, and returns how many there are. What was taken is sent before
    /// anything is said of how far this end is.
    pub(super) fn next_data(&self, most: usize) -> Option<(PipeMessage, usize)> {
        let mut inner = self.lock();
        let length = inner.outgoing.len().min(inner.state.sendable()).min(most);
        if length == 0 {
            return None;
        }
        let bytes = inner.outgoing.split_to(length).freeze();
        if let Some(writer) = inner.writer.take() {
            writer.wake();
        }
        Some((inner.state.send(bytes), length))
    }

    /// Returns what says that this end sends no more, once.
    pub(super) fn end(&self) -> Option<PipeMessage> {
        let mut inner = self.lock();
        let is_due = (inner.is_ending || inner.dropped_at.is_some())
            && inner.outgoing.is_empty()
            && !inner.state.has_ended();
        is_due.then(|| inner.state.end())
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.state.has_ended() && (inner.state.peer_has_ended() || inner.dropped_at.is_some())
    }

    pub(super) fn dropped_at(&self) -> Option<Instant> {
        self.lock().dropped_at
    }

    pub(super) fn due(&self) -> Option<u64> {
        self.lock().state.due()
    }

    pub(super) fn grant(&self, cost: u64) -> PipeMessage {
        self.lock().state.grant(cost)
    }

    pub(super) fn tick(&self) -> Result<Option<PipeMessage>, PipeError> {
        self.lock().state.tick()
    }

    pub(super) fn leave(&self) -> PipeMessage {
        self.leaving.cancel();
        self.lock().state.leave()
    }

    /// Has who reads and writes know that the pipe is broken.
    pub(super) fn break_off(&self, error: PipeError) {
        let mut inner = self.lock();
        inner.broken = Some(error);
        inner.outgoing = BytesMut::new();
        inner.wake_reader();
        if let Some(writer) = inner.writer.take() {
            writer.wake();
        }
    }
}

impl Inner {
    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn is_broken(&self) -> io::Result<()> {
        match self.broken {
            None => Ok(()),
            Some(error @ PipeError::Silent) => Err(io::Error::new(io::ErrorKind::TimedOut, error)),
            Some(error) => Err(io::Error::new(io::ErrorKind::ConnectionReset, error)),
        }
    }

    /// Takes bytes to be sent; `None` while there is no room.
    fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        self.is_broken()?;
        if self.is_ending {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = SEND_BUFFER_BYTES - self.outgoing.len();
        if room == 0 && pieces.iter().any(|piece| !piece.is_empty()) {
            return Ok(None);
        }
        let mut left = room;
        for piece in pieces {
            let taken = left.min(piece.len());
            self.outgoing.extend_from_slice(&piece[..taken]);
            left -= taken;
        }
        Ok(Some(room - left))
    }
}

impl AsyncRead for PipeStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        while buffer.remaining() > 0
            && let Some((bytes, length)) = inner.incoming.front_mut()
        {
            let taken = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..taken]);
            bytes.advance(taken);
            if bytes.is_empty() {
                let length = *length;
                inner.incoming.pop_front();
                inner.state.taken(length);
            }
        }
        if buffer.filled().len() > before {
            if inner.state.due().is_some() {
                self.shared.work.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        // What came before the end is whole, whatever became of the way since.
        if inner.state.peer_has_ended() {
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = inner.is_broken() {
            return Poll::Ready(Err(error));
        }
        inner.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for PipeStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        match inner.write(pieces) {
            Ok(Some(written)) => {
                self.shared.work.notify_one();
                Poll::Ready(Ok(written))
            }
            Ok(None) => {
                inner.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shared.lock().is_broken())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        inner.is_ending = true;
        self.shared.work.notify_one();
        Poll::Ready(inner.is_broken())
    }
}

impl Drop for PipeStream {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.dropped_at = Some(Instant::now());
        inner.incoming.clear();
        self.shared.work.notify_one();
    }
}
