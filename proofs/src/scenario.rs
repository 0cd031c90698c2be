//! The parts of a proof: what each is called, what it promises, and how those that were asked for
//! are run.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use futures_util::future::LocalBoxFuture;
use natsway_testkit::repository_root;

use crate::{Finding, Report};

/// Runs a scenario with a proof's settings and an empty directory, and notes what it sees.
pub type Run<S> =
    for<'a> fn(&'a S, &'a Path, &'a mut Finding) -> LocalBoxFuture<'a, anyhow::Result<()>>;

/// One part of a proof.
pub struct Scenario<S> {
    /// What it is called by `--only` and in the figures.
    pub name: &'static str,
    /// What is done, and what has to hold then.
    pub promise: &'static str,
    /// How it is run. An error is no broken promise: the scenario could not be carried through.
    pub run: Run<S>,
}

/// Makes a [`Scenario`] of an async function, which gives it its name, and of its promise.
macro_rules! scenario {
    ($function:ident, $promise:literal) => {
        $crate::Scenario {
            name: stringify!($function),
            promise: $promise,
            run: |settings, directory, finding| Box::pin($function(settings, directory, finding)),
        }
    };
}

pub(crate) use scenario;

/// Runs the scenarios whose name holds `only`, one after the other, each with an empty directory of
/// its own.
///
/// # Errors
/// No name holds `only`; or something that is not under proof did not work: a process that does not
/// start, a file that cannot be written.
pub async fn run<S>(
    proof: &'static str,
    (seed, only): (u64, &str),
    settings: &S,
    scenarios: &[Scenario<S>],
) -> anyhow::Result<Report> {
    let mut findings = Vec::new();
    for scenario in select(scenarios, only, |scenario| scenario.name)? {
        eprintln!("{} ...", scenario.name);
        let directory = raw_directory(&format!("{proof}/{seed}/{}", scenario.name))?;
        let mut finding = Finding::new(scenario.name);
        (scenario.run)(settings, &directory, &mut finding).await?;
        eprintln!("  {}", serde_json::to_string(&finding)?);
        findings.push(finding);
    }
    Ok(Report { proof, seed, scenarios: findings })
}

/// Picks those whose name holds `only`.
///
/// # Errors
/// There is none, and which there are.
pub fn select<'a, T>(
    all: &'a [T],
    only: &str,
    name: impl Fn(&T) -> &'static str,
) -> anyhow::Result<Vec<&'a T>> {
    let selected: Vec<&T> = all.iter().filter(|one| name(one).contains(only)).collect();
    let names: Vec<&str> = all.iter().map(name).collect();
    ensure!(
        !selected.is_empty(),
        "--only {only}: no name holds this, there are {}",
        names.join(", ")
    );
    Ok(selected)
}

/// Makes the directory for raw data below `target/prove`, and empties it.
///
/// # Errors
/// The system's.
pub fn raw_directory(below: &str) -> anyhow::Result<PathBuf> {
    let directory = target_directory().join("prove").join(below);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("empty {}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

/// Where builds go, and whatever else need not be kept.
pub(crate) fn target_directory() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    repository_root().join(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_picks_by_a_part_of_the_name_and_says_what_there_is() {
        let names = ["broker_killed", "broker_frozen", "forming"];
        let picked = |only| select(&names, only, |name| *name);
        assert_eq!(picked("broker").unwrap(), [&"broker_killed", &"broker_frozen"]);
        assert_eq!(picked("").unwrap().len(), 3);
        let refusal = picked("lame").unwrap_err().to_string();
        assert_eq!(
            refusal,
            "--only lame: no name holds this, there are broker_killed, broker_frozen, forming"
        );
    }
}
