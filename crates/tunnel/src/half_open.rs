//! Connections that have not shown yet what they are. Anybody may make them, so there are only so
//! many at a time, and the oldest gives way to the newest: who means it takes a moment, who does
//! not takes as long as it is let.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// So many at a time.
#[derive(Debug)]
pub struct HalfOpen {
    most: usize,
    steps: Mutex<Steps>,
}

#[derive(Debug, Default)]
struct Steps {
    next: u64,
    /// By their age, the oldest first.
    running: BTreeMap<u64, CancellationToken>,
}

/// Leaves when it is dropped.
struct Entered<'h> {
    half_open: &'h HalfOpen,
    number: u64,
}

impl HalfOpen {
    /// Returns one without a connection.
    ///
    /// # Panics
    /// If there may be none.
    pub fn new(most: usize) -> Self {
        assert!(most > 0, "there is one connection at least");
        Self { most, steps: Mutex::default() }
    }

    /// Does a step of an opening; `None` when it had to give way to a newer one.
    ///
    /// # Cancel safety
    /// Dropping the future drops the step.
    pub async fn run<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        let (_entered, gives_way) = self.enter();
        gives_way.run_until_cancelled(step).await
    }

    fn enter(&self) -> (Entered<'_>, CancellationToken) {
        let gives_way = CancellationToken::new();
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.running.len() >= self.most
            && let Some((_, oldest)) = steps.running.pop_first()
        {
            oldest.cancel();
        }
        let number = steps.next;
        steps.next += 1;
        steps.running.insert(number, gives_way.clone());
        (Entered { half_open: self, number }, gives_way)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut steps = self.half_open.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_and_who_is_done_makes_room() {
        let half_open = HalfOpen::new(2);
        let pending = std::future::pending::<()>;
        let mut oldest = Box::pin(half_open.run(pending()));
        let mut older = Box::pin(half_open.run(pending()));
        assert!((&mut oldest).now_or_never().is_none() && (&mut older).now_or_never().is_none());
        assert_eq!(half_open.run(async { 7 }).await, Some(7));
        assert_eq!((&mut oldest).now_or_never(), Some(None));
        // Two places, and one of them is free again.
        let mut newer = Box::pin(half_open.run(pending()));
        assert!((&mut newer).now_or_never().is_none() && (&mut older).now_or_never().is_none());
        drop(newer);
        assert_eq!(half_open.run(async { 8 }).await, Some(8));
        assert!((&mut older).now_or_never().is_none());
    }
}
