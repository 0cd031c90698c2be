//! What a producer remembers over restarts: one small JSON document for each source, replaced
//! atomically.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::state::TailState;
use crate::head::Generation;

/// Version 2 has what stands before the offset.
const VERSION: u32 = 2;
const OLDEST_VERSION: u32 = 1;

/// How a source is shipped; fixed at its first checkpoint, because a stream that is away later must
/// be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Plain publish and subscribe, a line a message: what nobody listens to is gone.
    Core,
    /// Through a stream, acknowledged: every line once.
    JetStream,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    version: u32,
    /// How it is shipped.
    pub mode: Mode,
    /// The history that the offsets belong to.
    pub generation: String,
    /// The subject, and the offset from which on it is used.
    pub subject: String,
    /// See [`Head::since`](crate::head::Head::since).
    pub since: u64,
    /// The path that is followed.
    pub path: PathBuf,
    /// Where the tailer is; everything below its offset is stored.
    pub tail: TailState,
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint {path}: {source} (remove it to ship the file from its beginning again)")]
pub struct CheckpointError {
    path: PathBuf,
    source: io::Error,
}

impl Checkpoint {
    /// A checkpoint of the present version.
    pub fn new(
        mode: Mode,
        generation: Generation,
        subject: String,
        since: u64,
        path: PathBuf,
        tail: TailState,
    ) -> Self {
        Self {
            version: VERSION,
            mode,
            generation: generation.to_string(),
            subject,
            since,
            path,
            tail,
        }
    }

    /// Reads a checkpoint; `None` when there is none yet.
    ///
    /// # Errors
    /// [`CheckpointError`], also for one of a later version.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let failed = |source| CheckpointError { path: path.to_owned(), source };
        let json = match fs::read(path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let checkpoint: Self =
            serde_json::from_slice(&json).map_err(|error| failed(error.into()))?;
        if !(OLDEST_VERSION..=VERSION).contains(&checkpoint.version) {
            return Err(failed(io::Error::other(format!(
                "it has version {}, expected {OLDEST_VERSION} to {VERSION}",
                checkpoint.version
            ))));
        }
        Ok(Some(checkpoint))
    }

    /// Replaces the checkpoint at `path`; it is on the disk when this returns.
    ///
    /// # Errors
    /// The system's; the earlier checkpoint stays.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_vec(self).map_err(io::Error::from)?)
    }
}

/// Writes a file beside, syncs it, gives it the name, and syncs the directory.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(path)
}

/// As [`replace`], for what is only polled: the system writes it to the disk when it likes.
pub(crate) fn replace_lightly(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("status-tmp");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

/// Makes the entry of `path` in its directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_back_and_a_broken_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.json");
        assert_eq!(Checkpoint::read(&path).unwrap(), None);
        let generation = Generation::after(None, 1, 2);
        let tail = TailState { offset: 5, ..Default::default() };
        let checkpoint =
            Checkpoint::new(Mode::JetStream, generation, "s.p0.web1".into(), 0, "/a".into(), tail);
        checkpoint.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), Some(checkpoint));
        let of_version_1 = r#"{"version":1,"mode":"jetstream","generation":"0000000000010000000a","subject":"s.p0.web1","since":0,
            "path":"/a","tail":{"offset":5,"reserved":9,"segments":[],"finished":[]}}"#;
        fs::write(&path, of_version_1).unwrap();
        let tail = Checkpoint::read(&path).unwrap().unwrap().tail;
        assert_eq!((tail.offset, tail.reserved, tail.probe, tail.clean), (5, 9, None, false));
        fs::write(&path, of_version_1.replace(":1,\"mode", ":3,\"mode")).unwrap();
        assert!(Checkpoint::read(&path).unwrap_err().to_string().contains("version 3"));
        fs::write(&path, "{").unwrap();
        assert!(Checkpoint::read(&path).unwrap_err().to_string().contains("web1.json"));
    }
}
