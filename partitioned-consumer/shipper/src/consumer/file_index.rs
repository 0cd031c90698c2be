//! What a directory holds: the files that this shipper wrote in it, and how far each may be
//! trusted.
//!
//! One journal for all files, appended to and synced before the first byte goes to a new file. So
//! after a crash it names every file that may have a tail that was never committed, and retention
//! touches nothing that it did not write.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::offsets::OffsetStoreIdentity;
use super::steps::step;
use crate::name::Source;
use crate::tail::checkpoint::{Mode, replace, sync_directory};

const DIRECTORY: &str = ".shipper";
const IDENTITY: &str = "directory.json";

/// A file of the file index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Whose lines it has.
    pub(super) source: String,
    /// Bytes that are certainly committed. An open file may have more that are, as the source's
    /// commit says, and more that are not.
    pub(super) bytes: u64,
    /// It may be appended to.
    pub(super) open: bool,
}

/// A line of the journal: the new state of a file, or that it is gone.
#[derive(Serialize, Deserialize)]
struct Line {
    path: String,
    #[serde(flatten)]
    entry: Option<Entry>,
}

/// What stays the same for the life of a directory.
#[derive(Serialize, Deserialize)]
struct Identity {
    writer: String,
    mode: Mode,
    /// The bucket of commits that knows this directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ledger_born_ns: Option<i64>,
    /// Its cluster and stream; earlier versions did not note them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ledger_prefix: Option<String>,
}

/// See the module. It holds the lock of the directory.
pub(super) struct FileIndex {
    directory: PathBuf,
    identity: Identity,
    journal: File,
    entries: BTreeMap<String, Entry>,
    /// How many files there are of each source.
    sources: HashMap<String, usize>,
    _lock: File,
}

impl FileIndex {
    /// Takes a directory, which is made when it does not exist. `mode` is asked for at the first
    /// time only.
    pub(super) fn open(directory: &Path, mode: impl FnOnce() -> Mode) -> io::Result<Self> {
        let own = directory.join(DIRECTORY);
        fs::create_dir_all(&own)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(own.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = "another consumer writes to this directory: stop it, or set \
                            SHIPPER_DIRECTORY to another one";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let identity = identity(&own.join(IDENTITY), mode)?;
        let path = own.join("journal");
        let entries = replay(&fs::read(&path).or_else(empty_if_missing)?);
        // Written anew, so that it does not grow for ever.
        let lines: Vec<u8> = entries
            .iter()
            .map(|(path, entry)| line(path, Some(entry)))
            .collect::<Vec<_>>()
            .concat();
        step(|| {})?;
        replace(&path, &lines)?;
        let journal = File::options().append(true).open(&path)?;
        let mut sources = HashMap::new();
        for entry in entries.values() {
            *sources.entry(entry.source.clone()).or_default() += 1;
        }
        Ok(Self {
            directory: directory.to_owned(),
            identity,
            journal,
            entries,
            sources,
            _lock: lock,
        })
    }

    /// The id of the directory; commits name it.
    pub(super) fn writer(&self) -> &str {
        &self.identity.writer
    }

    pub(super) fn mode(&self) -> Mode {
        self.identity.mode
    }

    /// Whether these commits are the ones that know this directory. The first ones are.
    pub(super) fn trusts(&mut self, offset_store: &OffsetStoreIdentity) -> io::Result<bool> {
        let Identity { ledger_born_ns, ledger_prefix, .. } = &self.identity;
        let same = ledger_born_ns.is_none_or(|born| born == offset_store.born_ns)
            && ledger_prefix.as_ref().is_none_or(|prefix| *prefix == offset_store.prefix);
        if same && (ledger_born_ns.is_none() || ledger_prefix.is_none()) {
            self.trust(offset_store)?;
        }
        Ok(same)
    }

    /// From now on these are the ones.
    pub(super) fn trust(&mut self, offset_store: &OffsetStoreIdentity) -> io::Result<()> {
        self.identity.ledger_born_ns = Some(offset_store.born_ns);
        self.identity.ledger_prefix = Some(offset_store.prefix.clone());
        self.identity.save(&self.directory.join(DIRECTORY).join(IDENTITY))
    }

    pub(super) fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter()
    }

    /// The files of a source that may be appended to: one, unless an earlier version wrote here.
    pub(super) fn open_files_of(&self, source: &Source) -> Vec<(String, Entry)> {
        let (directory, name) = (format!("{}/", source.host()), source.to_string());
        let of_host = self.entries.range(directory.clone()..);
        let of_host = of_host.take_while(|(path, _)| path.starts_with(&directory));
        let open = of_host.filter(|(_, entry)| entry.open && entry.source == name);
        open.map(|(path, entry)| (path.clone(), entry.clone())).collect()
    }

