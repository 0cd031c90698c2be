//! Which file comes after the present one, while rotation renames files.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::fingerprint::{FileId, Fingerprint};
use super::siblings::{self, Sibling};

/// The file to go on with.
pub(super) struct Next {
    pub(super) path: PathBuf,
    pub(super) fingerprint: Fingerprint,
    /// No file that is not known yet was written last before that, in nanoseconds since 1970.
    pub(super) not_before_ns: i128,
}

/// Lists what is at the path, and beside it.
pub(super) fn files_beside(path: &Path) -> io::Result<Vec<Sibling>> {
    let mut files = siblings::beside(path)?;
    if let Some(metadata) = std::fs::metadata(path).ok().filter(Metadata::is_file) {
        let (place, modified_ns) = (FileId::of(&metadata), modified_ns(&metadata));
        files.push(Sibling { path: path.to_owned(), place, modified_ns });
    }
    Ok(files)
}

/// Whether everything is where it was: nothing was renamed meanwhile.
pub(super) fn is_still(path: &Path, before: &[Sibling]) -> io::Result<bool> {
    let ids = |of: &[Sibling]| -> BTreeSet<(PathBuf, FileId)> {
        of.iter().map(|sibling| (sibling.path.clone(), sibling.place)).collect()
    };
    Ok(ids(before) == ids(&files_beside(path)?))
}

/// Finds the file that was written after one that was last written at `not_before_ns`: the oldest
/// of those that were rotated since, else the one at the path. `is_known` tells those that were
/// read.
///
/// `None` also while files are being renamed: what is there must be the same before and after the
/// choice.
pub(super) fn next_file(
    path: &Path,
    not_before_ns: i128,
    is_known: impl Fn(&File) -> io::Result<bool>,
) -> io::Result<Option<Next>> {
    let before = files_beside(path)?;
    let mut candidates = before.clone();
    candidates.retain(|sibling| sibling.modified_ns >= not_before_ns && sibling.path != path);
    siblings::sort(&mut candidates);
    let at_path = before.iter().find(|sibling| sibling.path == path);
    candidates.extend(at_path.cloned());
    for candidate in candidates {
        let Ok(file) = File::open(&candidate.path) else { return Ok(None) };
        if FileId::of(&file.metadata()?) != candidate.place {
            return Ok(None);
        }
        if is_known(&file)? {
            continue;
        }
        let fingerprint = Fingerprint::of(&file)?;
        // The candidates behind it are newer, and what comes later to a name was at the path
        // before. Files that are done with need not be remembered for ever then.
        let at_path_ns = at_path.map_or(i128::MAX, |sibling| sibling.modified_ns);
        let not_before_ns = candidate.modified_ns.min(at_path_ns);
        let next = Next { path: candidate.path, fingerprint, not_before_ns };
        return Ok(is_still(path, &before)?.then_some(next));
    }
    Ok(None)
}

/// When a file was last written, in nanoseconds since 1970.
pub(super) fn modified_ns(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}
