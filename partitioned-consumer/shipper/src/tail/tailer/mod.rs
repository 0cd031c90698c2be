//! One path, followed: polled for the next chunk of the run.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::fingerprint::{FileId, Fingerprint, Probe, read_range};
use super::present::Present;
use super::rotation::{self, Next, modified_ns};
use super::segments::Segments;
use super::siblings;
use super::state::{Chunk, Follow, From, Segment, Step, TailState, Tally};
use crate::framing::{Frame, FrameContext, payload_of};
use crate::head::{Gap, Skipped};

mod breaks;
mod open;

/// Offsets that are reserved ahead of their use, so that the state has to be saved once for so many
/// bytes.
const RESERVE_BYTES: u64 = 256 << 20;

/// How long a removed file is read on after its last byte, unless another one takes its place
/// sooner.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// Where the file of a segment is.
enum Found {
    Here(File),
    /// Its place has another content by now.
    Other(File),
    Nowhere,
    /// Files are being renamed: one that is not found may only be between two names.
    Moving,
}

/// What becomes of the present file.
enum Fate {
    /// It may be written on.
    Live,
    /// Its end was decided before, and what follows it is known.
    Decided,
    /// It was rotated away, and nobody writes to it any more.
    Left(Next),
    /// It was removed, and nobody can open it any more.
    Removed,
}

/// Which offsets may be used.
struct Reservation {
    /// How far offsets may be used: saved ahead of use.
    reserved: u64,
    /// Where new offsets may begin after a break in the file: below, they may have been used before
    /// a restart.
    unused_from: u64,
}

/// See the module.
pub struct Tailer {
    path: PathBuf,
    follow: Follow,
    segments: Segments,
    present: Present,
    position: u64,
    /// What stood before the ends of the chunks that are not known to be stored.
    probes: VecDeque<Probe>,
    /// Offsets to pass over before anything else, and why.
    gap: Option<(u64, Skipped)>,
    reservation: Reservation,
    tally: Tally,
}

