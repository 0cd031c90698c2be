//! Where the run breaks: files that were truncated, rewritten or are gone, and the step to the next
//! one.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::super::fingerprint::Fingerprint;
use super::super::siblings;
use super::super::state::{Segment, Step};
use super::Tailer;
use crate::head::{Gap, Skipped};

impl Tailer {
    /// The file is shorter than what was read of it, or other than it was.
    pub(super) fn truncated(&mut self, file: File) -> io::Result<Step> {
        self.tally.truncations += 1;
        // Its copy, if there is one, begins with what was sent already.
        let old = self.segments.current().identity;
        for copy in siblings::beside(&self.path)? {
            let Ok(file) = File::open(&copy.path) else { continue };
            if old.head_bytes > 0 && old.still_begins(&file)? {
                self.segments.finish(Fingerprint::of(&file)?);
            }
        }
        self.broken(Gap::Truncated, Some(file))
    }

    /// The file of a saved segment is gone.
    pub(super) fn vanished(&mut self, now: Duration) -> io::Result<Step> {
        // A listing that is made while files are renamed may miss one: only what stays away is
        // gone.
        if self.present.missing_for(now) < self.follow.rotate_wait {
            return Ok(Step::Idle);
        }
        self.present.is_found();
        if self.segments.is_last() && self.next_file()?.is_none() {
            // Perhaps it is only between two names.
            return Ok(Step::Idle);
        }
        self.tally.vanished += 1;
        self.broken(Gap::Vanished, None)
    }

    /// What is left of the present segment cannot be read; goes on with `file`, or with the next
    /// one.
    fn broken(&mut self, why: Gap, file: Option<File>) -> io::Result<Step> {
        if !self.segments.is_last() {
            return Ok(self.next_segment());
        }
        let bytes = self.unread_bytes();
        let (next, not_before_ns) = match &file {
            Some(file) => (Fingerprint::of(file)?, self.segments.current().modified_ns),
            None => match self.next_file()? {
                Some(next) => (next.fingerprint, next.not_before_ns),
                None => return Ok(Step::Idle),
            },
        };
        self.lost(bytes);
        let resume = (self.position + bytes.max(1)).max(self.reservation.unused_from);
        self.gap = Some((resume, Skipped { why, bytes }));
        Ok(self.begin(next, not_before_ns, file))
    }

    /// Counts what cannot be read any more, unless an earlier process may have sent it.
    fn lost(&mut self, bytes: u64) {
        if self.present.is_ours {
            self.tally.lost_bytes += bytes;
        }
    }

    /// Goes on to the segment behind one whose end is decided; what lies between is a gap.
    pub(super) fn next_segment(&mut self) -> Step {
        let old_end = self.segments.advance().end;
        let start = self.segments.current().start;
        if start > self.position {
            let bytes = old_end.unwrap_or(start).saturating_sub(self.position);
            self.lost(bytes);
            self.gap = Some((start, Skipped { why: Gap::Vanished, bytes }));
        }
        self.present.turn_to(None);
        self.present.is_ours = false;
        Step::Save
    }

    /// Decides the end of the present segment and begins the next one with the file of a
    /// fingerprint.
    pub(super) fn begin(
        &mut self,
        file: Fingerprint,
        modified_ns: i128,
        open: Option<File>,
    ) -> Step {
        let start = self.gap.map_or(self.position, |(end, _)| end);
        let segment =
            Segment { identity: file, file_start: 0, start, end: None, seen_bytes: 0, modified_ns };
        self.segments.begin(self.position, segment);
        self.present.turn_to(open);
        Step::Save
    }
}
