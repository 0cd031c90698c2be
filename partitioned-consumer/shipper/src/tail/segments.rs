//! The files that make up the run of offsets, in order, and those that are done with.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use super::fingerprint::{FileId, Fingerprint};
use super::state::Segment;

/// Finished files that are remembered, so that none is read twice. More rotated files than that are
/// seldom kept.
pub(super) const FINISHED_KEPT: usize = 256;

/// See the module.
pub(super) struct Segments {
    all: VecDeque<Segment>,
    /// Which of them is read.
    reading: usize,
    finished: VecDeque<Fingerprint>,
}

impl Segments {
    pub(super) fn new(all: Vec<Segment>, finished: Vec<Fingerprint>) -> Self {
        Self { all: all.into(), reading: 0, finished: finished.into() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the segment that is read; there is none before the first file was found.
    pub(super) fn reading(&self) -> Option<&Segment> {
        self.all.get(self.reading)
    }

    /// Returns the segment that is read.
    ///
    /// # Panics
    /// Before the first file was found.
    pub(super) fn current(&self) -> &Segment {
        &self.all[self.reading]
    }

    /// As [`Segments::current`].
    pub(super) fn current_mut(&mut self) -> &mut Segment {
        &mut self.all[self.reading]
    }

    /// Whether no segment follows the one that is read.
    pub(super) fn is_last(&self) -> bool {
        self.reading + 1 == self.all.len()
    }

    /// Decides that the last segment ends at `end`, and begins `next` behind it.
    pub(super) fn begin(&mut self, end: u64, next: Segment) {
        if let Some(last) = self.all.back_mut() {
            last.end = Some(end);
        }
        self.all.push_back(next);
        self.reading = self.all.len() - 1;
    }

    /// Goes on to the next segment, and returns the one before.
    pub(super) fn advance(&mut self) -> &Segment {
        self.reading += 1;
        &self.all[self.reading - 1]
    }

    /// Forgets the segments all of which is below `offset`; their files are done with.
    pub(super) fn forget_below(&mut self, offset: u64) {
        while self.reading > 0 && self.all.get(1).is_some_and(|next| next.start <= offset) {
            let done = self.all.pop_front().expect("there is a next one");
            self.reading -= 1;
            self.finish(done.identity);
        }
    }

    /// Notes that a file is done with.
    pub(super) fn finish(&mut self, file: Fingerprint) {
        self.finished.push_back(file);
        if self.finished.len() > FINISHED_KEPT {
            self.finished.pop_front();
        }
    }

    /// Whether a file is one of the run, or done with.
    pub(super) fn knows(&self, file: &File) -> io::Result<bool> {
        let id = FileId::of(&file.metadata()?);
        let all = self.all.iter().map(|segment| &segment.identity).chain(&self.finished);
        for known in all.filter(|known| known.place == id) {
            if known.is(file)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn saved(&self) -> (Vec<Segment>, Vec<Fingerprint>) {
        (self.all.iter().cloned().collect(), self.finished.iter().copied().collect())
    }
}