impl Tailer {
    /// Follows `path`, from where `state` says when there is one.
    ///
    /// # Errors
    /// The system's, when the directory cannot be listed.
    pub fn new(path: &Path, follow: Follow, state: Option<TailState>) -> io::Result<Self> {
        let fresh = state.is_none();
        let state = state.unwrap_or_default();
        let mut tailer = Self {
            path: path.to_owned(),
            follow,
            segments: Segments::new(state.segments, state.finished),
            present: Present::new(fresh || state.clean),
            position: state.offset,
            probes: state.probe.into_iter().collect(),
            gap: None,
            reservation: Reservation { reserved: state.reserved, unused_from: state.reserved },
            tally: Tally::default(),
        };
        if fresh {
            tailer.forget_old_rotations()?;
            if !path.exists() {
                // Only what is there at the start is skipped.
                tailer.follow.from = From::Beginning;
            }
        }
        Ok(tailer)
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's offset behind the last chunk.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The file that is read at present.
    pub fn reading(&self) -> Option<&Fingerprint> {
        self.segments.reading().map(|segment| &segment.identity)
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Bytes of the present file that were not given out at the last poll.
    pub fn unread_bytes(&self) -> u64 {
        self.segments.reading().map_or(0, |s| s.seen_bytes.saturating_sub(self.file_offset(s)))
    }

    /// The state to save when everything below `offset` is stored elsewhere. Segments below it are
    /// forgotten. It is `clean` when nothing above was given out, or will be.
    pub fn state(&mut self, offset: u64, clean: bool) -> TailState {
        while self.probes.front().is_some_and(|probe| probe.offset < offset) {
            self.probes.pop_front();
        }
        self.segments.forget_below(offset);
        self.present.head_saved = self.reading().is_some_and(|file| file.head_bytes > 0);
        self.reservation.reserved = self.reservation.reserved.max(self.position + RESERVE_BYTES);
        let (segments, finished) = self.segments.saved();
        TailState {
            offset,
            reserved: self.reservation.reserved,
            segments,
            finished,
            probe: self.probes.front().filter(|probe| probe.offset == offset).copied(),
            clean: clean && offset == self.position,
        }
    }

    /// Polls the file once. Above [`Step::Save`] nothing is given out until [`Tailer::state`] was
    /// asked for. `now` is the time since any fixed origin; `last` says that there will be no
    /// further poll, so that whole lines do not wait.
    ///
    /// # Errors
    /// The system's; the same poll can be tried again.
    pub fn poll(&mut self, now: Duration, last: bool) -> io::Result<Step> {
        if self.is_out_of_offsets() {
            return Ok(Step::Save);
        }
        if let Some((end, skipped)) = self.gap.take() {
            return Ok(Step::Chunk(self.advance(end - self.position, Bytes::new(), Some(skipped))));
        }
        if self.segments.is_empty() {
            return self.first();
        }
        if self.segments.current().end == Some(self.position) {
            return self.after_the_end();
        }
        match self.open()? {
            Found::Here(file) => self.read(file, now, last),
            Found::Other(file) => self.truncated(file),
            Found::Moving => Ok(Step::Idle),
            Found::Nowhere => self.vanished(now),
        }
    }

    fn is_out_of_offsets(&self) -> bool {
        let most = self.position + self.follow.framer.batch_bytes.get() as u64;
        most > self.reservation.reserved && !self.segments.is_empty()
    }

    /// Goes on behind a file that was read to its decided end.
    fn after_the_end(&mut self) -> io::Result<Step> {
        if !self.segments.is_last() {
            return Ok(self.next_segment());
        }
        // It was left for good, and what comes to the path is another file.
        let next = self.next_file()?;
        Ok(next.map_or(Step::Idle, |next| self.begin(next.fingerprint, next.not_before_ns, None)))
    }

    /// Reads on in the present file.
    fn read(&mut self, file: File, now: Duration, last: bool) -> io::Result<Step> {
        self.present.is_found();
        let metadata = file.metadata()?;
        let segment = self.segments.current();
        let offset = self.file_offset(segment);
        let decided_end = segment.end.map(|end| segment.file_start + (end - segment.start));
        if metadata.len() < offset {
            return self.truncated(file);
        }
        let unread = decided_end.unwrap_or(metadata.len()).saturating_sub(offset);
        let bytes = unread.min(self.follow.framer.batch_bytes.get() as u64) as usize;
        let buffer = read_range(&file, offset, bytes)?;
        if !self.is_unchanged(&file, offset)? {
            return self.truncated(file);
        }
        self.saw(&file, &metadata, now)?;
        self.present.file = Some(file);
        if !self.present.head_saved && unread > 0 {
            // An empty file has no face. Offsets that were sent must never be taken for those of
            // another file.
            return Ok(Step::Save);
        }
        let fate = self.fate(&metadata, now)?;
        let is_ended = !matches!(fate, Fate::Live);
        if let Some(chunk) = self.next_chunk(buffer, now, last, is_ended) {
            return Ok(Step::Chunk(chunk));
        }
        match fate {
            Fate::Live => Ok(Step::Idle),
            Fate::Decided => Ok(self.next_segment()),
            Fate::Left(next) => {
                self.tally.rotations += 1;
                Ok(self.begin(next.fingerprint, next.not_before_ns, None))
            }
            Fate::Removed => {
                self.segments.current_mut().end = Some(self.position);
                self.present.file = None;
                Ok(Step::Save)
            }
        }
    }

    /// Decides what becomes of the present file, and notes when it was written while it is at the
    /// path.
    fn fate(&mut self, metadata: &Metadata, now: Duration) -> io::Result<Fate> {
        let at_path = std::fs::metadata(&self.path)
            .is_ok_and(|there| FileId::of(&there) == FileId::of(metadata));
        if at_path {
            self.segments.current_mut().modified_ns = modified_ns(metadata);
        }
        if self.segments.current().end.is_some() {
            return Ok(Fate::Decided);
        }
        if at_path {
            return Ok(Fate::Live);
        }
        let idle_for = self.present.idle_for(now);
        let Some(next) = self.next_file()? else {
            // As long as it is open here the disk keeps its blocks.
            let is_removed =
                metadata.nlink() == 0 && idle_for >= GONE_AFTER.max(self.follow.rotate_wait);
            return Ok(if is_removed { Fate::Removed } else { Fate::Live });
        };
        // Only the last one before the path may still have a writer.
        let is_quiet = next.path != self.path || idle_for >= self.follow.rotate_wait;
        // What was written just before the renaming is not left behind.
        let is_read = || match &self.present.file {
            Some(file) => file.metadata().map(|now| now.len() == metadata.len()),
            None => Ok(false),
        };
        Ok(if is_quiet && is_read()? { Fate::Left(next) } else { Fate::Live })
    }

    fn file_offset(&self, segment: &Segment) -> u64 {
        segment.file_start + self.position.saturating_sub(segment.start)
    }

    /// Whether the bytes before the position are those that were read.
    fn is_unchanged(&self, file: &File, offset: u64) -> io::Result<bool> {
        let trail = &self.present.trail;
        Ok(self.segments.current().identity.still_begins(file)?
            && read_range(file, offset - trail.len() as u64, trail.len())? == *trail)
    }

    /// Notes how long the file is, since when, and how it begins.
    fn saw(&mut self, file: &File, metadata: &Metadata, now: Duration) -> io::Result<()> {
        let segment = self.segments.current_mut();
        segment.seen_bytes = metadata.len();
        if segment.end.is_none() {
            segment.identity.grow(file)?;
        }
        self.present.saw(metadata, now);
        Ok(())
    }

    /// Frames the next chunk from what was read; `None` while it has to wait for more.
    fn next_chunk(
        &mut self,
        buffer: Vec<u8>,
        now: Duration,
        last: bool,
        ended: bool,
    ) -> Option<Chunk> {
        if buffer.is_empty() {
            self.present.nothing_waits();
            return None;
        }
        let frame_context = FrameContext {
            mid_line: self.present.mid_line,
            ended,
            waited: self.present.waited_for(now) >= self.follow.linger || last,
            quiet: self.present.idle_for(now) >= self.follow.event_timeout,
        };
        match self.follow.framer.frame(&buffer, frame_context) {
            Frame::Wait => None,
            Frame::Message { payload, consumed, long } => {
                self.tally.long_lines += u64::from(long && !self.present.mid_line);
                self.present.mid_line = long;
                self.present.took(&buffer[..consumed]);
                let payload = payload_of(buffer, payload);
                Some(self.remembered(consumed as u64, payload, None))
            }
            Frame::Skip(rest) => {
                self.present.mid_line = buffer[rest - 1] != b'\n';
                self.present.took(&buffer[..rest]);
                let gap = Skipped { why: Gap::LongLine, bytes: rest as u64 };
                Some(self.remembered(rest as u64, Bytes::new(), Some(gap)))
            }
        }
    }

    /// Advances over bytes of the file, and remembers what stands before their end.
    fn remembered(&mut self, bytes: u64, payload: Bytes, gap: Option<Skipped>) -> Chunk {
        let chunk = self.advance(bytes, payload, gap);
        self.probes.push_back(Probe::of(chunk.end, &self.present.trail));
        chunk
    }

    fn advance(&mut self, bytes: u64, payload: Bytes, gap: Option<Skipped>) -> Chunk {
        self.present.nothing_waits();
        let start = self.position;
        self.position += bytes;
        Chunk { start, end: self.position, payload, gap }
    }

    /// The file that was written after the present one.
    fn next_file(&self) -> io::Result<Option<Next>> {
        let current = self.segments.current();
        let is_known = |file: &File| -> io::Result<bool> {
            // The present file may have grown since its fingerprint was taken.
            let is_present = || -> io::Result<bool> {
                let id = FileId::of(&file.metadata()?);
                Ok(self.present.file.is_some() && current.identity.place == id)
            };
            Ok(self.segments.knows(file)? || is_present()?)
        };
        rotation::next_file(&self.path, current.modified_ns, is_known)
    }

    /// Files that were rotated away before the first start are not ours to send.
    fn forget_old_rotations(&mut self) -> io::Result<()> {
        let siblings = match siblings::beside(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            siblings => siblings?,
        };
        for sibling in siblings {
            if let Ok(file) = File::open(&sibling.path) {
                self.segments.finish(Fingerprint::of(&file)?);
            }
        }
        Ok(())
    }
}
