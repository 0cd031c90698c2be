//! Clearing away: files of past periods are finished, packed, and in the end removed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Zoned;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::file_index::{Entry, FileIndex};
use super::files::Files;
use super::steps::step;
use crate::retain::{Retention, Written};
use crate::tail::checkpoint::sync_directory;

pub(super) const RETENTION_INTERVAL: Duration = Duration::from_secs(30);
const ZSTD_LEVEL: i32 = 3;
/// The length of a packed file in the file index while it is being made; a whole one has more.
const UNFINISHED: u64 = 0;

/// See the module.
pub(super) struct RetentionTask {
    pub(super) retention: Retention,
    pub(super) compress: bool,
    /// One file is packed at a time, beside the writing.
    pub(super) packing: Option<(String, JoinHandle<io::Result<u64>>)>,
}

impl RetentionTask {
    /// One round. `committed` tells how far open files are. Returns the files that were finished
    /// and must not be appended to any more.
    pub(super) fn run(
        &mut self,
        (file_index, files): (&mut FileIndex, &mut Files),
        committed: &HashMap<String, u64>,
        period_begin: &Zoned,
    ) -> io::Result<Vec<String>> {
        let finished = finish_past((file_index, files), committed, period_begin)?;
        self.pack(file_index)?;
        self.remove(file_index)?;
        Ok(finished)
    }

