//! The checkpoint of one source, and the lock that keeps a second producer from it.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, disk_kind};
use crate::head::Generation;
use crate::tail::TailState;
use crate::tail::checkpoint::{Checkpoint, CheckpointError, Mode};

/// See the module.
pub(super) struct Journal {
    path: PathBuf,
    /// What is on the disk, as far as this process wrote it.
    saved: Option<TailState>,
    _lock: File,
}

/// A source that cannot be shipped from here.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// Another process has it.
    #[error(
        "another producer ships to {source_name} already (lock {lock}): stop it, or give this one \
         another HOSTNAME or SHIPPER_SUBJECT"
    )]
    Taken { source_name: String, lock: PathBuf },
    /// The directory cannot be used.
    #[error("state directory {directory}: {source} (set SHIPPER_STATE to one that can be written)")]
    Directory { directory: PathBuf, source: io::Error },
    /// What is in it cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl From<JournalError> for Error {
    fn from(error: JournalError) -> Self {
        let kind = match &error {
            JournalError::Taken { .. } => ErrorKind::Taken,
            JournalError::Directory { source, .. } => disk_kind(source),
            JournalError::Checkpoint(_) => ErrorKind::Mismatch,
        };
        Self::from_kind(kind, error)
    }
}

impl Journal {
    /// Takes the lock of a source, and reads its checkpoint.
    pub(super) fn open(
        directory: &Path,
        name: &str,
    ) -> Result<(Self, Option<Checkpoint>), JournalError> {
        let failed = |source| JournalError::Directory { directory: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let lock_path = directory.join(format!("{name}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Taken { source_name: name.to_owned(), lock: lock_path });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let path = directory.join(format!("{name}.json"));
        let checkpoint = Checkpoint::read(&path)?;
        Ok((Self { path, saved: None, _lock: lock }, checkpoint))
    }

    /// Replaces the checkpoint; it is durable when this returns. One that says nothing new costs
    /// nothing.
    pub(super) fn save(
        &mut self,
        mode: Mode,
        generation: Generation,
        subject: &str,
        since: u64,
        file: &Path,
        tail: TailState,
    ) -> io::Result<()> {
        if self.saved.as_ref() == Some(&tail) {
            return Ok(());
        }
        let checkpoint = Checkpoint::new(
            mode,
            generation,
            subject.to_owned(),
            since,
            file.to_owned(),
            tail.clone(),
        );
        checkpoint.write(&self.path)?;
        self.saved = Some(tail);
        Ok(())
    }

    /// Where the source's status is kept.
    pub(super) fn status_path(&self) -> PathBuf {
        self.path.with_extension("status")
    }
}
