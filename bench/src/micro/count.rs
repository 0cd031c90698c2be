//! Instructions for each operation, by valgrind: the same on a busy machine and a quiet one.
//!
//! An operation runs in a process of its own, once few and once many times; the difference of the
//! counts, over the difference in times, is what one costs, without the start and the setting up.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, ensure};

use super::{Micro, all as every_micro};

const FEW: u64 = 200;
const MANY: u64 = 1_200;

/// Whether it is installed.
///
/// # Errors
/// It is not, and how to get it.
pub fn find() -> anyhow::Result<()> {
    let version = std::process::Command::new("valgrind").arg("--version").output();
    version.context("valgrind is not installed: install the package valgrind").map(drop)
}

/// Instructions of every operation, by its name.
///
/// # Errors
/// Valgrind fails.
pub async fn all() -> anyhow::Result<BTreeMap<String, f64>> {
    let mut counts = BTreeMap::new();
    for micro in every_micro() {
        let count = of(&micro).await.with_context(|| micro.name.clone())?;
        counts.insert(micro.name, count);
    }
    Ok(counts)
}

async fn of(micro: &Micro) -> anyhow::Result<f64> {
    let few = instructions(&micro.name, FEW);
    let many = instructions(&micro.name, MANY);
    let (few, many) = tokio::try_join!(few, many)?;
    Ok(many.saturating_sub(few) as f64 / (MANY - FEW) as f64)
}

/// Instructions of a whole process that does the operation so many times.
async fn instructions(name: &str, times: u64) -> anyhow::Result<u64> {
    let mut command = tokio::process::Command::new("valgrind");
    command
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["micro-run", name, &times.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed ({}): {text}", output.status);
    read(&text).with_context(|| format!("valgrind printed {text:?}"))
}

/// `==123== I   refs:      1,234,567`.
fn read(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("refs:") && line.contains(" I "))?;
    line.rsplit(':').next()?.trim().replace(',', "").parse().ok()
}

/// Does an operation so many times; the child's part.
///
/// # Errors
/// There is no such operation.
pub fn run(name: &str, times: u64) -> anyhow::Result<()> {
    let micro = every_micro().into_iter().find(|micro| micro.name == name);
    let mut operation = micro.with_context(|| format!("there is no operation {name:?}"))?.make();
    (0..times).for_each(|_| operation());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valgrinds_count_is_read() {
        assert_eq!(
            read("==7== Cachegrind\n==7== I   refs:      1,234,567\n==7== \n"),
            Some(1_234_567)
        );
        assert_eq!(read("==7== I refs:        12"), Some(12));
        assert_eq!(read("==7== D refs: 12"), None);
    }

    #[test]
    fn an_operation_that_nobody_knows_is_an_error() {
        assert!(run("envelope/encode/get/natsway", 3).is_ok());
        assert!(run("no/such", 1).unwrap_err().to_string().contains("no operation"));
    }
}
