//! Which file the next lines of a source go to, and from which length on.

use std::fs;
use std::io;

use jiff::Zoned;
use tracing::{info, warn};

use super::file_index::{Entry, FileIndex};
use super::files::Files;
use crate::commit::Commit;
use crate::name::Source;
use crate::pattern::{OutputPattern, Period};

/// When and how files are rotated.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub(super) output: OutputPattern,
    pub(super) period: Period,
    pub(super) bytes: Option<u64>,
}

/// The file that a source is written to.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) path: String,
    /// Its committed length.
    pub(super) bytes: u64,
    begin: Zoned,
}

/// More parts than that in one period are a mistake of the limits.
const MOST_PARTS: u32 = 1_000_000;

/// What a file is chosen for.
pub(super) struct Wanted<'a> {
    pub(super) source: &'a Source,
    /// Where the source was written to before, in this process.
    pub(super) present: Option<&'a Open>,
    pub(super) commit: Option<&'a Commit>,
    /// Bytes that are to be written.
    pub(super) add: u64,
    pub(super) now: &'a Zoned,
}

/// New states of files, for the file index.
pub(super) type Changes = Vec<(String, Option<Entry>)>;

/// How far a file is committed. Each of those who know is right up to where it knows: this process
/// about what it wrote, the commit about the last file of each writer, the file index about what
/// was known when the file was noted last. Where the commit does not remember this writer, nobody
/// knows, and all that is there counts.
pub(super) fn committed_bytes(
    file_index: &FileIndex,
    (path, entry): (&str, &Entry),
    present: Option<&Open>,
    commit: Option<&Commit>,
) -> u64 {
    let here = present.filter(|open| open.path == path).map(|open| open.bytes);
    let known = match commit {
        None => 0,
        Some(commit) if here.is_none() && commit.may_have_forgotten(file_index.writer()) => {
            fs::metadata(file_index.path(path)).map_or(0, |metadata| metadata.len())
        }
        Some(commit) => commit.length_of(file_index.writer(), path).unwrap_or(0),
    };
    entry.bytes.max(here.unwrap_or(0)).max(known)
}

impl Rotation {
    /// Chooses the file for more bytes of a source, and appends to `changes` what the file index
    /// must know before they are written. A file that is continued is first cut to what is
    /// committed of it.
    ///
    /// Only one file of a source is open at a time. The next commit names the chosen one and no
    /// other, so whatever else is open is cut to its length and closed with it, while that length
    /// is still known.
    pub(super) fn choose(
        &self,
        wanted: &Wanted<'_>,
        (file_index, files): (&FileIndex, &mut Files),
        changes: &mut Changes,
    ) -> io::Result<Open> {
        let Wanted { source, present, commit, .. } = *wanted;
        let begin = self.period.begin(wanted.now);
        if let Some(present) = present {
            let is_whole = files.still_has(&present.path, present.bytes);
            if is_whole && present.begin == begin && self.fits(present.bytes, wanted.add) {
                files.cut_to(&present.path, present.bytes)?;
                return Ok(present.clone());
            }
            if !is_whole {
                warn!(
                    path = present.path,
                    "somebody removed or replaced the file; going on in the next one"
                );
            }
        }
        let chosen = self.go_on_in(wanted, begin, file_index)?;
        for (path, entry) in file_index.open_files_of(source) {
            files.close(&path);
            if path != chosen.path {
                let bytes = committed_bytes(file_index, (&path, &entry), present, commit);
                files.cut_to(&path, bytes)?;
                changes.push((path, Some(Entry { bytes, open: false, ..entry })));
            }
        }
        files.cut_to(&chosen.path, chosen.bytes)?;
        if file_index.get(&chosen.path).is_none() {
            info!("Creating new log {:?}", file_index.path(&chosen.path));
            let entry = Entry { source: source.to_string(), bytes: chosen.bytes, open: true };
            changes.push((chosen.path.clone(), Some(entry)));
        }
        Ok(chosen)
    }

    fn fits(&self, bytes: u64, add: u64) -> bool {
        bytes == 0 || self.bytes.is_none_or(|most| bytes + add <= most)
    }

    /// The first file of the period that may be appended to, or does not exist yet.
    fn go_on_in(
        &self,
        wanted: &Wanted<'_>,
        begin: Zoned,
        file_index: &FileIndex,
    ) -> io::Result<Open> {
        let Wanted { source, present, commit, add, .. } = *wanted;
        let name = |part| {
            let path = self.output.expand(source, &begin, part);
            path.ok_or_else(|| io::Error::other("the output pattern leaves its directory"))
        };
        // Retention may have removed earlier parts: their names are not used again, so that names
        // stay in order.
        let last = present.map(|present| &present.path);
        let last = last.or(commit
            .map(|commit| &commit.tail)
            .filter(|tail| tail.writer == file_index.writer())
            .map(|tail| &tail.file));
        let first = last.and_then(|last| part_of(&name(0).ok()?, last)).unwrap_or(0);
        for part in first..MOST_PARTS {
            let path = name(part)?;
            let known = file_index.get(&path);
            let packed = file_index.path(&format!("{path}.zst"));
            let is_present = present.is_some_and(|present| present.path == path);
            // Its end may be that of a torn line.
            let is_unsure = known.is_some()
                && commit.is_some_and(|it| it.may_have_forgotten(file_index.writer()));
            let is_finished = is_present || is_unsure;
            if is_finished || known.is_some_and(|entry| !entry.open) || packed.exists() {
                continue;
            }
            let length = fs::metadata(file_index.path(&path)).map_or(0, |metadata| metadata.len());
            let named = commit.and_then(|commit| commit.length_of(file_index.writer(), &path));
            let bytes = match known {
                Some(entry) => committed_bytes(file_index, (&path, entry), present, commit),
                None => named.unwrap_or(length),
            };
            if length < bytes {
                warn!(
                    path,
                    length,
                    bytes,
                    "the file lost committed lines to somebody; going on in the next one"
                );
            } else if self.fits(bytes, add) {
                return Ok(Open { path, bytes, begin });
            }
        }
        Err(io::Error::other("too many files in one period: raise SHIPPER_ROTATE_SIZE"))
    }
}

/// Which part of the period whose first file is `first` a path is.
fn part_of(first: &str, path: &str) -> Option<u32> {
    match path.strip_prefix(first)? {
        "" => Some(0),
        part => part.strip_prefix('.')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_their_numbers() {
        assert_eq!(part_of("h/log-1", "h/log-1"), Some(0));
        assert_eq!(part_of("h/log-1", "h/log-1.12"), Some(12));
        assert_eq!(part_of("h/log-1", "h/log-2.12"), None);
        assert_eq!(part_of("h/log-1", "h/log-1.zst"), None);
    }
}
