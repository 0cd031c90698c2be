//! The directory in which processes are written down.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::Identity;

/// The directory of logs of processes that have ended.
const LOGS: &str = "logs";

/// So many of them are kept, the newest.
const LOGS_KEPT: usize = 20;

/// The directory, locked for us.
#[derive(Debug)]
pub(super) struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

/// One instance that is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: String,
    /// When it was started, in milliseconds since the Unix epoch.
    pub(super) since_ms: u64,
    /// Since when it is told to stop.
    pub(super) stop_ms: Option<u64>,
    /// By which rules it was started; `None` when an older provisioner did.
    pub(super) rules: Option<u64>,
}

impl StateDirectory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let path = path.canonicalize()?;
        let lock = OpenOptions::new().create(true).append(true).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(io::Error::other("another provisioner manages it"))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Writes a new instance down and gives its directory.
    pub(super) fn add(&self, id: &str, since_ms: u64, rules: u64) -> io::Result<PathBuf> {
        // Made under another name first, so that nobody sees it without its time.
        let (made, directory) = (self.path.join(format!("new.{id}")), self.path.join(id));
        fs::create_dir(&made)?;
        fs::write(made.join("since"), since_ms.to_string())?;
        fs::write(made.join("rules"), rules.to_string())?;
        fs::rename(made, &directory)?;
        Ok(directory)
    }

    /// All instances that are written down.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for found in fs::read_dir(&self.path)? {
            let found = found?;
            let Ok(id) = found.file_name().into_string() else { continue };
            // `lock`, `logs`, and what was left behind half made or half removed.
            let is_id = id != LOGS && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !is_id || !found.file_type()?.is_dir() {
                continue;
            }
            let Some(since_ms) = number(&found.path().join("since"))? else { continue };
            let stop_ms = number(&found.path().join("stop"))?;
            let rules = number(&found.path().join("rules"))?;
            entries.push(Entry { id, since_ms, stop_ms, rules });
        }
        Ok(entries)
    }

    /// Who the instance is, once its process has written that.
    pub(super) fn identity(&self, entry: &Entry) -> io::Result<Option<Identity>> {
        Ok(read(&self.path.join(&entry.id).join("pid"))?.and_then(|line| Identity::parse(&line)))
    }

    /// Writes down that the instance was told to stop.
    pub(super) fn note_stop(&self, entry: &Entry, now_ms: u64) -> io::Result<()> {
        fs::write(self.path.join(&entry.id).join("stop"), now_ms.to_string())
    }

    /// Forgets an instance. The rename is what counts: a process that has not appeared yet cannot
    /// write its pid then.
    pub(super) fn remove(&self, entry: &Entry) -> io::Result<()> {
        let gone = self.path.join(format!("gone.{}", entry.id));
        fs::rename(self.path.join(&entry.id), &gone)?;
        self.keep_log(entry, &gone)?;
        fs::remove_dir_all(gone)
    }

    /// Where what an instance wrote is kept when it has ended.
    pub(super) fn log_of(&self, entry: &Entry) -> PathBuf {
        self.path.join(LOGS).join(format!("{}-{}.log", entry.since_ms, entry.id))
    }

    /// What a process wrote is worth most when it has ended.
    fn keep_log(&self, entry: &Entry, gone: &Path) -> io::Result<()> {
        let logs = self.path.join(LOGS);
        fs::create_dir_all(&logs)?;
        match fs::rename(gone.join("log"), self.log_of(entry)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let found = fs::read_dir(&logs)?.collect::<io::Result<Vec<_>>>()?;
        let mut kept: Vec<PathBuf> = found.into_iter().map(|found| found.path()).collect();
        // Their names begin with when they were started.
        kept.sort();
        kept.iter().rev().skip(LOGS_KEPT).try_for_each(fs::remove_file)
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn number(path: &Path) -> io::Result<Option<u64>> {
    Ok(read(path)?.and_then(|text| text.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_provisioner_at_a_time_and_what_is_written_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let refused = StateDirectory::open(directory.path()).unwrap_err();
        assert!(refused.to_string().contains("another provisioner"), "{refused}");
        let entry = Entry { id: "abc".to_owned(), since_ms: 7, stop_ms: None, rules: Some(5) };
        state.add("abc", 7, 5).unwrap();
        state.note_stop(&entry, 9).unwrap();
        drop(state);
        // A test that forks at this moment holds all locks until its child runs.
        let state = std::iter::repeat_with(|| StateDirectory::open(directory.path())).take(100_000);
        let state = state.filter_map(Result::ok).next().unwrap();
        assert_eq!(state.entries().unwrap(), [Entry { stop_ms: Some(9), ..entry.clone() }]);
        assert_eq!(state.identity(&entry).unwrap(), None);
        state.remove(&entry).unwrap();
        assert_eq!(state.entries().unwrap(), []);
    }
}
