//! The programs of others that tests need, found or installed by this workspace's scripts.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::repository_root;

/// What the finders of programs in Go end with on a machine without Go.
const NO_GO: i32 = 3;

/// The nats-server of this machine, found or installed once per process.
///
/// # Panics
/// When none can be had; the text says what to do.
pub fn nats_server() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let output = find("find_broker.py");
        path(&output).unwrap_or_else(|| panic!("{}", complaint(&output)))
    })
}

/// NATS's own command line, built from source on first use, which takes a minute or two and needs
/// Go and the network. `None` where that cannot be: a test then prints why, as this does, and
/// returns.
///
/// # Panics
/// When `CI=true` and Go is there: a build machine must not skip what it can do.
pub fn nats_cli() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(|| go_tool("find_nats_cli.py", "nats command line")).as_deref()
}

/// The conformance suite for HTTP/2 servers, built and missed as [`nats_cli`] is.
///
/// # Panics
/// As there.
pub fn h2spec() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(|| go_tool("find_h2spec.py", "h2spec")).as_deref()
}

fn go_tool(finder: &str, name: &str) -> Option<PathBuf> {
    let output = find(finder);
    let found = path(&output);
    if found.is_none() {
        let must = std::env::var_os("CI").is_some_and(|ci| ci == "true")
            && output.status.code() != Some(NO_GO);
        assert!(!must, "{}", complaint(&output));
        eprintln!("SKIPPED, no {name}: {}", complaint(&output));
    }
    found
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
