//! Where this workspace's scripts and binaries are.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Variables that cargo sets for the tests of one package. Left in place they would look to a
/// nested cargo like a change of settings, and it would compile half of the workspace again.
const OF_THE_TEST: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

/// The root of the checkout that this crate was compiled from.
pub fn repository_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        here.ancestors().nth(2).expect("this crate is at crates/testkit").to_path_buf()
    })
}

/// The path of a binary of this workspace, up to date and of the same profile as the running
/// program.
///
/// A test can name only the binaries of its own package, so this asks cargo to build the others.
/// The first call for a name in a process takes as long as cargo needs (a moment when nothing
/// changed); it blocks, so call it before anything that needs its time. With `NATSWAY_BIN_DIR` set
/// nothing is built, and the binary is the one in that directory.
///
/// # Panics
/// When there is no such binary, or it does not compile: cargo's output is in the test's output.
pub fn workspace_binary(name: &str) -> PathBuf {
    built("--bin", name, Path::new(name))
}

/// The path of an example of this workspace, as [`workspace_binary`] has that of a binary; with
/// `NATSWAY_BIN_DIR` set, the one in `examples` below that directory.
///
/// # Panics
/// When there is no such example, or it does not compile.
pub fn workspace_example(name: &str) -> PathBuf {
    built("--example", name, &Path::new("examples").join(name))
}

/// A program of a kind that is at this path of the profile's directory once it is built.
fn built(kind: &'static str, name: &str, path: &Path) -> PathBuf {
    let program = match std::env::var_os("NATSWAY_BIN_DIR") {
        Some(directory) => Path::new(&directory).join(path),
        None => {
            let directory = profile_directory();
            build_once(kind, name, &directory);
            directory.join(path)
        }
    };
    assert!(program.exists(), "{}: no such program in this workspace", program.display());
    program
}

/// `target/debug`, `target/release`, ...: the directory of the profile that the running program was
/// built with.
fn profile_directory() -> PathBuf {
    let program = std::env::current_exe().expect("a program knows its path");
    let directory = program.parent().expect("a program is in a directory");
    match directory.file_name() {
        Some(name) if name == "deps" || name == "examples" => {
            directory.parent().expect("deps is below the profile").into()
        }
        _ => directory.into(),
    }
}

fn build_once(kind: &'static str, name: &str, directory: &Path) {
    static BUILT: Mutex<Option<HashSet<(&str, String)>>> = Mutex::new(None);
    // Held while building: the other tests of this process wait here and then find it built.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    let program = (kind, name.to_owned());
    if !built.contains(&program) {
        build(kind, name, directory);
        built.insert(program);
    }
}

fn build(kind: &str, name: &str, directory: &Path) {
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => panic!("{}: expected target/<profile>", directory.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--workspace", kind, name, "--profile", profile]);
    command.current_dir(repository_root()).stdin(Stdio::null());
    if let Some(target) = directory.parent() {
        command.arg("--target-dir").arg(target);
    }
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| OF_THE_TEST.iter().any(|prefix| key.starts_with(prefix)))
        {
            command.env_remove(key);
        }
    }
    let output = command.output().expect("cargo starts");
    assert!(
        output.status.success(),
        "cargo build {kind} {name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
