//! What is counted of a version, by whoever sends requests to it: how its attempts ended and how
//! long they took.
//!
//! A [`Recorder`] is written on the path of a request, [`AttemptMetrics`] are what is read of it.
//! AttemptMetrics of several senders add up, and those of an earlier moment can be taken away, so
//! that a window of time can be looked at.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Buckets of each doubling: a bucket is at most an eighth wider than its lower end.
const PER_OCTAVE: usize = 8;

/// Everything below 2^4 us is one bucket: nothing goes over a network in less.
const FIRST_OCTAVE: u32 = 4;

/// Everything above 2^27 us, 134 s, is in the last bucket.
const OCTAVES: usize = 23;

/// How many buckets there are.
pub const BUCKETS: usize = 1 + OCTAVES * PER_OCTAVE;

/// The bucket of a latency in microseconds.
fn bucket(us: u64) -> usize {
    let Some(octave) = us.checked_ilog2().filter(|octave| *octave >= FIRST_OCTAVE) else {
        return 0;
    };
    let within = (us >> (octave - PER_OCTAVE.ilog2())) as usize % PER_OCTAVE;
    (1 + (octave - FIRST_OCTAVE) as usize * PER_OCTAVE + within).min(BUCKETS - 1)
}

/// Where a bucket begins, in microseconds; the next one's is where it ends.
fn lower_end(bucket: usize) -> u64 {
    let Some(place) = bucket.checked_sub(1) else { return 0 };
    let (octave, within) = (place / PER_OCTAVE, place % PER_OCTAVE);
    ((PER_OCTAVE + within) as u64) << (octave as u32 + FIRST_OCTAVE - PER_OCTAVE.ilog2())
}

/// Latencies in logarithmic buckets, the same at every sender, so that histograms add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]) }
    }
}

/// The sum, whatever peers have said.
fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

impl Histogram {
    /// Counts latencies of so many microseconds.
    pub fn add(&mut self, us: u64, count: u64) {
        self.counts[bucket(us)] += count;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        total(&self.counts[..])
    }

    /// How many are in a later bucket than `us` is.
    pub fn above(&self, us: u64) -> u64 {
        total(&self.counts[bucket(us) + 1..])
    }

    /// The last microsecond of the bucket that holds the quantile, 0.0 to 1.0; `None` when nothing
    /// was counted.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let count = self.count();
        // The rank of the first observation that has the share below it or at it.
        let rank = (quantile * count as f64).ceil().max(1.0) as u64;
        let mut so_far = 0;
        let holds = |number: &u64| {
            so_far = u64::saturating_add(so_far, *number);
            so_far >= rank
        };
        let place = self.counts.iter().position(holds).filter(|_| count > 0)?;
        Some(lower_end(place + 1) - 1)
    }

    /// Counts up to the end of each octave, in microseconds: the buckets for Prometheus.
    pub fn cumulative_by_octave(&self) -> Vec<(u64, u64)> {
        let end = |octave: usize| octave * PER_OCTAVE + 1;
        let cumulative = |octave| (lower_end(end(octave)), total(&self.counts[..end(octave)]));
        // The last octave has what is above all bounds as well, so it is none of them.
        (0..OCTAVES).map(cumulative).collect()
    }
}

impl AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count = count.saturating_add(*more);
        }
    }
}

/// On the wire only the buckets that hold something, as pairs of place and count.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.counts.iter().enumerate().filter(|(_, count)| **count > 0))
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut histogram = Self::default();
        for (place, count) in Vec::<(usize, u64)>::deserialize(deserializer)? {
            // A sender with more buckets than we know has them above ours.
            histogram.counts[place.min(BUCKETS - 1)] = count;
        }
        Ok(histogram)
    }
}

/// What was counted of a version up to some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct AttemptMetrics {
    /// Tries that ended badly: a response of 500 and above, an unreadable one, or none.
    #[serde(default)]
    pub errors: u64,
    /// Tries that are out now.
    #[serde(default)]
    pub in_flight: i64,
    /// How long attempts took, those with errors and those that nobody waited for to the end
    /// included.
    #[serde(default)]
    pub latency: Histogram,
    /// Replies to attempts that were answered already: somebody outside of the queue group has run
    /// them too.
    #[serde(default, skip_serializing_if = "is_none")]
    pub second_replies: u64,
    /// Streams that are open now: their tries have ended with the heads of their responses.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub streams: i64,
}

fn is_zero(count: &i64) -> bool {
    *count == 0
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl AttemptMetrics {
    /// Tries that have ended.
    pub fn requests(&self) -> u64 {
        self.latency.count()
    }

    /// What was counted since `earlier`. A sender that began anew has counted less; then that is 0.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.errors = since.errors.saturating_sub(earlier.errors);
        since.second_replies = since.second_replies.saturating_sub(earlier.second_replies);
        for (count, before) in since.latency.counts.iter_mut().zip(earlier.latency.counts.iter()) {
            *count = count.saturating_sub(*before);
        }
        since
    }
}

impl AddAssign<&Self> for AttemptMetrics {
    fn add_assign(&mut self, other: &Self) {
        // What a peer says may be anything.
        self.errors = self.errors.saturating_add(other.errors);
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.second_replies = self.second_replies.saturating_add(other.second_replies);
        self.streams = self.streams.saturating_add(other.streams);
        self.latency += &other.latency;
    }
}

