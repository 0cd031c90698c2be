//! The Go library and its `cg`, built by the Go toolchain from the versions that `tests/interop-go/go.mod` pins.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Why there is no Go peer.
#[derive(Debug)]
pub enum Unavailable {
    /// There is no Go toolchain here, or the module proxy does not carry the version.
    Absent(String),
    /// It should build, and does not.
    Broken(String),
}

/// What the Go command says when the proxy, not the program, is the trouble.
const REFUSALS: [&str; 5] =
    ["403 Forbidden", "404 Not Found", "410 Gone", "no such host", "connection refused"];

/// Builds `interop` and `cg` into a directory, and gives it back.
///
/// # Errors
/// [`Unavailable`].
pub fn build(programs: &Path) -> Result<PathBuf, Unavailable> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop-go");
    std::fs::create_dir_all(programs).map_err(|error| Unavailable::Broken(error.to_string()))?;
    let mut command = Command::new("go");
    command
        .args(["build", "-buildvcs=false", "-o"])
        .arg(programs)
        .args([".", "github.com/synadia-io/orbit.go/pcgroups/cg"]);
    let built = command.current_dir(source).env("GOFLAGS", "-mod=readonly").output();
    let built = built.map_err(|error| Unavailable::Absent(format!("there is no Go toolchain ({error})")))?;
    if built.status.success() {
        return Ok(programs.to_owned());
    }
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    if REFUSALS.iter().any(|text| said.contains(text)) {
        return Err(Unavailable::Absent(said));
    }
    Err(Unavailable::Broken(said))
}
