//! How an HTTP/1 connection ends whose client is still sending (RFC 9112 section 9.6).
//!
//! A request is answered before its body is read where it is refused: too long, no room, no route.
//! A socket that is closed with bytes unread is reset, and the reset overtakes the answer: its
//! client sees a broken pipe. So the writing side is closed first, and what still comes is read and
//! thrown away, until the client closes or a bound is reached.
//!
//! And how one ends whose client has left while a stream is on. HTTP reads no further than a body
//! that nobody takes, or the next request, and what lies behind is the end: so it is looked for.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use natsway_caller::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What is read at a time of what nobody wants.
const DISCARD_BYTES: usize = 16 * 1024;

/// How often it is looked whether a client has left.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A socket of which is known whether the other end has closed it, whatever is unread.
pub trait HasLeft {
    /// Whether nothing more comes behind what was not read yet.
    fn has_left(&self) -> bool;
}

/// How long, and for how many bytes, a client that was answered may go on sending.
#[derive(Clone, Copy, Debug)]
pub struct LingerLimits {
    /// Zero for not at all.
    pub time: Duration,
    /// Beyond what was read before the answer.
    pub bytes: u64,
}

/// How many connections lingered, by what ended them.
#[derive(Debug, Default)]
pub struct LingerCounts {
    /// Their clients closed: the answer was read.
    pub closed: Counter,
    /// They were cut off at a bound.
    pub cut: Counter,
}

/// What has come on a connection that belongs to no request that was read whole.
#[derive(Debug, Default)]
pub struct Unread {
    bytes: Cell<bool>,
    answered: Cell<bool>,
    in_body: Cell<bool>,
    lingering: Cell<bool>,
    /// The request, or its answer, goes on by a stream.
    goes_on: Cell<bool>,
}

impl Unread {
    /// Says that a request is here whose body, if it has one, is not read yet.
    pub fn request_began(&self) {
        self.goes_on.set(false);
    }

    /// Says that the request or its answer goes on by a stream.
    pub fn stream_began(&self) {
        self.goes_on.set(true);
    }

    /// Says that a body is to be read.
    pub fn body_began(&self) {
        self.in_body.set(true);
    }

    /// Says that a request was read to its end.
    pub fn request_ended(&self) {
        self.bytes.set(false);
        self.in_body.set(false);
    }

    /// Whether the request in hand has more to come, so that its connection cannot serve another.
    pub fn is_in_body(&self) -> bool {
        self.in_body.get()
    }

    /// Whether its connection is closed on our side, and what still comes is thrown away.
    pub fn is_lingering(&self) -> bool {
        self.lingering.get()
    }

    fn came(&self) {
        // The first bytes of a request; what is read of it later, hyper may read behind its answer.
        if !self.bytes.replace(true) {
            self.answered.set(false);
        }
    }

    /// Whether an answer went out to somebody who may still be sending.
    fn is_answered(&self) -> bool {
        self.bytes.get() && self.answered.get()
    }
}

/// A client's socket that does not reset what it was answered.
#[derive(Debug)]
pub struct Lingering<S> {
    stream: S,
    unread: Rc<Unread>,
    limits: LingerLimits,
    counts: Arc<LingerCounts>,
    discarding: Option<Discarding>,
    /// When it is looked next whether the client has left; there only while a stream is on.
    look: Option<Pin<Box<Sleep>>>,
    looks: bool,
}

#[derive(Debug)]
struct Discarding {
    bytes: u64,
    ends: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Lingering<S> {
    /// A socket on which `unread` is known by what serves it.
    pub fn new(
        stream: S,
        unread: Rc<Unread>,
        limits: LingerLimits,
        counts: Arc<LingerCounts>,
    ) -> Self {
        Self { stream, unread, limits, counts, discarding: None, look: None, looks: false }
    }

    /// Has it fail once the client has closed its sending side while a stream is on.
    #[must_use]
    pub fn looking_for_leave(mut self, looks: bool) -> Self {
        self.looks = looks;
        self
    }

    /// Reads and forgets, until the client has closed or a bound is reached.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(discarding) = &mut self.discarding else { return Poll::Ready(()) };
        let mut room = [0; DISCARD_BYTES];
        let ended = loop {
            if discarding.bytes > self.limits.bytes || discarding.ends.as_mut().poll(cx).is_ready()
            {
                break &self.counts.cut;
            }
            let mut buffer = ReadBuf::new(&mut room);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    discarding.bytes += buffer.filled().len() as u64
                }
                Ok(()) | Err(_) => break &self.counts.closed,
            }
        };
        ended.inc();
        self.discarding = None;
        Poll::Ready(())
    }
}

