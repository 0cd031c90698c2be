//! Until when a handler has.

use std::time::{Duration, Instant};

/// When the caller stops waiting, as a request extension.
///
/// The handler is dropped then, so this is for those that want to do less in time.
///
/// ```
/// use std::time::Duration;
/// use natsway_worker::Deadline;
///
/// fn enough_for_the_long_way<B>(request: &http::Request<B>) -> bool {
///     let left = request.extensions().get::<Deadline>().map(Deadline::remaining);
///     left.is_none_or(|left| left > Duration::from_millis(200))
/// }
/// # assert!(enough_for_the_long_way(&http::Request::new(())));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    pub(crate) fn new(at: Instant) -> Self {
        Self(at)
    }

    /// A deadline that is so far away now, say for one call of a [`Client`](crate::Client).
    pub fn after(budget: Duration) -> Self {
        Self(Instant::now() + budget)
    }

    /// The moment itself.
    pub fn at(&self) -> Instant {
        self.0
    }

    /// What is left of the budget; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}
