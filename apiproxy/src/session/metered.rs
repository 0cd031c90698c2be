//! A client's socket whose WebSocket is counted: what comes of a message before it is whole, what
//! the buffers keep behind it, and when the other end last did anything.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::memory::{Account, BodyBudget};

/// What is read at once.
pub(super) const READ_BUFFER_BYTES: usize = 4 * 1024;

/// A session in which nothing is said: its task, its buffers, its head.
const IDLE_BYTES: usize = 16 * 1024;

/// How often bytes are there that come, or go: in the protocol's buffer, and as a message.
const COPIES: usize = 2;

/// What a session holds, and when it last moved.
#[derive(Debug)]
pub(super) struct Meter {
    most_bytes: usize,
    /// What came of the message that is not whole.
    came_bytes: Cell<usize>,
    /// The session, and the buffer that was needed for the largest message so far.
    kept: RefCell<BodyBudget>,
    /// What the message needs beyond that.
    coming: RefCell<BodyBudget>,
    /// The buffer that was needed for the largest answer so far.
    going: RefCell<BodyBudget>,
    heard_at: Cell<Instant>,
    taken_at: Cell<Instant>,
}

impl Meter {
    /// Returns one for messages of up to `most_bytes`, if there is room for a session.
    pub(super) fn new(account: &Rc<Account>, most_bytes: usize) -> Option<Rc<Self>> {
        let kept = BodyBudget::take(account, IDLE_BYTES)?;
        let going = BodyBudget::take(account, 0)?;
        let now = Instant::now();
        Some(Rc::new(Self {
            most_bytes,
            came_bytes: Cell::new(0),
            kept: RefCell::new(kept),
            coming: RefCell::new(BodyBudget::arriving(account)),
            going: RefCell::new(going),
            heard_at: Cell::new(now),
            taken_at: Cell::new(now),
        }))
    }

    pub(super) fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// When something last came.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard_at.get()
    }

    /// Counts the time without a word anew: nobody listened.
    pub(super) fn listen_from_now(&self) {
        self.heard_at.set(Instant::now());
    }

    /// When the client last took something, or was to.
    pub(super) fn taken_at(&self) -> Instant {
        self.taken_at.get()
    }

    /// Something is to be taken from now on.
    pub(super) fn begin_to_send(&self) {
        self.taken_at.set(Instant::now());
    }

    /// A message is here whole: its buffer is kept for the next.
    pub(super) fn message_ended(&self) {
        self.came_bytes.set(0);
        let mut kept = self.kept.borrow_mut();
        let next = BodyBudget::arriving(kept.account());
        kept.absorb(self.coming.replace(next));
    }

    /// Makes room for an answer of so many bytes, if there is any.
    pub(super) fn may_go(&self, bytes: usize) -> bool {
        self.going.borrow_mut().reach(COPIES * bytes)
    }

    fn came(&self, bytes: usize) -> io::Result<()> {
        self.heard_at.set(Instant::now());
        // Frames without content, and those that are no message's, keep nothing.
        let most = self.most_bytes + READ_BUFFER_BYTES;
        self.came_bytes.set((self.came_bytes.get() + bytes).min(most));
        let needed = IDLE_BYTES + COPIES * self.came_bytes.get();
        let more = needed.saturating_sub(self.kept.borrow().bytes());
        match self.coming.borrow_mut().reach(more) {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
        }
    }
}

/// A socket that is counted.
#[derive(Debug)]
pub(super) struct Metered<S> {
    pub(super) stream: S,
    pub(super) meter: Rc<Meter>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        Poll::Ready(self.meter.came(buffer.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.meter.taken_at.set(Instant::now());
        Poll::Ready(taken)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