    fn remove(&self, file_index: &mut FileIndex) -> io::Result<()> {
        let now = SystemTime::now();
        let (mut written, mut gone) = (Vec::new(), Vec::new());
        for (path, entry) in file_index.entries() {
            let metadata = match fs::metadata(file_index.path(path)) {
                Ok(metadata) => Some(metadata),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let age = metadata
                .as_ref()
                .and_then(|m| m.modified().ok())
                .and_then(|time| now.duration_since(time).ok());
            if metadata.is_none() && !entry.open && entry.bytes != UNFINISHED {
                // Somebody removed it.
                gone.push((path.clone(), None));
                continue;
            }
            let bytes = metadata.map_or(0, |metadata| metadata.len());
            written.push(Written {
                path: path.clone(),
                age: age.unwrap_or_default(),
                bytes,
                open: entry.open,
            });
        }
        let mut changes = gone;
        for path in self.retention.expired(&written) {
            let full = file_index.path(path);
            step(|| {})?;
            match fs::remove_file(&full) {
                Ok(()) => info!(path, "removed by retention"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            file_index.remove_empty_directories(path);
            changes.push((path.to_owned(), None));
        }
        file_index.record(changes)
    }

    /// Packs finished files, one for each round.
    fn pack(&mut self, file_index: &mut FileIndex) -> io::Result<()> {
        if !self.compress {
            return Ok(());
        }
        match self.packing.take() {
            Some((path, task)) if !task.is_finished() => {
                self.packing = Some((path, task));
                return Ok(());
            }
            Some((path, task)) => match futures_util::FutureExt::now_or_never(task) {
                Some(Ok(Ok(bytes))) => packed(file_index, &path, bytes)?,
                other => warn!(path, outcome = ?other, "a finished file could not be packed"),
            },
            None => {}
        }
        let is_next = |(path, entry): &(&String, &Entry)| !entry.open && !path.ends_with(".zst");
        let Some((path, entry)) = file_index.entries().find(is_next) else { return Ok(()) };
        let (path, entry) = (path.clone(), entry.clone());
        if file_index.get(&format!("{path}.zst")).is_some_and(|packed| packed.bytes != UNFINISHED) {
            // All but the end was done before.
            return remove(file_index, &path);
        }
        // Known before it is there: a crash must not leave it beside the plain file, with the same
        // lines.
        file_index
            .record(vec![(format!("{path}.zst"), Some(Entry { bytes: UNFINISHED, ..entry }))])?;
        let full = file_index.path(&path);
        self.packing = Some((path, tokio::task::spawn_blocking(move || pack_file(&full))));
        Ok(())
    }
}

/// Finishes open files that were last written in a past period. What is not committed of them,
/// because it could not be taken back before, goes now: nobody looks at a finished file again.
fn finish_past(
    (file_index, files): (&mut FileIndex, &mut Files),
    committed: &HashMap<String, u64>,
    period_begin: &Zoned,
) -> io::Result<Vec<String>> {
    let begin: SystemTime = period_begin.timestamp().into();
    let mut changes = Vec::new();
    for (path, entry) in file_index.entries().filter(|(_, entry)| entry.open) {
        let modified = fs::metadata(file_index.path(path)).and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|modified| modified >= begin) {
            continue;
        }
        let bytes = committed.get(path).copied().unwrap_or(entry.bytes);
        files.cut_to(path, bytes)?;
        changes.push((path.clone(), Some(Entry { bytes, open: false, ..entry.clone() })));
    }
    let finished = changes.iter().map(|(path, _)| path.clone()).collect();
    file_index.record(changes)?;
    Ok(finished)
}

/// The packed file takes the place of the plain one: first in the file index, then on the disk, and
/// only then the plain one is forgotten. So whatever a crash leaves is in the file index, and
/// [`tidy_packed`] finds it.
fn packed(file_index: &mut FileIndex, path: &str, bytes: u64) -> io::Result<()> {
    let packed = format!("{path}.zst");
    // Retention may have been faster.
    let Some(entry) = file_index.get(path).cloned() else { return remove(file_index, &packed) };
    file_index.record(vec![(packed, Some(Entry { bytes, ..entry }))])?;
    remove(file_index, path)
}

fn remove(file_index: &mut FileIndex, path: &str) -> io::Result<()> {
    step(|| {})?;
    match fs::remove_file(file_index.path(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    file_index.record(vec![(path.to_owned(), None)])
}

/// Removes what a crash left beside a packed file: the plain one, whose lines would be there twice,
/// or else what is not packed to its end.
pub(super) fn tidy_packed(file_index: &mut FileIndex) -> io::Result<()> {
    let packed = file_index.entries().filter(|(path, _)| path.ends_with(".zst"));
    let left: Vec<String> = packed
        .filter_map(|(path, entry)| match entry.bytes {
            UNFINISHED => Some(path.clone()),
            _ => path
                .strip_suffix(".zst")
                .filter(|plain| file_index.get(plain).is_some())
                .map(str::to_owned),
        })
        .collect();
    left.iter().try_for_each(|path| remove(file_index, path))
}

fn pack_file(path: &Path) -> io::Result<u64> {
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    let (temporary, packed) = (beside(".zst.tmp"), beside(".zst"));
    let source = File::open(path)?;
    let modified = source.metadata()?.modified()?;
    let mut out = zstd::Encoder::new(BufWriter::new(File::create(&temporary)?), ZSTD_LEVEL)?;
    io::copy(&mut BufReader::new(source), &mut out)?;
    let mut out = out.finish()?;
    out.flush()?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    // Its age is that of its lines.
    file.set_modified(modified)?;
    file.sync_all()?;
    fs::rename(&temporary, &packed)?;
    sync_directory(&packed)?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Period;
    use crate::tail::checkpoint::Mode;

    #[tokio::test]
    async fn past_files_are_finished_packed_and_removed_and_others_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut file_index = FileIndex::open(directory.path(), || Mode::JetStream).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(40 * 86_400);
        for (path, old) in [("old", true), ("new", false), ("foreign", true)] {
            let file = File::create(directory.path().join(path)).unwrap();
            (&file).write_all(b"line\n").unwrap();
            if old {
                file.set_modified(long_ago).unwrap();
            }
            if path != "foreign" {
                let entry = Entry { source: "web1".into(), bytes: 5, open: true };
                file_index.record(vec![(path.into(), Some(entry))]).unwrap();
            }
        }
        let mut retention_task =
            RetentionTask { retention: Retention::default(), compress: true, packing: None };
        let (mut files, today) =
            (Files::new(directory.path(), 4), Period::Day.begin(&Zoned::now()));
        let mut run = |retention_task: &mut RetentionTask, file_index: &mut FileIndex| {
            retention_task.run((file_index, &mut files), &HashMap::new(), &today).unwrap()
        };
        assert_eq!(run(&mut retention_task, &mut file_index), ["old"]);
        natsway_testkit::eventually(Duration::from_secs(30), async || {
            run(&mut retention_task, &mut file_index);
            file_index.get("old").is_none()
        })
        .await;
        assert!(!directory.path().join("old").exists());
        let unpacked =
            zstd::decode_all(File::open(directory.path().join("old.zst")).unwrap()).unwrap();
        assert_eq!(unpacked, b"line\n");
        retention_task.retention.age = Some(Duration::from_secs(86_400));
        run(&mut retention_task, &mut file_index);
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(
            !left.contains(&"old.zst".into())
                && left.contains(&"foreign".into())
                && left.contains(&"new".into())
        );
    }
}
