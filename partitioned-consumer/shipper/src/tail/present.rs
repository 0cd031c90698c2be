//! The file that is read at present, as this process has seen it. Nothing of it outlives the
//! process.

use std::fs::{File, Metadata};
use std::time::Duration;

/// Bytes before the position that must still be there when more is read.
const TRAIL_BYTES: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Present {
    /// The file, once it is open.
    pub(super) file: Option<File>,
    /// What was read of it last: a file that was rewritten in place has something else there.
    pub(super) trail: Vec<u8>,
    /// The byte before the position is no line feed.
    pub(super) mid_line: bool,
    /// What is not given out of it was not given out by an earlier process either.
    pub(super) is_ours: bool,
    /// The saved state knows how it begins.
    pub(super) head_saved: bool,
    /// Its length, and since when it has that.
    length: u64,
    unchanged_since: Duration,
    /// Since when bytes wait for a batch to fill.
    waiting_since: Option<Duration>,
    /// Since when it is not found.
    missing_since: Option<Duration>,
}

impl Present {
    /// Nothing seen yet. `is_ours` tells whether no earlier process can have given out what comes.
    pub(super) fn new(is_ours: bool) -> Self {
        Self { is_ours, head_saved: true, ..Self::default() }
    }

    /// Turns to another file, which may be open already.
    pub(super) fn turn_to(&mut self, file: Option<File>) {
        self.file = file;
        self.trail.clear();
        self.mid_line = false;
        (self.length, self.unchanged_since) = (0, Duration::ZERO);
        self.waiting_since = None;
    }

    /// Notes how long the file is, and since when.
    pub(super) fn saw(&mut self, metadata: &Metadata, now: Duration) {
        self.is_ours = true;
        if self.length != metadata.len() || self.unchanged_since == Duration::ZERO {
            (self.length, self.unchanged_since) = (metadata.len(), now);
        }
    }

    /// How long the file has been as long as it is.
    pub(super) fn idle_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.unchanged_since)
    }

    /// How long bytes have waited for a batch to fill; they begin to, where they did not.
    pub(super) fn waited_for(&mut self, now: Duration) -> Duration {
        now.saturating_sub(*self.waiting_since.get_or_insert(now))
    }

    /// Notes that nothing waits.
    pub(super) fn nothing_waits(&mut self) {
        self.waiting_since = None;
    }

    /// How long the file has been missing; it begins to be, where it was not.
    pub(super) fn missing_for(&mut self, now: Duration) -> Duration {
        now.saturating_sub(*self.missing_since.get_or_insert(now))
    }

    /// Notes that the file is found, or given up.
    pub(super) fn is_found(&mut self) {
        self.missing_since = None;
    }

    /// Remembers the last bytes of what was taken.
    pub(super) fn took(&mut self, bytes: &[u8]) {
        self.trail.extend_from_slice(&bytes[bytes.len().saturating_sub(TRAIL_BYTES)..]);
        let surplus = self.trail.len().saturating_sub(TRAIL_BYTES);
        self.trail.drain(..surplus);
    }
}
