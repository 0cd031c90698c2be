//! Which file is which.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use serde::{Deserialize, Serialize};

/// Bytes of the head that are compared: enough to tell logs apart, little enough to read at each
/// poll.
const HEAD_BYTES: u64 = 1024;

/// Where a file is stored; unique among the files that exist at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// The device.
    pub device: u64,
    /// The inode, which the system uses again after the file is gone.
    pub inode: u64,
    /// When the inode came into use, in nanoseconds since 1970; 0 where the system does not tell.
    pub born_ns: u64,
}

impl FileId {
    /// The id of a file that was stat'ed.
    pub fn of(metadata: &Metadata) -> Self {
        let born = metadata
            .created()
            .ok()
            .and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
        let born_ns = born.map_or(0, |born| u64::try_from(born.as_nanos()).unwrap_or(0));
        Self { device: metadata.dev(), inode: metadata.ino(), born_ns }
    }
}

/// A file: where it is stored, and how it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Device and inode.
    pub place: FileId,
    /// How many bytes of the head `head_hash` covers; grows with the file, up to 1 KiB.
    pub head_bytes: u64,
    /// FNV-1a (64 bit) of those bytes.
    pub head_hash: u64,
}

impl Fingerprint {
    /// Takes the fingerprint of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let head = read_up_to(file, metadata.len().min(HEAD_BYTES))?;
        Ok(Self {
            place: FileId::of(&metadata),
            head_bytes: head.len() as u64,
            head_hash: fnv(&head),
        })
    }

    /// Whether the file still begins as it did.
    ///
    /// # Errors
    /// The system's.
    pub fn still_begins(&self, file: &File) -> io::Result<bool> {
        let head = read_up_to(file, self.head_bytes)?;
        Ok(head.len() as u64 == self.head_bytes && fnv(&head) == self.head_hash)
    }

    /// Whether an open file is this one. A file that was empty when its fingerprint was taken is
    /// recognized only while it is.
    ///
    /// # Errors
    /// The system's.
    pub fn is(&self, file: &File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        if FileId::of(&metadata) != self.place || (self.head_bytes == 0 && metadata.len() > 0) {
            return Ok(false);
        }
        self.still_begins(file)
    }

    /// Covers as much of the head as there is now.
    ///
    /// # Errors
    /// The system's.
    pub fn grow(&mut self, file: &File) -> io::Result<()> {
        if self.head_bytes < HEAD_BYTES {
            *self = Self::of(file)?;
        }
        Ok(())
    }
}

/// The last bytes before an offset of the run: a file that was rewritten in place has others there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The run's offset behind them.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
    /// FNV-1a (64 bit) of them.
    pub hash: u64,
}

impl Probe {
    /// The probe of the bytes in front of `offset`.
    pub fn of(offset: u64, bytes: &[u8]) -> Self {
        Self { offset, bytes: bytes.len() as u64, hash: fnv(bytes) }
    }

    /// Whether the bytes in front of `file_offset` are these; then they are returned.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn check(&self, file: &File, file_offset: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(begin) = file_offset.checked_sub(self.bytes) else { return Ok(None) };
        let bytes = read_range(file, begin, self.bytes as usize)?;
        Ok((bytes.len() as u64 == self.bytes && fnv(&bytes) == self.hash).then_some(bytes))
    }
}

fn read_up_to(file: &File, bytes: u64) -> io::Result<Vec<u8>> {
    read_range(file, 0, bytes as usize)
}

/// Reads `bytes` from `offset`, or what there is.
pub(super) fn read_range(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
