//! A request's body on its way up a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::BrokenOff;
use super::activity::Watch;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What became of a body, for who answers its request.
#[derive(Debug, Default)]
pub struct Progress {
    ended: AtomicBool,
    too_large: AtomicBool,
    timed_out: AtomicBool,
    broke_off: AtomicBool,
}

impl Progress {
    /// Whether it was read to its end.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Acquire)
    }

    /// Whether it was above its bound.
    pub fn was_too_large(&self) -> bool {
        self.too_large.load(Acquire)
    }

    /// Whether its sender stood still.
    pub fn timed_out(&self) -> bool {
        self.timed_out.load(Acquire)
    }

    /// Whether its sender broke it off.
    pub fn broke_off(&self) -> bool {
        self.broke_off.load(Acquire)
    }
}

/// A body as it comes from its sender: first what was read of it already.
#[derive(Debug)]
pub struct WatchedUpload<B> {
    first: Option<Bytes>,
    rest: B,
    /// What is left of its bound.
    left: Option<u64>,
    watch: Watch,
    progress: Arc<Progress>,
}

impl<B> WatchedUpload<B> {
    /// Returns a body that begins with `first`, of at most `max_bytes`.
    pub fn new(
        first: Bytes,
        rest: B,
        max_bytes: Option<u64>,
        watch: Watch,
        progress: Arc<Progress>,
    ) -> Self {
        let first = Some(first).filter(|first| !first.is_empty());
        Self { first, rest, left: max_bytes, watch, progress }
    }

    fn time_is_over(&self, why: BrokenOff) -> io::Result<Frame<Bytes>> {
        self.progress.timed_out.store(true, Release);
        Err(io::Error::other(why))
    }

    /// Takes note of bytes, and refuses those above the bound.
    fn take(&mut self, bytes: usize) -> io::Result<()> {
        self.watch.note();
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(bytes as u64).ok_or_else(|| {
                self.progress.too_large.store(true, Release);
                io::Error::other("the body is above the route's max_body_bytes")
            })?;
        }
        Ok(())
    }
}

impl<B> Body for WatchedUpload<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        // A sender that is faster than the worker has a piece whenever it is asked.
        if this.watch.is_over_age() {
            return Poll::Ready(Some(this.time_is_over(BrokenOff::Age)));
        }
        if let Some(first) = this.first.take() {
            let taken = this.take(first.len());
            return Poll::Ready(Some(taken.map(|()| Frame::data(first))));
        }
        let frame = match Pin::new(&mut this.rest).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let ended = std::task::ready!(this.watch.poll(cx));
                return Poll::Ready(Some(this.time_is_over(ended)));
            }
        };
        let Some(frame) = frame else {
            this.progress.ended.store(true, Release);
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => {
                let bytes = frame.data_ref().map_or(0, Buf::remaining);
                this.take(bytes).map(|()| frame)
            }
            Err(error) => {
                this.progress.broke_off.store(true, Release);
                return Poll::Ready(Some(Err(io::Error::other(error))));
            }
        };
        if this.rest.is_end_stream() {
            this.progress.ended.store(true, Release);
        }
        Poll::Ready(Some(frame.map(sound)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        match self.rest.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(first + rest),
            None => SizeHint::default(),
        }
    }
}

/// Trailers of a request are not passed on: no field that matters may come after the decision is
/// taken. What is left of them is an empty frame.
fn sound(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_data() {
        Ok(data) => Frame::data(data),
        Err(_) => Frame::trailers(HeaderMap::new()),
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
    async fn age_ends_an_upload_whose_sender_is_always_ahead() {
        let piece = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")));
        let always = StreamBody::new(stream::repeat_with(piece));
        let (idle, age) = (Duration::from_secs(60), Duration::from_secs(25));
        let watch = Watch::new(Activity::start(), idle, Some(age));
        let progress = Arc::<Progress>::default();
        let mut body = WatchedUpload::new(Bytes::new(), always, None, watch, Arc::clone(&progress));
        let mut pieces = 0;
        while body.frame().await.expect("it has no end").is_ok() {
            pieces += 1;
            assert!(pieces < 100, "it goes on");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(pieces == 25 && progress.timed_out());
    }
}