    /// Records new states of files; they are on the disk when this returns.
    pub(super) fn record(&mut self, changes: Vec<(String, Option<Entry>)>) -> io::Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let lines: Vec<u8> = changes
            .iter()
            .map(|(path, entry)| line(path, entry.as_ref()))
            .collect::<Vec<_>>()
            .concat();
        let before = self.journal.metadata()?.len();
        let mut journal = &self.journal;
        let written = step(|| drop(journal.write_all(&lines[..lines.len() / 2])));
        let written =
            written.and_then(|()| journal.write_all(&lines)).and_then(|()| journal.sync_data());
        if let Err(error) = written {
            // Half a line must not stay in front of the next one.
            self.journal.set_len(before)?;
            return Err(error);
        }
        for (path, entry) in changes {
            if let Some(entry) = &entry {
                *self.sources.entry(entry.source.clone()).or_default() += 1;
            }
            let before = match entry {
                Some(entry) => self.entries.insert(path, entry),
                None => self.entries.remove(&path),
            };
            if let Some(before) = before {
                self.forget_file_of(&before.source);
            }
        }
        Ok(())
    }

    fn forget_file_of(&mut self, source: &str) {
        let Some(files) = self.sources.get_mut(source) else { return };
        *files -= 1;
        if *files == 0 {
            self.sources.remove(source);
        }
    }

    /// Sources that have files here.
    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    pub(super) fn has_source(&self, source: &str) -> bool {
        self.sources.contains_key(source)
    }

    /// Where a file is.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.directory.join(relative)
    }

    /// Removes the directories above a file that is gone, as far as nothing else is in them.
    pub(super) fn remove_empty_directories(&self, relative: &str) {
        for parent in
            Path::new(relative).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty())
        {
            // It fails for one that is not empty, and that is the end.
            if fs::remove_dir(self.directory.join(parent)).is_err() {
                return;
            }
        }
    }

    /// Where the status of this directory is kept.
    pub(super) fn status_path(directory: &Path) -> PathBuf {
        directory.join(DIRECTORY).join("status.json")
    }
}

fn identity(path: &Path, mode: impl FnOnce() -> Mode) -> io::Result<Identity> {
    let json = fs::read(path).or_else(empty_if_missing)?;
    if !json.is_empty() {
        return Ok(serde_json::from_slice(&json)?);
    }
    let writer = natsway_boot::random_id();
    let identity = Identity { writer, mode: mode(), ledger_born_ns: None, ledger_prefix: None };
    identity.save(path)?;
    path.parent().map_or(Ok(()), sync_directory)?;
    Ok(identity)
}

impl Identity {
    fn save(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_vec(self)?)
    }
}

fn empty_if_missing(error: io::Error) -> io::Result<Vec<u8>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(Vec::new()) } else { Err(error) }
}

pub(super) fn line(path: &str, entry: Option<&Entry>) -> Vec<u8> {
    let line = Line { path: path.to_owned(), entry: entry.cloned() };
    let mut json = serde_json::to_vec(&line).expect("plain fields serialize");
    json.push(b'\n');
    json
}

/// Replays a journal. A last line that a crash cut off was not relied on by anybody.
pub(super) fn replay(journal: &[u8]) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    for line in journal.split_inclusive(|byte| *byte == b'\n') {
        let Ok(Line { path, entry }) = serde_json::from_slice::<Line>(line) else { continue };
        match entry {
            Some(entry) => drop(entries.insert(path, entry)),
            None => drop(entries.remove(&path)),
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: u64, open: bool) -> Entry {
        Entry { source: "web1".into(), bytes, open }
    }

    #[test]
    fn a_journal_is_replayed_up_to_its_last_whole_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut file_index = FileIndex::open(directory.path(), || Mode::JetStream).unwrap();
        let writer = file_index.writer().to_owned();
        file_index
            .record(vec![("a".into(), Some(entry(0, true))), ("b".into(), Some(entry(5, false)))])
            .unwrap();
        file_index.record(vec![("a".into(), Some(entry(9, false))), ("b".into(), None)]).unwrap();
        let busy =
            FileIndex::open(directory.path(), || Mode::Core).map(|_| ()).unwrap_err().to_string();
        assert!(busy.contains("another consumer"), "{busy}");
        drop(file_index);
        let journal = directory.path().join(".shipper/journal");
        let mut file = File::options().append(true).open(journal).unwrap();
        file.write_all(b"{\"path\":\"c\",\"sou").unwrap();
        let again = FileIndex::open(directory.path(), || Mode::Core).unwrap();
        assert_eq!((again.writer(), again.mode()), (writer.as_str(), Mode::JetStream));
        assert_eq!(again.entries().collect::<Vec<_>>(), [(&"a".to_owned(), &entry(9, false))]);
    }
}
