//! Where rotation puts files: the names beside a path, and their order.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use super::fingerprint::FileId;

/// A file beside the path that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sibling {
    pub(super) path: PathBuf,
    pub(super) place: FileId,
    pub(super) modified_ns: i128,
}

/// Whether rotation may have given `name` to a file that was called `base`: `app.log.1`,
/// `app.log-20240506`, `app.log.old`, `app-20240506.log`. What merely begins the same
/// (`app.log-extra`) is another log.
pub(crate) fn is_rotated_name(base: &str, name: &str) -> bool {
    if let Some(suffix) = name.strip_prefix(base) {
        return is_rotation_suffix(suffix);
    }
    let Some((stem, extension)) = base.rsplit_once('.') else { return false };
    let middle = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension));
    middle.and_then(|middle| middle.strip_suffix('.')).is_some_and(is_rotation_suffix)
}

fn is_rotation_suffix(suffix: &str) -> bool {
    let Some(rest) = suffix.strip_prefix(['.', '-', '_']) else { return false };
    rest == "old"
        || rest.contains(|c: char| c.is_ascii_digit())
            && rest
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, '-' | '_' | '.' | ':' | 'T' | 'Z'))
}

/// Brings rotated files into the order in which they were written: by time, and where the clock is
/// too coarse, `.2` before `.1` and dates as they are.
pub(super) fn sort(siblings: &mut [Sibling]) {
    siblings.sort_by_cached_key(|sibling| {
        let name = sibling.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.rsplit('.').next().and_then(|last| last.parse::<u32>().ok());
        (sibling.modified_ns, Reverse(number), name)
    });
}

/// The rotated files beside `path`, not in order.
pub(super) fn beside(path: &Path) -> std::io::Result<Vec<Sibling>> {
    use std::os::unix::fs::MetadataExt;

    let base = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut siblings = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !is_rotated_name(&base, &entry.file_name().to_string_lossy()) {
            continue;
        }
        // It may be renamed or removed between the listing and the poll.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            let modified_ns =
                i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
            siblings.push(Sibling {
                path: entry.path(),
                place: FileId::of(&metadata),
                modified_ns,
            });
        }
    }
    Ok(siblings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_names_are_told_from_other_logs() {
        for name in [
            "app.log.1",
            "app.log-20240506",
            "app.log.2024-05-06T07:08",
            "app.log.old",
            "app-20240506.log",
        ] {
            assert!(is_rotated_name("app.log", name), "{name}");
        }
        for name in [
            "app.log",
            "app.log-extra",
            "app.log.1.gz",
            "app.logs",
            "other.log.1",
            "app.log.",
            "app.log",
        ] {
            assert!(!is_rotated_name("app.log", name), "{name}");
        }
    }

    #[test]
    fn older_comes_first() {
        let place = FileId { device: 1, inode: 1, born_ns: 1 };
        let file = |name: &str, modified_ns| Sibling { path: name.into(), place, modified_ns };
        let mut files = [file("a.1", 5), file("a.10", 5), file("a.2", 5), file("a.9", 4)];
        sort(&mut files);
        assert_eq!(files.map(|f| f.path.display().to_string()), ["a.9", "a.10", "a.2", "a.1"]);
    }
}
