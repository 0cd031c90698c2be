//! Which stream has the requests, and within which bounds they are worked on.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use natsway_wire::{QueueGroup, Subject};

/// The shortest time for an acknowledgement: a sign of life every third of it must get through.
const SHORTEST_ACK_WAIT: Duration = Duration::from_secs(1);

/// The longest: a worker that died holds its requests for so long.
const LONGEST_ACK_WAIT: Duration = Duration::from_secs(3_600);

/// Requests that a stream has stored, for routes of the mode `enqueue`: a worker takes them besides
/// those of its subject, and keeps their results.
///
/// ```
/// use natsway_worker::{Options, WorkQueue};
///
/// let options = Options::new("svc.reports.blue").work_queue(WorkQueue::new("JOBS").at_once(4));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct WorkQueue {
    stream: String,
    consumer: Option<String>,
    subject: Option<String>,
    at_once: usize,
    deliveries: u64,
    ack_wait: Duration,
    result_bytes: usize,
}

/// A [`WorkQueue`] that was checked.
#[derive(Clone, Debug)]
pub(crate) struct WorkQueueConfig {
    pub(crate) stream: String,
    pub(crate) consumer: String,
    pub(crate) subject: Option<String>,
    pub(crate) at_once: NonZeroUsize,
    pub(crate) deliveries: u64,
    pub(crate) ack_wait: Duration,
    pub(crate) result_bytes: usize,
    pub(crate) counts: Arc<WorkCounts>,
}

/// What became of stored requests, as `nats micro stats` shows it.
#[derive(Debug, Default)]
pub(crate) struct WorkCounts {
    /// Deliveries that were taken.
    pub(crate) taken: AtomicU64,
    /// Results that were kept.
    pub(crate) kept: AtomicU64,
    /// Those that came second, and deliveries whose result was there before.
    pub(crate) second: AtomicU64,
    /// Deliveries that were left to be delivered again.
    pub(crate) again: AtomicU64,
    /// Requests that were given up: no worker finished them.
    pub(crate) given_up: AtomicU64,
}

impl WorkCounts {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// All of it, now.
    pub(crate) fn read(&self) -> serde_json::Value {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        serde_json::json!({
            "taken": of(&self.taken),
            "kept": of(&self.kept),
            "second": of(&self.second),
            "again": of(&self.again),
            "given_up": of(&self.given_up),
        })
    }
}

impl WorkQueue {
    /// Takes what `stream` has stored.
    pub fn new(stream: impl Into<String>) -> Self {
        Self {
            stream: stream.into(),
            consumer: None,
            subject: None,
            at_once: 16,
            deliveries: 10,
            ack_wait: Duration::from_secs(30),
            result_bytes: 256 * 1024,
        }
    }

    /// The durable consumer by which all workers of one name share the requests; the queue group's
    /// name without. It is made if there is none; one that is there keeps its settings.
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// The subject of the requests, where the stream has others; wildcards are allowed. All
    /// without.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Requests at work at the same time, of this worker; 16 without.
    pub fn at_once(mut self, requests: usize) -> Self {
        self.at_once = requests;
        self
    }

    /// How often a request is delivered until its result is that it was given up; 10 without.
    pub fn deliveries(mut self, times: u64) -> Self {
        self.deliveries = times;
        self
    }

    /// How long a worker may be silent until its requests are delivered to others, where the
    /// consumer is made here; 30 s without. Handlers may take longer: the worker gives signs of
    /// life.
    pub fn ack_wait(mut self, time: Duration) -> Self {
        self.ack_wait = time;
        self
    }

    /// The longest result in bytes, its head included; what is longer becomes a 502. 256 KiB
    /// without. The broker's `max_payload` bounds it anyway.
    pub fn max_result_bytes(mut self, bytes: usize) -> Self {
        self.result_bytes = bytes;
        self
    }

    /// Checks all of it, and adds what is wrong to `errors`.
    pub(crate) fn check(
        self,
        queue_group: &QueueGroup,
        errors: &mut Vec<String>,
    ) -> Option<WorkQueueConfig> {
        let found = errors.len();
        let consumer = self.consumer.unwrap_or_else(|| queue_group.as_str().to_owned());
        for (what, name) in [("work stream", &self.stream), ("work consumer", &consumer)] {
            if !is_name(name) {
                errors.push(format!("{what} {name:?}: expected letters, digits, `-` and `_`"));
            }
        }
        let subject = self.subject.map(|subject| {
            // Wildcards are no part of a subject that is published to, and all else must be sound.
            let plain = subject.replace('*', "x");
            let plain = plain.strip_suffix(".>").unwrap_or(&plain);
            if let Err(error) = plain.parse::<Subject>() {
                errors.push(format!("work subject {subject:?} {error}"));
            }
            subject
        });
        if self.deliveries == 0 {
            errors.push("work deliveries 0: expected 1 or more".to_owned());
        }
        if self.result_bytes == 0 {
            errors.push("work result bytes 0: expected 1 or more".to_owned());
        }
        if !(SHORTEST_ACK_WAIT..=LONGEST_ACK_WAIT).contains(&self.ack_wait) {
            errors.push(format!("work ack wait {:?}: expected 1s to 1h", self.ack_wait));
        }
        let at_once = NonZeroUsize::new(self.at_once);
        if at_once.is_none() {
            errors.push("work at once 0: expected 1 or more".to_owned());
        }
        let at_once = at_once.filter(|_| errors.len() == found)?;
        Some(WorkQueueConfig {
            stream: self.stream,
            consumer,
            subject,
            at_once,
            deliveries: self.deliveries,
            ack_wait: self.ack_wait,
            result_bytes: self.result_bytes,
            counts: Arc::default(),
        })
    }
}

/// What may be a stream's or consumer's name here: a token of subjects.
fn is_name(name: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=128).contains(&name.len()) && name.bytes().all(sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(queue: WorkQueue) -> Result<WorkQueueConfig, Vec<String>> {
        let mut errors = Vec::new();
        let config = queue.check(&QueueGroup::default(), &mut errors);
        config.ok_or(errors)
    }

    #[test]
    fn a_stream_is_enough() {
        let config = checked(WorkQueue::new("JOBS")).unwrap();
        assert_eq!((config.consumer.as_str(), config.subject), ("q", None));
        let config = checked(WorkQueue::new("JOBS").subject("jobs.*.x.>")).unwrap();
        assert_eq!(config.subject.as_deref(), Some("jobs.*.x.>"));
    }

    #[test]
    fn every_error_is_told_at_once_with_its_value() {
        let queue = WorkQueue::new("a.b")
            .consumer("c d")
            .subject("a..b")
            .at_once(0)
            .deliveries(0)
            .max_result_bytes(0)
            .ack_wait(Duration::from_millis(1));
        let errors = checked(queue).unwrap_err().join("\n");
        for part in [
            "stream \"a.b\"",
            "consumer \"c d\"",
            "subject \"a..b\"",
            "at once 0",
            "deliveries 0",
            "result bytes 0",
            "ack wait 1ms",
        ] {
            assert!(errors.contains(part), "{part} in {errors}");
        }
    }
}
