//! What is promised of the broker's permissions and accounts. The proof is
//! `scripts/prove_security.py`; this builds what it plays with, starts it and gives its exit code.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use natsway_testkit::{repository_root, workspace_binary};

/// The programs that have a part in it.
pub const PROGRAMS: [&str; 6] = ["apiproxy", "worker", "provisioner", "cg", "producer", "consumer"];

/// What is done, and what has to hold then.
pub const PROMISES: &str = "\
Everything after `security` is for the proof itself: `prove security --help` lists its settings, which are flags alone.

  sufficient   every program does its whole job, and the broker has nothing to object
  minimal      each permission is used; with any one dropped the job fails, or the broker objects and a program says so
  kept to      what no program does is tried as each role: what succeeds is exactly what deploy/nats/remains.json says
  accounts     what crosses them is exactly what deploy/nats/crossings.json says";

/// Whether only the settings are asked for, for which nothing has to be built.
pub fn is_question(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| matches!(argument.as_str(), "--help" | "-h"))
}

/// Runs the proof with these arguments; its last line is JSON.
///
/// # Errors
/// A program does not compile, or there is no Python.
pub fn prove(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let mut command = Command::new("python3");
    command.arg(repository_root().join("scripts/prove_security.py")).args(arguments);
    if !is_question(arguments) {
        let worker = workspace_binary("worker");
        let programs = worker.parent().context("a program is in a directory")?;
        build_caller(programs)?;
        command.env("NATSWAY_BIN_DIR", programs);
    }
    let status = command.status().context("run python3")?;
    // Ended by a signal, it has proven nothing.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

/// Builds the worker that calls another one, an example, where the programs are.
fn build_caller(programs: &Path) -> anyhow::Result<()> {
    if std::env::var_os("NATSWAY_BIN_DIR").is_some() {
        return Ok(());
    }
    let profile = match programs.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Of the whole workspace, as the programs are: with other features all that they need would be
    // compiled once more.
    command.args(["build", "--quiet", "--workspace", "--features", "natsway-worker/client"]);
    command.args(["--example", "caller", "--profile", profile, "--target-dir"]);
    command.arg(programs.parent().unwrap_or(programs)).current_dir(repository_root());
    let status = command.status().context("run cargo")?;
    ensure!(status.success(), "the example `caller` does not compile");
    Ok(())
}
