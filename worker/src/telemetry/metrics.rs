//! What a worker has done and what it holds: counters that handlers on any thread may touch.

use std::ops::AddAssign;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// The requests that a reader holds, against its share of the limits.
#[derive(Debug)]
pub(crate) struct Load {
    max_requests: u64,
    max_bytes: u64,
    requests: AtomicU64,
    bytes: AtomicU64,
    emptied: Notify,
}

/// A place in a [`Load`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    load: Arc<Load>,
    bytes: u64,
}

impl Load {
    pub(crate) fn new(max_requests: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            max_requests: max_requests as u64,
            max_bytes: max_bytes as u64,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            emptied: Notify::new(),
        })
    }

    /// Takes a place for a message of `bytes`, or says that the worker is full.
    ///
    /// A message above the limit of bytes is let in when nothing else is held: it would never be
    /// otherwise. Only the reader admits, so nothing comes between the look and the taking.
    pub(crate) fn admit(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let bytes = bytes as u64;
        let requests = self.requests.load(Relaxed);
        let too_many_bytes = requests > 0 && self.bytes.load(Relaxed) + bytes > self.max_bytes;
        if requests >= self.max_requests || too_many_bytes {
            return None;
        }
        Some(self.hold(bytes))
    }

    /// Takes a place whether there is one or not, for what is bounded otherwise.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Permit {
        self.hold(bytes as u64)
    }

    fn hold(self: &Arc<Self>, bytes: u64) -> Permit {
        self.requests.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        Permit { load: Arc::clone(self), bytes }
    }

    /// Returns how many it holds at the most.
    pub(crate) fn max_requests(&self) -> u32 {
        u32::try_from(self.max_requests).unwrap_or(u32::MAX)
    }

    pub(crate) fn requests(&self) -> u64 {
        // Whoever sees a request gone also sees that its reply was handed over.
        self.requests.load(Acquire)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Waits until nothing is held.
    pub(crate) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.requests() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.bytes.fetch_sub(self.bytes, Relaxed);
        if self.load.requests.fetch_sub(1, Release) == 1 {
            self.load.emptied.notify_waiters();
        }
    }
}

/// Counters of one subject at one reader.
#[derive(Debug, Default)]
pub(crate) struct WorkerMetrics {
    /// Ran to its end.
    pub(crate) requests: AtomicU64,
    /// Of these, answered with 500 or above; and requests that could not be read.
    pub(crate) errors: AtomicU64,
    /// Of the requests that ran, from admission to the encoded answer.
    pub(crate) processing_ns: AtomicU64,
    /// Refused because the worker was full.
    pub(crate) shed: AtomicU64,
    /// Refused because they came after their deadline.
    pub(crate) expired: AtomicU64,
    /// Dropped because their caller went away.
    pub(crate) cancelled: AtomicU64,
    /// Dropped, or their answer not sent, because their deadline passed.
    pub(crate) overran: AtomicU64,
    /// Dropped because leaving took too long.
    pub(crate) unfinished: AtomicU64,
    /// Ignored for want of a reply subject.
    pub(crate) without_reply: AtomicU64,
    last_error: Mutex<String>,
}

/// The metrics read at one moment, of one reader or of several together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Requests that ran to their end.
    pub requests: u64,
    /// Requests that were answered with a status of 500 or above, or could not be read.
    pub errors: u64,
    /// Time that the requests took, from their arrival to their encoded answer.
    pub processing: Duration,
    /// Requests refused because the worker was full.
    pub shed: u64,
    /// Requests refused because they arrived after their deadline.
    pub expired: u64,
    /// Handlers dropped because their caller went away.
    pub cancelled: u64,
    /// Handlers that did not end before their deadline; nothing was answered.
    pub overran: u64,
    /// Handlers that were dropped because leaving took longer than the drain timeout.
    pub unfinished: u64,
    /// Messages without a reply subject, ignored.
    pub without_reply: u64,
    /// Directives of an autoscaler that were none, or another subject's.
    pub refused_directives: u64,
    /// The last error, empty when there was none.
    pub last_error: String,
}

impl WorkerMetrics {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn ran(&self, took: Duration) {
        self.requests.fetch_add(1, Relaxed);
        self.processing_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn failed(&self, error: String) {
        self.errors.fetch_add(1, Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(crate) fn read(&self) -> Summary {
        Summary {
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            processing: Duration::from_nanos(self.processing_ns.load(Relaxed)),
            shed: self.shed.load(Relaxed),
            expired: self.expired.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            overran: self.overran.load(Relaxed),
            unfinished: self.unfinished.load(Relaxed),
            without_reply: self.without_reply.load(Relaxed),
            refused_directives: 0,
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.processing += other.processing;
        self.shed += other.shed;
        self.expired += other.expired;
        self.cancelled += other.cancelled;
        self.overran += other.overran;
        self.unfinished += other.unfinished;
        self.without_reply += other.without_reply;
        self.refused_directives += other.refused_directives;
        if !other.last_error.is_empty() {
            self.last_error = other.last_error;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_is_bounded_by_count_and_by_bytes() {
        let load = Load::new(2, 100);
        let first = load.admit(60).unwrap();
        assert!(load.admit(41).is_none(), "too many bytes");
        let second = load.admit(40).unwrap();
        assert!(load.admit(0).is_none(), "too many requests");
        drop(first);
        assert_eq!((load.requests(), load.bytes()), (1, 40));
        drop(second);
        assert_eq!((load.requests(), load.bytes()), (0, 0));
    }

    #[test]
    fn a_message_above_the_limit_of_bytes_is_let_in_alone() {
        let load = Load::new(2, 100);
        let huge = load.admit(1_000);
        assert!(huge.is_some() && load.admit(1).is_none());
        drop(huge);
        let _small = load.admit(1).unwrap();
        assert!(load.admit(1_000).is_none());
    }

    #[tokio::test]
    async fn emptiness_is_awaited_across_threads() {
        let load = Load::new(10, 100);
        let permits: Vec<_> = (0..10).filter_map(|_| load.admit(1)).collect();
        let releasing = std::thread::spawn(move || drop(permits));
        load.empty().await;
        assert_eq!(load.requests(), 0);
        releasing.join().unwrap();
    }
}
