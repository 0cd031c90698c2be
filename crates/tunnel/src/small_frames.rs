//! How many small frames one sender may have leave, one after the other.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A merged frame's size, which is that of one DATA frame of HTTP/2 by default.
pub(crate) const MERGED_BYTES: usize = 16 * 1024;
/// A receiver pays about 256 bytes for each frame that nobody has read, and `h2` counts frames
/// below that size against the connection.
pub(crate) const SMALL_BYTES: usize = 256;
/// Small frames that may leave in a row, and what each costs after that. A service that sends fewer
/// than 200 small frames a second never waits.
pub(crate) const SMALL_BURST: u32 = 64;
pub(crate) const SMALL_INTERVAL: Duration = Duration::from_millis(5);
/// Pieces taken from a sender at once, before other tasks have their turn.
pub(crate) const TAKEN_AT_ONCE: usize = 256;

/// The pace of small frames: a bucket of [`SMALL_BURST`] that refills by one each
/// [`SMALL_INTERVAL`].
#[derive(Debug, Default)]
pub(crate) struct SmallFrames {
    paid_until: Option<Instant>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl SmallFrames {
    /// Waits until a small frame may leave, and pays for it.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Err(at) = self.pay(Instant::now()) {
            let linger = self.linger.get_or_insert_with(|| Box::pin(sleep_until(at)));
            ready!(linger.as_mut().poll(cx));
            self.linger = None;
        }
        Poll::Ready(())
    }

    /// What waited has left as part of something larger.
    pub(crate) fn stop_waiting(&mut self) {
        self.linger = None;
    }

    /// Pays for one small frame, or tells when that will be possible.
    fn pay(&mut self, now: Instant) -> Result<(), Instant> {
        const AHEAD: Duration = SMALL_INTERVAL.saturating_mul(SMALL_BURST - 1);
        let paid_until = self.paid_until.map_or(now, |paid_until| paid_until.max(now));
        if paid_until > now + AHEAD {
            return Err(paid_until - AHEAD);
        }
        self.paid_until = Some(paid_until + SMALL_INTERVAL);
        Ok(())
    }
}
