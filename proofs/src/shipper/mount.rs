//! A small disk of its own, to be filled.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tmpfs; dropped, it is unmounted, and everything in it is gone.
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk; an error says why that is not allowed here.
    pub(crate) fn mount(path: &Path, mebibytes: u64) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let options = format!("size={mebibytes}m");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(path)
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut ballast = File::create(self.ballast())?;
        let block = vec![0; 64 * 1024];
        loop {
            match ballast.write_all(&block) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                other => other?,
            }
        }
    }

    /// Makes room again.
    pub(crate) fn relieve(&self) {
        // It is there unless it was never filled.
        fs::remove_file(self.ballast()).unwrap_or_default();
    }

    fn ballast(&self) -> PathBuf {
        self.path.join(".ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = Command::new("umount").arg("--lazy").arg(&self.path).status() {
            eprintln!("{} stays mounted: {error}", self.path.display());
        }
    }
}