impl<S: HasLeft> Lingering<S> {
    /// Looks now and then whether the client has left, and wakes whoever asks for that.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !(self.looks && self.unread.goes_on.get()) {
            self.look = None;
            return Ok(());
        }
        let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK_INTERVAL)));
        while look.as_mut().poll(cx).is_ready() {
            if self.stream.has_left() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client left"));
            }
            look.as_mut().reset(tokio::time::Instant::now() + LOOK_INTERVAL);
        }
        Ok(())
    }

    /// What was written, or whether it has come to nothing.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.look(cx)?;
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.unread.came();
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + HasLeft + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unread.answered.set(true);
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unread.answered.set(true);
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// HTTP asks for this whenever it has been at work, also where there is nothing to write.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.discarding.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if self.limits.time.is_zero() || !self.unread.is_answered() {
                return Poll::Ready(Ok(()));
            }
            // Once: whoever asks again has waited for it.
            self.unread.request_ended();
            self.unread.lingering.set(true);
            let ends = Box::pin(tokio::time::sleep(self.limits.time));
            self.discarding = Some(Discarding { bytes: 0, ends });
        }
        self.poll_discard(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::yield_now;

    use super::*;

    impl HasLeft for DuplexStream {
        fn has_left(&self) -> bool {
            false
        }
    }

    const LIMITS: LingerLimits = LingerLimits { time: Duration::from_secs(5), bytes: 100_000 };

    struct Stand {
        server: Lingering<DuplexStream>,
        client: DuplexStream,
        unread: Rc<Unread>,
        counts: Arc<LingerCounts>,
    }

    impl Stand {
        fn new(limits: LingerLimits) -> Self {
            let (client, server) = duplex(1_000);
            let (unread, counts) = (Rc::<Unread>::default(), Arc::<LingerCounts>::default());
            let server = Lingering::new(server, Rc::clone(&unread), limits, Arc::clone(&counts));
            Self { server, client, unread, counts }
        }

        /// Reads a piece of a request, and answers it.
        async fn answer(&mut self) {
            self.client.write_all(b"POST").await.unwrap();
            self.server.read_exact(&mut [0; 4]).await.unwrap();
            self.server.write_all(b"413").await.unwrap();
        }

        fn counted(&self) -> (u64, u64) {
            (self.counts.closed.get(), self.counts.cut.get())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_behind_an_answer_is_read_until_the_client_closes() {
        let mut stand = Stand::new(LIMITS);
        stand.answer().await;
        let Stand { mut server, mut client, counts, .. } = stand;
        let sending = async {
            // More than there is room for in between.
            client.write_all(&[0; 50_000]).await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            drop(client);
            answer
        };
        let (closed, answer) = tokio::join!(server.shutdown(), sending);
        closed.unwrap();
        assert_eq!(answer, b"413");
        assert_eq!((counts.closed.get(), counts.cut.get()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_behind_an_answer_does_not_undo_it() {
        let mut stand = Stand::new(LIMITS);
        stand.answer().await;
        stand.client.write_all(b"body").await.unwrap();
        stand.server.read_exact(&mut [0; 4]).await.unwrap();
        stand.server.shutdown().await.unwrap();
        assert_eq!(stand.counted(), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_ends_is_cut_off_by_time_and_by_bytes() {
        let mut stand = Stand::new(LIMITS);
        stand.answer().await;
        let started = tokio::time::Instant::now();
        stand.server.shutdown().await.unwrap();
        assert!(started.elapsed() >= LIMITS.time);
        assert_eq!(stand.counted(), (0, 1));
        stand.server.shutdown().await.unwrap();
        assert_eq!(stand.counted(), (0, 1), "once");

        let mut stand = Stand::new(LIMITS);
        stand.answer().await;
        let Stand { mut server, mut client, counts, .. } = stand;
        let endless = async {
            while client.write_all(&[0; 1_000]).await.is_ok() {
                yield_now().await;
            }
        };
        let started = tokio::time::Instant::now();
        tokio::select! {
            closed = server.shutdown() => closed.unwrap(),
            () = endless => panic!("it was cut off before the bound"),
        }
        assert!(started.elapsed() < LIMITS.time);
        assert_eq!((counts.closed.get(), counts.cut.get()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_who_sends_nothing_or_was_not_answered() {
        let started = tokio::time::Instant::now();
        // Read whole, and answered.
        let mut whole = Stand::new(LIMITS);
        whole.answer().await;
        whole.unread.request_ended();
        whole.server.shutdown().await.unwrap();
        // Half a head, and no answer, be it the first or behind another.
        let mut silent = Stand::new(LIMITS);
        silent.answer().await;
        silent.unread.request_ended();
        silent.client.write_all(b"POST").await.unwrap();
        silent.server.read_exact(&mut [0; 4]).await.unwrap();
        silent.server.shutdown().await.unwrap();
        // Switched off.
        let mut off = Stand::new(LingerLimits { time: Duration::ZERO, ..LIMITS });
        off.answer().await;
        off.server.shutdown().await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!([whole.counted(), silent.counted(), off.counted()], [(0, 0); 3]);
    }
}
