//! The Go library and its `cg`, built by the Go toolchain from the versions that
//! `tests/interop-go/*.mod` pin.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A generation of the Go library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// v0.2.2: several filters, members pin under one name.
    Current,
    /// v0.1.0: one filter, members pin under their own names. Some module proxies carry this
    /// version only.
    Older,
}

/// Why there is no Go peer.
#[derive(Debug)]
pub enum Unavailable {
    /// There is no Go toolchain here.
    NoGo(String),
    /// The module proxy does not carry the version, or cannot be reached.
    Refused(String),
    /// It should build, and does not.
    Broken(String),
}

/// What the Go command says when the proxy, not the program, is the trouble.
const REFUSALS: [&str; 5] =
    ["403 Forbidden", "404 Not Found", "410 Gone", "no such host", "connection refused"];

impl Peer {
    /// The version of the library.
    pub fn version(self) -> &'static str {
        match self {
            Self::Current => "v0.2.2",
            Self::Older => "v0.1.0",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Current => &[],
            Self::Older => &["-modfile=older.mod", "-tags=older"],
        }
    }

    /// Builds `interop` and `cg` into a directory, and gives it back.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub fn build(self, directory: &Path) -> Result<PathBuf, Unavailable> {
        let programs = directory.join(self.version());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop-go");
        std::fs::create_dir_all(&programs)
            .map_err(|error| Unavailable::Broken(error.to_string()))?;
        let mut command = Command::new("go");
        command.args(["build", "-buildvcs=false"]).args(self.arguments()).arg("-o").arg(&programs);
        command.args([".", "github.com/synadia-io/orbit.go/pcgroups/cg"]);
        let built = command.current_dir(source).env("GOFLAGS", "-mod=readonly").output();
        let built =
            built.map_err(|error| Unavailable::NoGo(format!("`go` cannot be run ({error})")))?;
        if built.status.success() {
            return Ok(programs);
        }
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        if REFUSALS.iter().any(|text| said.contains(text)) {
            return Err(Unavailable::Refused(said));
        }
        Err(Unavailable::Broken(said))
    }

    /// Builds the newest generation that can be had.
    ///
    /// # Errors
    /// Why the current one cannot be had, when none can.
    pub fn newest(directory: &Path) -> Result<(Self, PathBuf), Unavailable> {
        match Self::Current.build(directory) {
            Ok(programs) => Ok((Self::Current, programs)),
            Err(why) => Self::Older
                .build(directory)
                .map(|programs| (Self::Older, programs))
                .map_err(|_| why),
        }
    }
}
