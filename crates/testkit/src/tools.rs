//! The programs of others that tests need, found or installed by this workspace's scripts.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::repository_root;

/// What scripts/find_nats_cli.py ends with on a machine without Go.
const NO_GO: i32 = 3;

/// The nats-server of this machine, found or installed once per process.
pub(crate) fn nats_server() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let output = find("find_broker.py");
        path(&output).unwrap_or_else(|| panic!("{}", complaint(&output)))
    })
}

/// NATS's own command line, built from source on first use, which takes a minute or two and needs Go and the network. `None` where that
/// cannot be: a test then prints why, as this does, and returns.
///
/// # Panics
/// When `CI=true` and Go is there: a build machine must not skip what it can do.
pub fn nats_cli() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let output = find("find_nats_cli.py");
        let found = path(&output);
        if found.is_none() {
            let must =
                std::env::var_os("CI").is_some_and(|ci| ci == "true") && output.status.code() != Some(NO_GO);
            assert!(!must, "{}", complaint(&output));
            eprintln!("SKIPPED, no nats command line: {}", complaint(&output));
        }
        found
    });
    found.as_deref()
}

fn find(script: &str) -> Output {
    let script = repository_root().join("scripts").join(script);
    let output = Command::new("python3").arg(script).stdin(Stdio::null()).output();
    output.expect("python3 is in PATH, the tests find their tools with it")
}

fn path(output: &Output) -> Option<PathBuf> {
    let printed = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| PathBuf::from(printed.trim_end()))
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}
