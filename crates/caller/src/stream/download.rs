//! A response's body on its way down a stream: never short of what its head says, and not for
//! ever.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::activity::Watch;
use super::{BrokenOff, StreamBody};

/// The part of a body that comes on a stream. It ends cleanly only when it is whole.
#[derive(Debug)]
pub struct WatchedDownload<B = StreamBody> {
    rest: B,
    watch: Watch,
    /// What is left of a length that the worker said.
    left: Option<u64>,
    is_over: bool,
}

impl<B> WatchedDownload<B> {
    /// Returns the rest of a body, of `left` bytes if the worker said how many.
    pub fn new(rest: B, watch: Watch, left: Option<u64>) -> Self {
        Self { rest, watch, left, is_over: false }
    }

    /// Returns the bytes that are left, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.left
    }

    fn break_off(&mut self, why: BrokenOff) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.is_over = true;
        Poll::Ready(Some(Err(why)))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedDownload<B> {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        // A reader that is slower than the worker finds a piece whenever it asks.
        if self.watch.is_over_age() {
            return self.break_off(BrokenOff::Age);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.rest).poll_frame(cx) else {
            let why = ready!(self.watch.poll(cx));
            return self.break_off(why);
        };
        self.watch.note();
        let frame = match frame {
            // Short of what was said, it must not look whole.
            None if self.left.is_some_and(|left| left > 0) => {
                return self.break_off(BrokenOff::Worker);
            }
            None => {
                self.is_over = true;
                return Poll::Ready(None);
            }
            Some(Err(_)) => return self.break_off(BrokenOff::Worker),
            Some(Ok(frame)) => frame,
        };
        match (frame.data_ref().map(Buf::remaining), self.left) {
            (Some(bytes), Some(left)) => match left.checked_sub(bytes as u64) {
                Some(less) => self.left = Some(less),
                None => return self.break_off(BrokenOff::Worker),
            },
            (Some(_), None) => {}
            (None, Some(1..)) => return self.break_off(BrokenOff::Worker),
            (None, _) => self.is_over = true,
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};

    use super::super::activity::Activity;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn age_ends_a_body_whose_reader_never_waits() {
        let piece = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"data: tick\n\n")));
        let always = StreamBody::new(stream::repeat_with(piece));
        let (idle, age) = (Duration::from_secs(60), Duration::from_secs(25));
        let watch = Watch::new(Activity::start(), idle, Some(age));
        let mut body = WatchedDownload::new(always, watch, None);
        let mut pieces = 0;
        let ended = loop {
            match body.frame().await.expect("it has no end") {
                Ok(_) => pieces += 1,
                Err(why) => break why,
            }
            assert!(pieces < 100, "it goes on");
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        assert_eq!((ended, pieces), (BrokenOff::Age, 25));
        assert!(body.frame().await.is_none());
    }
}
