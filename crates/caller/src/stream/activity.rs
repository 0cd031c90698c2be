//! When something last came on a stream, in either direction, and what ends it if nothing does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::BrokenOff;

/// Shared by both directions of a stream.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    /// Milliseconds after the start.
    last_ms: AtomicU64,
}

impl Activity {
    /// Returns one that begins now.
    pub fn start() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), last_ms: AtomicU64::new(0) })
    }

    /// Something came.
    pub fn note(&self) {
        let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Relaxed);
    }

    /// When something last came.
    pub fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Relaxed))
    }
}

/// Watches over a stream, from the side that waits.
#[derive(Debug)]
pub struct Watch {
    activity: Arc<Activity>,
    idle_timeout: Duration,
    ends_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    /// Returns a watch that ends a stream once nothing came for so long, or at its age.
    pub fn new(activity: Arc<Activity>, idle_timeout: Duration, max_age: Option<Duration>) -> Self {
        let ends_at = max_age.map(|age| activity.start + age);
        let first = Instant::now() + idle_timeout;
        let timer = Box::pin(sleep_until(ends_at.map_or(first, |end| end.min(first))));
        Self { activity, idle_timeout, ends_at, timer }
    }

    /// Something came.
    pub fn note(&self) {
        self.activity.note();
    }

    /// Returns what the other direction notes.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    /// Whether it is as old as it may be, however much comes. To be asked before each piece: where
    /// one is always there, nobody [waits](Self::poll).
    pub fn is_over_age(&self) -> bool {
        self.ends_at.is_some_and(|end| end <= Instant::now())
    }

    /// Ready when the stream is to end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BrokenOff> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.is_over_age() {
                return Poll::Ready(BrokenOff::Age);
            }
            let idle_at = self.activity.last() + self.idle_timeout;
            if idle_at <= now {
                return Poll::Ready(BrokenOff::Idle);
            }
            let next = self.ends_at.map_or(idle_at, |end| end.min(idle_at));
            self.timer.as_mut().reset(next);
        }
    }

    /// The same as a future.
    pub async fn ended(&mut self) -> BrokenOff {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_in_both_directions_is_ended() {
        let activity = Activity::start();
        let mut watch = Watch::new(Arc::clone(&activity), 10 * SECOND, None);
        let start = Instant::now();
        let other = async {
            for _ in 0..5 {
                tokio::time::sleep(9 * SECOND).await;
                activity.note();
            }
        };
        let (ended, ()) = tokio::join!(watch.ended(), other);
        assert_eq!((ended, start.elapsed().as_secs()), (BrokenOff::Idle, 55));
    }

    #[tokio::test(start_paused = true)]
    async fn age_ends_what_goes_on() {
        let activity = Activity::start();
        let mut watch = Watch::new(Arc::clone(&activity), 10 * SECOND, Some(25 * SECOND));
        let other = async {
            loop {
                tokio::time::sleep(SECOND).await;
                activity.note();
            }
        };
        let ended = tokio::select! {
            ended = watch.ended() => ended,
            () = other => unreachable!("it has no end"),
        };
        assert_eq!((ended, activity.start.elapsed().as_secs()), (BrokenOff::Age, 25));
    }
}
