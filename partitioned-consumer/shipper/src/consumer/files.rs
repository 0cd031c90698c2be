//! Output files: appended to, cut back, synced; a bounded number of them open.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::steps::step;
use crate::tail::checkpoint::sync_directory;

/// See the module.
pub(super) struct Files {
    directory: PathBuf,
    open: HashMap<String, Handle>,
    most: usize,
    uses: u64,
}

struct Handle {
    file: Arc<File>,
    used: u64,
}

impl Files {
    pub(super) fn new(directory: &Path, most: usize) -> Self {
        Self { directory: directory.to_owned(), open: HashMap::new(), most, uses: 0 }
    }

    /// The file, open for appending; made with its directories when it does not exist, and then its
    /// name is durable.
    pub(super) fn open(&mut self, path: &str) -> io::Result<Arc<File>> {
        self.uses += 1;
        if let Some(handle) = self.open.get_mut(path) {
            handle.used = self.uses;
            return Ok(Arc::clone(&handle.file));
        }
        if self.open.len() >= self.most {
            let oldest = self
                .open
                .iter()
                .min_by_key(|(_, handle)| handle.used)
                .map(|(path, _)| path.clone());
            oldest.and_then(|path| self.open.remove(&path));
        }
        let full = self.directory.join(path);
        let file = match File::options().append(true).open(&full) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(&self.directory, &full)?
            }
            Err(error) => return Err(error),
        };
        let file = Arc::new(file);
        self.open.insert(path.to_owned(), Handle { file: Arc::clone(&file), used: self.uses });
        Ok(file)
    }

    /// Appends; the file may have a part of it when this fails.
    pub(super) fn append(
        &mut self,
        path: &str,
        pieces: &[impl AsRef<[u8]>],
    ) -> io::Result<Arc<File>> {
        let file = self.open(path)?;
        step(|| {
            let all = pieces
                .iter()
                .flat_map(|piece| [piece.as_ref(), b"\n"])
                .collect::<Vec<_>>()
                .concat();
            drop((&*file).write_all(&all[..all.len() / 2]));
        })?;
        let mut out = io::BufWriter::with_capacity(256 * 1024, &*file);
        for piece in pieces {
            out.write_all(piece.as_ref())?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        drop(out);
        Ok(file)
    }

    /// Cuts a file to `bytes` where it is longer. One that does not exist is short enough.
    pub(super) fn cut_to(&mut self, path: &str, bytes: u64) -> io::Result<()> {
        let full = self.directory.join(path);
        // That it cannot even be opened must cost no committed line either.
        step(|| {})?;
        match File::options().write(true).open(full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(file) if file.metadata()?.len() > bytes => {
                step(|| {})?;
                file.set_len(bytes)?;
                file.sync_all()
            }
            Ok(_) => Ok(()),
        }
    }

    /// Whether the file is still where it was, with at least `bytes` in it: somebody else may have
    /// removed or replaced it.
    pub(super) fn still_has(&self, path: &str, bytes: u64) -> bool {
        let Ok(there) = fs::metadata(self.directory.join(path)) else { return false };
        let place = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
        let same = |handle: &Handle| {
            handle.file.metadata().is_ok_and(|open| place(&open) == place(&there))
        };
        there.len() >= bytes && self.open.get(path).is_none_or(same)
    }

    pub(super) fn close(&mut self, path: &str) {
        self.open.remove(path);
    }

    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}

/// Makes a file, and each directory above it that is missing, durably.
fn create(base: &Path, path: &Path) -> io::Result<File> {
    step(|| {})?;
    let parents: Vec<&Path> =
        path.ancestors().skip(1).take_while(|parent| *parent != base).collect();
    for parent in parents.into_iter().rev() {
        match fs::create_dir(parent) {
            Ok(()) => sync_directory(parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    let file = File::options().append(true).create(true).open(path)?;
    sync_directory(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_bounded_and_tails_are_cut() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::new(directory.path(), 2);
        for path in ["a/1", "b/2/x", "c/3", "a/1"] {
            files.append(path, &["line"]).unwrap();
            assert!(files.count() <= 2);
        }
        assert_eq!(fs::read(directory.path().join("a/1")).unwrap(), b"line\nline\n");
        files.cut_to("a/1", 5).unwrap();
        files.cut_to("a/1", 50).unwrap();
        files.cut_to("none", 0).unwrap();
        files.append("a/1", &["next"]).unwrap();
        assert_eq!(fs::read(directory.path().join("a/1")).unwrap(), b"line\nnext\n");
    }
}
