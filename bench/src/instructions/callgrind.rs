//! A program under callgrind, whose counter is set to zero and read while it runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use natsway_testkit::{Process, ProcessBuilder};

/// Where callgrind begins the names of its files; `.1` is the first that it is asked for.
const OUT: &str = "callgrind.out";

/// Says whether callgrind, and what talks to it, is installed.
///
/// # Errors
/// It is not, and how to get it.
pub(super) fn find() -> anyhow::Result<()> {
    for program in ["valgrind", "vgdb"] {
        let started = std::process::Command::new(program).arg("--help").output();
        started
            .with_context(|| format!("{program} is not installed: install the package valgrind"))?;
    }
    Ok(())
}

/// A program that runs under callgrind.
pub(super) struct Counted {
    process: Process,
    directory: PathBuf,
}

impl Counted {
    /// Gives the command that runs a program under callgrind; what it counts goes to `directory`.
    pub(super) fn builder(program: &Path, directory: &Path) -> ProcessBuilder {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        Process::builder("valgrind")
            .name(format!("{name} under callgrind"))
            .args(["--tool=callgrind", "--quiet"])
            .arg(pipes(directory))
            .arg(format!("--callgrind-out-file={}", directory.join(OUT).display()))
            .arg(program)
    }

    /// Watches over a process that [`builder`](Counted::builder) made.
    pub(super) fn new(process: Process, directory: &Path) -> Self {
        Self { process, directory: directory.to_owned() }
    }

    /// Begins to count anew.
    ///
    /// # Errors
    /// Callgrind does not do as it is told.
    pub(super) async fn zero(&self) -> anyhow::Result<()> {
        self.tell("zero").await
    }

    /// Gives the instructions since [`zero`](Counted::zero), of all threads.
    ///
    /// # Errors
    /// Callgrind does not do as it is told.
    pub(super) async fn instructions(&self) -> anyhow::Result<u64> {
        self.tell("dump").await?;
        let out = self.directory.join(format!("{OUT}.1"));
        let text = fs::read_to_string(&out).with_context(|| format!("read {}", out.display()))?;
        total(&text).with_context(|| format!("{} has no total", out.display()))
    }

    async fn tell(&self, command: &str) -> anyhow::Result<()> {
        let process = format!("--pid={}", self.process.pid());
        let mut vgdb = tokio::process::Command::new("vgdb");
        let told =
            vgdb.arg(pipes(&self.directory)).args([&process, command]).kill_on_drop(true).output();
        let told = told.await.context("start vgdb")?;
        ensure!(told.status.success(), "vgdb {command}: {}", String::from_utf8_lossy(&told.stderr));
        Ok(())
    }
}

/// Where vgdb talks to the program: what a killed one leaves behind goes with the directory.
fn pipes(directory: &Path) -> String {
    format!("--vgdb-prefix={}", directory.join("vgdb-pipe").display())
}

/// `totals: 123456`, which callgrind writes last.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read() {
        assert_eq!(total("events: Ir\nfn=(1) a\n1 5\n\ntotals: 1234567\n"), Some(1_234_567));
        assert_eq!(total("events: Ir\n"), None);
    }
}