/// Where one thread counts its attempts with one version: no lock, and no line of the cache shared
/// with another thread.
#[derive(Debug, Default)]
pub struct Recorder {
    errors: AtomicU64,
    in_flight: AtomicI64,
    second_replies: AtomicU64,
    streams: AtomicI64,
    /// Made at the first try: most versions of a large table have none.
    latency: OnceLock<Box<[AtomicU64; BUCKETS]>>,
}

/// A stream of a version, counted as long as it is open.
#[derive(Debug)]
pub struct OpenStream {
    recorder: Arc<Recorder>,
}

impl OpenStream {
    /// It broke off, and not by its reader: one more failure of its version, beside the try that it
    /// began with.
    pub fn broke_off(&self) {
        self.recorder.begin().failed();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.recorder.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Recorder {
    /// A try begins now.
    pub fn begin(&self) -> Attempt<'_> {
        self.in_flight.fetch_add(1, Ordering::Release);
        Attempt { recorder: self, began: Instant::now() }
    }

    /// A stream is open, until what is returned is dropped.
    pub fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream { recorder: Arc::clone(self) }
    }

    /// What was counted so far. `in_flight` has every try that began before this thread could read
    /// it.
    pub fn read(&self) -> AttemptMetrics {
        let mut metrics = AttemptMetrics {
            errors: self.errors.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Acquire),
            latency: Histogram::default(),
            second_replies: self.second_replies.load(Ordering::Relaxed),
            streams: self.streams.load(Ordering::Relaxed),
        };
        if let Some(buckets) = self.latency.get() {
            for (count, bucket) in metrics.latency.counts.iter_mut().zip(buckets.iter()) {
                *count = bucket.load(Ordering::Relaxed);
            }
        }
        metrics
    }

    /// A reply came to an attempt that was answered already.
    pub fn second_reply(&self) {
        self.second_replies.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it has anything to tell.
    pub fn is_used(&self) -> bool {
        self.latency.get().is_some() || self.in_flight.load(Ordering::Acquire) != 0
    }

    fn took(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let buckets =
            self.latency.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
    }
}

/// A try that is out. Dropped, it counts as one that nobody waited for any longer: no error, but as
/// slow as it was.
#[derive(Debug)]
pub struct Attempt<'r> {
    recorder: &'r Recorder,
    began: Instant,
}

impl Attempt<'_> {
    /// It ended badly, and the version is to blame.
    pub fn failed(self) {
        self.recorder.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// It says nothing about the version: it never left, or what it went by broke.
    pub fn withdraw(self) {
        self.recorder.in_flight.fetch_sub(1, Ordering::Release);
        std::mem::forget(self);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.recorder.took(self.began.elapsed());
        self.recorder.in_flight.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for place in 1..BUCKETS {
            let first = lower_end(place);
            assert_eq!((bucket(first), bucket(first - 1)), (place, place - 1), "{first} us");
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn a_quantile_is_at_most_an_eighth_too_large() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for us in 1..=10_000 {
            histogram.add(us, 1);
        }
        for (quantile, exact) in [(0.5, 5_000), (0.95, 9_500), (0.99, 9_900), (1.0, 10_000)] {
            let found = histogram.quantile(quantile).unwrap();
            assert!((exact..exact * 9 / 8 + 1).contains(&found), "{quantile}: {found} for {exact}");
        }
        assert_eq!(histogram.above(histogram.quantile(1.0).unwrap()), 0);
    }

    #[test]
    fn an_attempt_counts_however_it_ends() {
        let recorder = Recorder::default();
        assert!(!recorder.is_used());
        recorder.begin().failed();
        drop(recorder.begin());
        recorder.begin().withdraw();
        let out = recorder.begin();
        let metrics = recorder.read();
        assert_eq!((metrics.requests(), metrics.errors, metrics.in_flight), (2, 1, 1));
        drop(out);
        assert_eq!(recorder.read().in_flight, 0);
    }

    #[test]
    fn buckets_for_prometheus_hold_what_is_below_their_bound() {
        let mut histogram = Histogram::default();
        for us in [1, 15, 16, 1_023, 1_024, u64::MAX] {
            histogram.add(us, 1);
        }
        let bounds = histogram.cumulative_by_octave();
        let below = |bound| bounds.iter().find(|(end, _)| *end == bound).unwrap().1;
        assert_eq!((below(16), below(1_024), below(2_048)), (2, 4, 5));
        assert!(bounds.iter().all(|(_, count)| *count <= 5), "what is above all bounds is in none");
    }

    proptest! {
        #[test]
        fn histograms_add_up_subtract_and_travel(
            first in prop::collection::vec(0..100_000_000_u64, 0..50),
            second in prop::collection::vec(0..100_000_000_u64, 0..50),
        ) {
            let of = |values: &[u64]| {
                let mut metrics = AttemptMetrics::default();
                values.iter().for_each(|us| metrics.latency.add(*us, 1));
                metrics
            };
            let (first, second, both) = (of(&first), of(&second), of(&[first.clone(), second.clone()].concat()));
            let mut sum = first.clone();
            sum += &second;
            prop_assert_eq!(&sum, &both);
            prop_assert_eq!(both.since(&first), second);
            let json = serde_json::to_string(&both).unwrap();
            prop_assert_eq!(serde_json::from_str::<AttemptMetrics>(&json).unwrap(), both);
        }
    }
}
