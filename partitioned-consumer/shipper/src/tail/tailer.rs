//! One path, followed; see the module above.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::identity::{FileId, Identity, Probe, read_range};
use super::siblings;
use super::state::{Chunk, Follow, From, Segment, Step, TailState, Tally};
use crate::framing::{Frame, FrameContext, payload_of};
use crate::head::{Gap, Skipped};

/// Finished files that are remembered, so that none is read twice. More rotated files than that are
/// seldom kept.
pub(super) const FINISHED_KEPT: usize = 256;

/// Offsets that are reserved ahead of their use, so that the state has to be saved once for so many
/// bytes.
const RESERVE_BYTES: u64 = 256 << 20;

/// How long a removed file is read on after its last byte, unless another one takes its place
/// sooner.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// Bytes before the position that must still be there when more is read.
const PROBE_BYTES: usize = 64;

/// The file to go on with.
struct Next {
    path: PathBuf,
    identity: Identity,
    /// No file that is not known yet was written last before that, in nanoseconds since 1970.
    not_before_ns: i128,
}

/// Where the file of a segment is.
enum Found {
    Here(File),
    /// Its place has another content by now.
    Other(File),
    Nowhere,
    /// Files are being renamed: one that is not found may only be between two names.
    Moving,
}

/// See the module.
pub struct Tailer {
    path: PathBuf,
    follow: Follow,
    segments: VecDeque<Segment>,
    /// Which of the segments is read.
    reading: usize,
    file: Option<File>,
    position: u64,
    probe: Vec<u8>,
    /// What stood before the ends of the chunks that are not known to be stored.
    probes: VecDeque<Probe>,
    /// What is not given out of the present file was not given out by an earlier process either.
    is_ours: bool,
    mid_line: bool,
    seen: (u64, Duration),
    waiting_since: Option<Duration>,
    /// Since when the file of the present segment is not found.
    missing_since: Option<Duration>,
    finished: VecDeque<Identity>,
    /// Offsets to pass over before anything else, and why.
    gap: Option<(u64, Skipped)>,
    /// Where new offsets may begin after a break in the file: below, they may have been used before
    /// a restart.
    unused_from: u64,
    /// How far offsets may be used: saved ahead of use.
    reserved: u64,
    /// The saved state knows how the present file begins.
    head_saved: bool,
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
            segments: state.segments.into(),
            reading: 0,
            file: None,
            position: state.offset,
            probe: Vec::new(),
            probes: state.probe.into_iter().collect(),
            is_ours: fresh || state.clean,
            mid_line: false,
            seen: (0, Duration::ZERO),
            waiting_since: None,
            missing_since: None,
            finished: state.finished.into(),
            gap: None,
            unused_from: state.reserved,
            reserved: state.reserved,
            head_saved: true,
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
    pub fn reading(&self) -> Option<&Identity> {
        self.segments.get(self.reading).map(|segment| &segment.identity)
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Bytes of the present file that were not given out at the last poll.
    pub fn unread_bytes(&self) -> u64 {
        self.segments
            .get(self.reading)
            .map_or(0, |s| s.seen_bytes.saturating_sub(self.file_offset(s)))
    }

    /// The state to save when everything below `offset` is stored elsewhere. Segments below it are
    /// forgotten. It is `clean` when nothing above was given out, or will be.
    pub fn state(&mut self, offset: u64, clean: bool) -> TailState {
        while self.probes.front().is_some_and(|probe| probe.offset < offset) {
            self.probes.pop_front();
        }
        while self.reading > 0 && self.segments.get(1).is_some_and(|next| next.start <= offset) {
            let done = self.segments.pop_front().expect("there is a next one");
            self.reading -= 1;
            self.finish(done.identity);
        }
        self.head_saved = self.reading().is_some_and(|file| file.head_bytes > 0);
        self.reserved = self.reserved.max(self.position + RESERVE_BYTES);
        TailState {
            offset,
            reserved: self.reserved,
            segments: self.segments.iter().cloned().collect(),
            finished: self.finished.iter().copied().collect(),
            probe: self.probes.front().filter(|probe| probe.offset == offset).copied(),
            clean: clean && offset == self.position,
        }
    }

    /// Looks at the file once. Above [`Step::Save`] nothing is given out until [`Tailer::state`]
    /// was asked for. `now` is the time since any fixed origin; `last` says that there will be no
    /// further look, so that whole lines do not wait.
    ///
    /// # Errors
    /// The system's; the same poll can be tried again.
    pub fn poll(&mut self, now: Duration, last: bool) -> io::Result<Step> {
        if self.position + self.follow.framer.batch_bytes.get() as u64 > self.reserved
            && !self.segments.is_empty()
        {
            return Ok(Step::Save);
        }
        if let Some((end, skipped)) = self.gap.take() {
            return Ok(Step::Chunk(self.advance(end - self.position, Bytes::new(), Some(skipped))));
        }
        if self.segments.is_empty() {
            return self.first();
        }
        if self.segments[self.reading].end == Some(self.position) {
            if self.reading + 1 < self.segments.len() {
                return Ok(self.next_segment());
            }
            // It was left for good, and what comes to the path is another file.
            let next = self.next_file()?;
            return Ok(
                next.map_or(Step::Idle, |next| self.begin(next.identity, next.not_before_ns, None))
            );
        }
        let file = match self.open()? {
            Found::Here(file) => file,
            Found::Other(file) => return self.truncated(file),
            Found::Moving => return Ok(Step::Idle),
            Found::Nowhere => return self.vanished(now),
        };
        self.missing_since = None;
        let metadata = file.metadata()?;
        let segment = &self.segments[self.reading];
        let offset = self.file_offset(segment);
        let decided_end = segment.end.map(|end| segment.file_start + (end - segment.start));
        let length = decided_end.unwrap_or(metadata.len());
        if metadata.len() < offset {
            return self.truncated(file);
        }
        let unread = length.saturating_sub(offset);
        let bytes = unread.min(self.follow.framer.batch_bytes.get() as u64) as usize;
        let buffer = read_range(&file, offset, bytes)?;
        if !self.is_unchanged(&file, offset)? {
            return self.truncated(file);
        }
        self.saw(&file, &metadata, now)?;
        if !self.head_saved && unread > 0 {
            // An empty file has no face. Offsets that were sent must never be taken for those of
            // another file.
            self.file = Some(file);
            return Ok(Step::Save);
        }
        let at_path = std::fs::metadata(&self.path)
            .is_ok_and(|there| FileId::of(&there) == FileId::of(&metadata));
        if at_path {
            self.segments[self.reading].modified_ns = modified_ns(&metadata);
        }
        let now_bytes = |file: &File| file.metadata().map(|metadata| metadata.len());
        let file = self.file.insert(file).try_clone()?;
        let next = if decided_end.is_some() || at_path { None } else { self.next_file()? };
        let idle_for = now.saturating_sub(self.seen.1);
        // Only the last one before the path may still have a writer.
        let left = next.as_ref().is_some_and(|next| next.path != self.path || idle_for >= self.follow.rotate_wait)
            // What was written just before the renaming is not left behind.
            && now_bytes(&file)? == metadata.len();
        // Nobody can open it any more, and as long as it is open here the disk keeps its blocks.
        let gone = !at_path
            && next.is_none()
            && decided_end.is_none()
            && metadata.nlink() == 0
            && idle_for >= GONE_AFTER.max(self.follow.rotate_wait);
        if let Some(chunk) = self.frame(buffer, now, last, left || gone || decided_end.is_some()) {
            return Ok(Step::Chunk(chunk));
        }
        if gone {
            self.segments[self.reading].end = Some(self.position);
            self.file = None;
            return Ok(Step::Save);
        }
        match next {
            _ if decided_end.is_some() => Ok(self.next_segment()),
            Some(next) if left => {
                self.tally.rotations += 1;
                Ok(self.begin(next.identity, next.not_before_ns, None))
            }
            _ => Ok(Step::Idle),
        }
    }

    /// The first file that is ever found.
    fn first(&mut self) -> io::Result<Step> {
        // Looked at before it is opened, which at a pipe would last until somebody writes.
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
        self.segments.push_back(Segment {
            identity: Identity::of(&file)?,
            file_start,
            start: self.position,
            end: None,
            seen_bytes: metadata.len(),
            modified_ns: modified_ns(&metadata),
        });
        self.file = Some(file);
        Ok(Step::Save)
    }

    /// The file of the segment that is read.
    fn open(&mut self) -> io::Result<Found> {
        if let Some(file) = self.file.take() {
            return Ok(Found::Here(file));
        }
        let segment = &self.segments[self.reading];
        let offset = self.file_offset(segment);
        let before = self.files_beside()?;
        for candidate in before.iter().filter(|candidate| candidate.place == segment.identity.place)
        {
            let Ok(file) = File::open(&candidate.path) else { continue };
            let metadata = file.metadata()?;
            if FileId::of(&metadata) != segment.identity.place {
                continue;
            }
            if metadata.len() < offset || !segment.identity.still_begins(&file)? {
                return Ok(Found::Other(file));
            }
            self.head_saved = segment.identity.head_bytes > 0;
            let before = (offset > segment.file_start)
                .then(|| read_range(&file, offset - 1, 1))
                .transpose()?;
            self.mid_line = before.is_some_and(|byte| byte != b"\n");
            self.probe.clear();
            let saved = self.probes.iter().find(|probe| probe.offset == self.position);
            if let Some(saved) = saved.filter(|_| offset > segment.file_start) {
                match saved.check(&file, offset)? {
                    Some(bytes) => self.probe = bytes,
                    None => return Ok(Found::Other(file)),
                }
            }
            return Ok(Found::Here(file));
        }
        Ok(if self.is_still(&before)? { Found::Nowhere } else { Found::Moving })
    }

    fn file_offset(&self, segment: &Segment) -> u64 {
        segment.file_start + self.position.saturating_sub(segment.start)
    }

    /// Whether the bytes before the position are those that were read.
    fn is_unchanged(&self, file: &File, offset: u64) -> io::Result<bool> {
        let probe_start = offset - self.probe.len() as u64;
        Ok(self.segments[self.reading].identity.still_begins(file)?
            && read_range(file, probe_start, self.probe.len())? == self.probe)
    }

    /// Notes how long the file is, and since when.
    fn saw(&mut self, file: &File, metadata: &std::fs::Metadata, now: Duration) -> io::Result<()> {
        let segment = &mut self.segments[self.reading];
        segment.seen_bytes = metadata.len();
        if segment.end.is_none() {
            segment.identity.grow(file)?;
        }
        self.is_ours = true;
        if self.seen.0 != metadata.len() || self.seen.1 == Duration::ZERO {
            self.seen = (metadata.len(), now);
        }
        Ok(())
    }

    fn frame(&mut self, buffer: Vec<u8>, now: Duration, last: bool, ended: bool) -> Option<Chunk> {
        if buffer.is_empty() {
            self.waiting_since = None;
            return None;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let frame_context = FrameContext {
            mid_line: self.mid_line,
            ended,
            waited: last || now.saturating_sub(since) >= self.follow.linger,
            quiet: now.saturating_sub(self.seen.1) >= self.follow.event_timeout,
        };
        match self.follow.framer.frame(&buffer, frame_context) {
            Frame::Wait => None,
            Frame::Message { payload, consumed, long } => {
                self.tally.long_lines += u64::from(long && !self.mid_line);
                self.mid_line = long;
                self.remember(&buffer[..consumed]);
                let payload = payload_of(buffer, payload);
                let chunk = self.advance(consumed as u64, payload, None);
                self.probes.push_back(Probe::of(chunk.end, &self.probe));
                Some(chunk)
            }
            Frame::Skip(rest) => {
                self.mid_line = buffer[rest - 1] != b'\n';
                self.remember(&buffer[..rest]);
                let gap = Skipped { why: Gap::LongLine, bytes: rest as u64 };
                let chunk = self.advance(rest as u64, Bytes::new(), Some(gap));
                self.probes.push_back(Probe::of(chunk.end, &self.probe));
                Some(chunk)
            }
        }
    }

    fn remember(&mut self, consumed: &[u8]) {
        self.probe.extend_from_slice(&consumed[consumed.len().saturating_sub(PROBE_BYTES)..]);
        let surplus = self.probe.len().saturating_sub(PROBE_BYTES);
        self.probe.drain(..surplus);
    }

    fn advance(&mut self, bytes: u64, payload: Bytes, gap: Option<Skipped>) -> Chunk {
        self.waiting_since = None;
        let start = self.position;
        self.position += bytes;
        Chunk { start, end: self.position, payload, gap }
    }

    /// The file is shorter than what was read of it, or other than it was.
    fn truncated(&mut self, file: File) -> io::Result<Step> {
        self.tally.truncations += 1;
        // Its copy, if there is one, begins with what was sent already.
        let old = self.segments[self.reading].identity;
        for copy in siblings::beside(&self.path)? {
            let Ok(file) = File::open(&copy.path) else { continue };
            if old.head_bytes > 0 && old.still_begins(&file)? {
                self.finish(Identity::of(&file)?);
            }
        }
        self.broken(Gap::Truncated, Some(file))
    }

    /// The file of a saved segment is gone.
    fn vanished(&mut self, now: Duration) -> io::Result<Step> {
        // A listing that is made while files are renamed may miss one: only what stays away is
        // gone.
        let since = *self.missing_since.get_or_insert(now);
        if now.saturating_sub(since) < self.follow.rotate_wait {
            return Ok(Step::Idle);
        }
        self.missing_since = None;
        let is_last = self.reading + 1 == self.segments.len();
        if is_last && self.next_file()?.is_none() {
            // Perhaps it is only between two names.
            return Ok(Step::Idle);
        }
        self.tally.vanished += 1;
        self.broken(Gap::Vanished, None)
    }

    /// What is left of the present segment cannot be read; goes on with `file`, or with the next
    /// one.
    fn broken(&mut self, why: Gap, file: Option<File>) -> io::Result<Step> {
        if self.reading + 1 < self.segments.len() {
            return Ok(self.next_segment());
        }
        let bytes = self.unread_bytes();
        let (next, not_before_ns) = match &file {
            Some(file) => (Identity::of(file)?, self.segments[self.reading].modified_ns),
            None => match self.next_file()? {
                Some(next) => (next.identity, next.not_before_ns),
                None => return Ok(Step::Idle),
            },
        };
        self.lost(bytes);
        let resume = (self.position + bytes.max(1)).max(self.unused_from);
        self.gap = Some((resume, Skipped { why, bytes }));
        Ok(self.begin(next, not_before_ns, file))
    }

    /// Counts what cannot be read any more, unless an earlier process may have sent it.
    fn lost(&mut self, bytes: u64) {
        if self.is_ours {
            self.tally.lost_bytes += bytes;
        }
    }

    /// Goes on to the segment behind one whose end is decided; what lies between is a gap.
    fn next_segment(&mut self) -> Step {
        self.file = None;
        self.reading += 1;
        let start = self.segments[self.reading].start;
        if start > self.position {
            let old_end = self.segments[self.reading - 1].end.unwrap_or(start);
            let bytes = old_end.saturating_sub(self.position);
            self.lost(bytes);
            self.gap = Some((start, Skipped { why: Gap::Vanished, bytes }));
        }
        self.probe.clear();
        self.is_ours = false;
        self.mid_line = false;
        self.seen = (0, Duration::ZERO);
        Step::Save
    }

    /// Decides the end of the present segment and begins the next one with `identity`.
    fn begin(&mut self, identity: Identity, modified_ns: i128, file: Option<File>) -> Step {
        let last = self.segments.len() - 1;
        let old = &mut self.segments[last];
        old.end = Some(self.position);
        let start = self.gap.map_or(self.position, |(end, _)| end);
        self.segments.push_back(Segment {
            identity,
            file_start: 0,
            start,
            end: None,
            seen_bytes: 0,
            modified_ns,
        });
        self.reading = self.segments.len() - 1;
        self.file = file;
        self.probe.clear();
        self.mid_line = false;
        self.seen = (0, Duration::ZERO);
        self.waiting_since = None;
        Step::Save
    }

    /// The file that was written after the present one: the oldest of those that were rotated
    /// since, else the one at the path.
    ///
    /// `None` also while files are being renamed: what was polled must be the same before and after
    /// the choice.
    fn next_file(&self) -> io::Result<Option<Next>> {
        let not_before = self.segments[self.reading].modified_ns;
        let before = self.files_beside()?;
        let mut candidates = before.clone();
        candidates.retain(|sibling| sibling.modified_ns >= not_before && sibling.path != self.path);
        siblings::sort(&mut candidates);
        let at_path = before.iter().find(|sibling| sibling.path == self.path);
        candidates.extend(at_path.cloned());
        for candidate in candidates {
            let Ok(file) = File::open(&candidate.path) else { return Ok(None) };
            if FileId::of(&file.metadata()?) != candidate.place {
                return Ok(None);
            }
            if !self.is_known(&file)? {
                let identity = Identity::of(&file)?;
                // The candidates behind it are newer, and what comes later to a name was at the
                // path before. Files that are done with need not be remembered for ever then.
                let at_path_ns = at_path.map_or(i128::MAX, |sibling| sibling.modified_ns);
                let not_before_ns = candidate.modified_ns.min(at_path_ns);
                let next = Next { path: candidate.path, identity, not_before_ns };
                return Ok(self.is_still(&before)?.then_some(next));
            }
        }
        Ok(None)
    }

    /// Whether everything is where it was: nothing was renamed while it was polled.
    fn is_still(&self, before: &[siblings::Sibling]) -> io::Result<bool> {
        let places = |of: &[siblings::Sibling]| -> BTreeSet<(PathBuf, FileId)> {
            of.iter().map(|sibling| (sibling.path.clone(), sibling.place)).collect()
        };
        Ok(places(before) == places(&self.files_beside()?))
    }

    /// What is at the path, and beside it.
    fn files_beside(&self) -> io::Result<Vec<siblings::Sibling>> {
        let mut places = siblings::beside(&self.path)?;
        if let Some(metadata) =
            std::fs::metadata(&self.path).ok().filter(std::fs::Metadata::is_file)
        {
            let (place, modified_ns) = (FileId::of(&metadata), modified_ns(&metadata));
            places.push(siblings::Sibling { path: self.path.clone(), place, modified_ns });
        }
        Ok(places)
    }

    fn is_known(&self, file: &File) -> io::Result<bool> {
        let place = FileId::of(&file.metadata()?);
        let all = self.segments.iter().map(|segment| &segment.identity).chain(&self.finished);
        for known in all.filter(|known| known.place == place) {
            if known.is(file)? {
                return Ok(true);
            }
        }
        // The present file may have grown since its head was polled.
        Ok(self.file.is_some() && self.segments[self.reading].identity.place == place)
    }

    fn finish(&mut self, identity: Identity) {
        self.finished.push_back(identity);
        if self.finished.len() > FINISHED_KEPT {
            self.finished.pop_front();
        }
    }

    /// Files that were rotated away before the first start are not ours to send.
    fn forget_old_rotations(&mut self) -> io::Result<()> {
        let siblings = match siblings::beside(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            siblings => siblings?,
        };
        for sibling in siblings {
            if let Ok(file) = File::open(&sibling.path) {
                self.finish(Identity::of(&file)?);
            }
        }
        Ok(())
    }
}

fn modified_ns(metadata: &std::fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
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
