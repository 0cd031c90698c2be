//! Waiting for a condition, with a deadline and an account of what was seen last.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two looks grows from the first to the second, so that a quick condition costs
/// little time and a slow one little CPU.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// What one look saw: the value that was waited for, or why it is not there yet.
pub trait Probe {
    /// What is waited for.
    type Value;

    /// The value, or what was seen instead.
    fn settle(self) -> Result<Self::Value, String>;
}

impl Probe for bool {
    type Value = ();

    fn settle(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Probe for Option<T> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Debug> Probe for Result<T, E> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

/// Looks again and again until the probe gives `true`, `Some` or `Ok`, and returns the value.
///
/// A `Result` makes the better failure: its error is what the panic shows.
///
/// ```
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let (mut ready, mut look) = (0, || 3);
/// let count = natsway_testkit::eventually(Duration::from_secs(5), async || {
///     let count = look();
///     if count == 3 { Ok(count) } else { Err(format!("{count} of 3 are ready")) }
/// })
/// .await;
/// # assert_eq!(count, 3);
/// # }
/// ```
///
/// # Panics
/// At the caller's line, when the deadline passes first; the text has what was seen last.
#[track_caller]
pub fn eventually<P: Probe>(
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> P,
) -> impl Future<Output = P::Value> {
    let caller = Location::caller();
    async move {
        let start = Instant::now();
        let mut looks = 0u32;
        let mut pause = PAUSE.0;
        let mut last = String::from("no answer");
        while let Ok(seen) = timeout_at(start + deadline, probe()).await {
            looks += 1;
            match seen.settle() {
                Ok(value) => return value,
                Err(instead) => last = instead,
            }
            if start.elapsed() + pause >= deadline {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
        panic!("{caller}: not within {deadline:?}, last seen in {looks} looks: {last}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(60);

    #[tokio::test]
    async fn the_value_of_the_first_success_is_returned() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), async || {
            looks += 1;
            (looks == 3).then_some("third")
        })
        .await;
        assert_eq!((value, looks), ("third", 3));
    }

    #[tokio::test]
    #[should_panic(expected = "last seen in")]
    async fn a_deadline_that_passes_tells_how_often_was_looked() {
        eventually(SHORT, async || false).await;
    }

    #[tokio::test]
    #[should_panic(expected = "only 2 of 3")]
    async fn a_deadline_that_passes_tells_the_last_error() {
        eventually(SHORT, async || Err::<(), _>("only 2 of 3")).await;
    }

    #[tokio::test]
    #[should_panic(expected = "in 0 looks: no answer")]
    async fn a_probe_that_hangs_is_given_up_too() {
        eventually(SHORT, std::future::pending::<bool>).await;
    }
}
