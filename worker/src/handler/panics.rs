//! A handler's panic: caught where it is polled, and told once.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Once;
use std::task::Poll;

thread_local! {
    /// Whether a handler is being polled on this thread.
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
    /// Where the handler panicked that was just polled here, once [`log_panics_once`] was called.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A handler's panic.
#[derive(Debug)]
pub(crate) struct Panic {
    /// What it says.
    pub(crate) text: String,
    /// File, line and column, when they are known.
    pub(crate) place: Option<String>,
}

/// Has a handler's panic told by this crate's log line alone, with the place where it happened.
/// Otherwise Rust's own line comes before it. Other panics, and all while `RUST_BACKTRACE` asks for
/// their backtraces, are told as before.
///
/// This sets the process's panic hook, so it is for programs: call it once, after setting a hook of
/// your own.
pub fn log_panics_once() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        let backtraces = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let in_handler = IN_HANDLER.get();
            if in_handler {
                PLACE.set(panic.location().map(ToString::to_string));
            }
            if !in_handler || backtraces {
                before(panic);
            }
        }));
    });
}

/// Runs a handler to its end or its panic.
pub(crate) async fn caught<T>(handler: impl Future<Output = T>) -> Result<T, Panic> {
    let mut handler = pin!(handler);
    std::future::poll_fn(|context| {
        let inside = Inside::enter();
        // Nothing is polled again after it panicked.
        let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context)));
        drop(inside);
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(Panic {
                text: text(panic.as_ref()).to_owned(),
                place: PLACE.take(),
            })),
        }
    })
    .await
}

/// What was said to `panic!`.
fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Marks the thread while a handler is polled on it.
struct Inside {
    before: bool,
}

impl Inside {
    fn enter() -> Self {
        Self { before: IN_HANDLER.replace(true) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IN_HANDLER.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_panic_is_caught_with_its_words_and_its_place() {
        log_panics_once();
        let quiet = caught(async { 7 }).now_or_never().unwrap();
        assert_eq!(quiet.unwrap(), 7);
        let panic = caught(async { panic!("number {}", 7) }).now_or_never().unwrap().unwrap_err();
        assert_eq!(panic.text, "number 7");
        assert!(panic.place.is_some_and(|place| place.contains("panics.rs:")));
        assert!(!IN_HANDLER.get(), "the thread is no handler's any more");
    }
}
