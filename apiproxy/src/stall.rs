//! Clients that do not take what they are sent. Nothing else ends such a connection: it would keep its answers in
//! memory, and its place among the connections, for as long as its client likes.
//!
//! Two things can stand still: the socket, into which no more can be written ([`Timely`]), and in HTTP/2 a single
//! answer, whose window its client leaves shut while it takes everything else ([`Unsent`]).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// A client's socket that fails once nothing could be written to it for a while, though something was to be.
#[derive(Debug)]
pub struct Timely {
    stream: TcpStream,
    limit: Duration,
    /// Ends when it has stood still for too long; there only while it stands still.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Timely {
    /// A socket that may stand still for `limit`.
    pub fn new(stream: TcpStream, limit: Duration) -> Timely {
        Timely { stream, limit, stalled: None }
    }

    fn in_time(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        let error = io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of what it is sent");
        Poll::Ready(Err(error))
    }
}

impl AsyncRead for Timely {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Timely {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The answers of one connection that are on their way, counted by the span of time in which each got on last: the
/// one that is now, or the one before. Spans are as long as an answer may stand still.
#[derive(Debug, Default)]
pub struct Unsent {
    answers: [Cell<usize>; 2],
    /// Which of the two is now.
    now: Cell<usize>,
}

impl Unsent {
    /// Counts an answer, until what is returned is dropped.
    pub fn begin(self: &Rc<Unsent>) -> OnItsWay {
        let span = self.now.get();
        self.count(span, 1);
        OnItsWay { of: Rc::clone(self), span }
    }

    /// Waits until some answer has stood still for `limit`; it may have for nearly twice as long.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing but the time that was waited.
    pub async fn stalled(&self, limit: Duration) {
        loop {
            tokio::time::sleep(limit).await;
            if self.is_stalled() {
                return;
            }
        }
    }

    /// Ends a span of time, unless some answer did not get on in all of it.
    fn is_stalled(&self) -> bool {
        let before = 1 - self.now.get();
        if self.answers[before].get() > 0 {
            return true;
        }
        self.now.set(before);
        false
    }

    fn count(&self, span: usize, change: isize) {
        let answers = &self.answers[span];
        answers.set(answers.get().saturating_add_signed(change));
    }
}

/// An answer that its client has not taken whole.
#[derive(Debug)]
pub struct OnItsWay {
    of: Rc<Unsent>,
    span: usize,
}

impl OnItsWay {
    /// Some of it was sent.
    pub fn got_on(&mut self) {
        let now = self.of.now.get();
        if self.span != now {
            self.of.count(self.span, -1);
            self.of.count(now, 1);
            self.span = now;
        }
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.of.count(self.span, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stands_still_that_did_not_get_on_in_a_whole_span() {
        let unsent = Rc::<Unsent>::default();
        assert!(!unsent.is_stalled() && !unsent.is_stalled(), "there is none");
        let (mut slow, stuck) = (unsent.begin(), unsent.begin());
        assert!(!unsent.is_stalled(), "they began in the span that ends");
        slow.got_on();
        assert!(unsent.is_stalled() && unsent.is_stalled());
        drop(stuck);
        assert!(!unsent.is_stalled(), "what is slow gets on");
        slow.got_on();
        assert!(!unsent.is_stalled());
        assert!(unsent.is_stalled());
        drop(slow);
        assert!(!unsent.is_stalled());
    }
}
