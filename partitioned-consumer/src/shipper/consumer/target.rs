//! Which file the next lines of a source go to, and from which length on.

use std::fs;
use std::io;

use jiff::Zoned;
use tracing::{info, warn};

use super::catalogue::{Catalogue, Entry};
use super::files::Files;
use crate::shipper::commit::Commit;
use crate::shipper::name::Source;
use crate::shipper::pattern::{OutputPattern, Period};

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

impl Rotation {
    /// Chooses the file for `add` more bytes of a source, and appends to `changes` what the catalogue must know before they are
    /// written. A file that is continued is first cut to what is committed of it.
    pub(super) fn choose(
        &self,
        source: &Source,
        present: Option<&Open>,
        commit: Option<&Commit>,
        add: u64,
        (catalogue, files): (&Catalogue, &mut Files),
        changes: &mut Vec<(String, Option<Entry>)>,
    ) -> io::Result<Open> {
        let begin = self.period.begin(&Zoned::now());
        let fits = |bytes: u64| bytes == 0 || self.bytes.is_none_or(|most| bytes + add <= most);
        let entry = |bytes, open| Some(Entry { source: source.to_string(), bytes, open });
        if let Some(present) = present {
            let is_whole = files.still_has(&present.path, present.bytes);
            if is_whole && present.begin == begin && fits(present.bytes) {
                return Ok(present.clone());
            }
            if !is_whole {
                warn!(path = present.path, "somebody removed or replaced the file; going on in the next one");
            }
            changes.push((present.path.clone(), entry(present.bytes, false)));
            files.close(&present.path);
        }
        let finished = present.map(|present| present.path.as_str());
        let name = |part| {
            let path = self.output.expand(source, &begin, part);
            path.ok_or_else(|| io::Error::other("the output pattern leaves its directory"))
        };
        // Retention may have removed earlier parts: their names are not used again, so that names stay in order.
        let last = present.map(|present| &present.path);
        let last = last.or(commit
            .map(|commit| &commit.tail)
            .filter(|tail| tail.writer == catalogue.writer())
            .map(|tail| &tail.file));
        let first = last.and_then(|last| part_of(&name(0).ok()?, last)).unwrap_or(0);
        for part in first..MOST_PARTS {
            let path = name(part)?;
            let known = catalogue.get(&path);
            let packed = catalogue.path(&format!("{path}.zst"));
            if Some(path.as_str()) == finished || known.is_some_and(|entry| !entry.open) || packed.exists() {
                continue;
            }
            let length = fs::metadata(catalogue.path(&path)).map_or(0, |metadata| metadata.len());
            let committed = commit.and_then(|commit| commit.length_of(catalogue.writer(), &path));
            let committed = committed.or(known.map(|entry| entry.bytes)).unwrap_or(length);
            if length < committed {
                warn!(
                    path,
                    length, committed, "the file lost committed lines to somebody; going on in the next one"
                );
                changes.push((path, entry(length, false)));
                continue;
            }
            if !fits(committed) {
                changes.push((path, entry(committed, false)));
                continue;
            }
            files.cut_to(&path, committed)?;
            if known.is_none() {
                info!("Creating new log {:?}", catalogue.path(&path));
                changes.push((path.clone(), entry(committed, true)));
            }
            return Ok(Open { path, bytes: committed, begin });
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
