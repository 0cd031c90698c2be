//! Finding the file to read: the first one, or that of a segment, by its fingerprint.

use std::fs::File;
use std::io;

use super::super::fingerprint::{FileId, Fingerprint, read_range};
use super::super::rotation::{self, modified_ns};
use super::super::state::{From, Segment, Step};
use super::{Found, Tailer};

impl Tailer {
    /// Begins with the first file that is ever found.
    pub(super) fn first(&mut self) -> io::Result<Step> {
        // Asked before it is opened, which at a pipe would last until somebody writes.
        match std::fs::metadata(&self.path) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(io::Error::other(
                    "it is a directory, a pipe or a device; `--file -` reads a pipe",
                ));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Step::Idle),
            Err(error) => return Err(error),
        }
        let file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        let file_start = match self.follow.from {
            From::Beginning => 0,
            From::End => end_of_lines(&file, metadata.len())?,
        };
        let segment = Segment {
            identity: Fingerprint::of(&file)?,
            file_start,
            start: self.position,
            end: None,
            seen_bytes: metadata.len(),
            modified_ns: modified_ns(&metadata),
        };
        self.segments.begin(self.position, segment);
        self.present.file = Some(file);
        Ok(Step::Save)
    }

    /// Finds and opens the file of the segment that is read.
    pub(super) fn open(&mut self) -> io::Result<Found> {
        if let Some(file) = self.present.file.take() {
            return Ok(Found::Here(file));
        }
        let segment = self.segments.current();
        let (wanted, offset, file_start) =
            (segment.identity, self.file_offset(segment), segment.file_start);
        let before = rotation::files_beside(&self.path)?;
        for candidate in before.iter().filter(|candidate| candidate.place == wanted.place) {
            let Ok(file) = File::open(&candidate.path) else { continue };
            let metadata = file.metadata()?;
            if FileId::of(&metadata) != wanted.place {
                continue;
            }
            if metadata.len() < offset || !wanted.still_begins(&file)? {
                return Ok(Found::Other(file));
            }
            self.present.head_saved = wanted.head_bytes > 0;
            let is_resumed = offset > file_start;
            return self.resume(file, offset, is_resumed);
        }
        Ok(if rotation::is_still(&self.path, &before)? { Found::Nowhere } else { Found::Moving })
    }

    /// Takes up a file that was read by an earlier process, where what that one saw before `offset`
    /// still stands there.
    fn resume(&mut self, file: File, offset: u64, is_resumed: bool) -> io::Result<Found> {
        let before = is_resumed.then(|| read_range(&file, offset - 1, 1)).transpose()?;
        self.present.mid_line = before.is_some_and(|byte| byte != b"\n");
        self.present.trail.clear();
        let saved = self.probes.iter().find(|probe| probe.offset == self.position);
        if let Some(saved) = saved.filter(|_| is_resumed) {
            match saved.check(&file, offset)? {
                Some(bytes) => self.present.trail = bytes,
                None => return Ok(Found::Other(file)),
            }
        }
        Ok(Found::Here(file))
    }
}

/// The offset behind the last line feed.
fn end_of_lines(file: &File, length: u64) -> io::Result<u64> {
    const WINDOW: u64 = 64 * 1024;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(WINDOW);
        let window = read_range(file, start, (end - start) as usize)?;
        if let Some(at) = memchr::memrchr(b'\n', &window) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
