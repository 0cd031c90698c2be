//! When and where the figures were made, and by which versions.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use natsway_testkit::repository_root;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::load::Generators;
use super::peers;
use crate::scenario::{Arrangement, Scenario};

/// The time in UTC, RFC 3339, to the second.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Raises the limit on open files as far as it may be, up to so many; what is started from here has
/// it too.
pub fn allow_open_files(wanted: u64) {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted.min(hard)
    {
        // Too few files fail the run that needs them, with a reason of its own.
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).ok();
    }
}

/// Processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Processors, memory and kernel, for people.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |file: &str, name: &str| {
        let line = file.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = value(&read("/proc/cpuinfo"), "model name")
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let mut text = format!("{} processors ({model})", processors());
    let kib = value(&read("/proc/meminfo"), "MemTotal")
        .and_then(|kib| kib.split(' ').next()?.parse::<f64>().ok());
    if let Some(kib) = kib {
        text += &format!(", {:.0} GiB", kib / 1024.0 / 1024.0);
    }
    if let Some(release) = read("/proc/sys/kernel/osrelease").trim().split('-').next() {
        text += &format!(", Linux {release}");
    }
    text
}

/// What takes part, by name.
pub fn versions(scenarios: &[Scenario], generators: &Generators) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let mut add = |name: &str, version: Option<String>| {
        versions.insert(name.to_owned(), version.unwrap_or_else(|| "unknown".to_owned()));
    };
    let commit = line_of("git", &["describe", "--always", "--dirty"]);
    add("natsway", commit.or_else(|| Some(env!("CARGO_PKG_VERSION").to_owned())));
    add("nats-server", nats_server());
    for generator in generators.all() {
        add(generator.tool.name(), Some(generator.version.clone()));
    }
    for arrangement in
        scenarios.iter().flat_map(|scenario| &scenario.contenders).map(|one| &one.arrangement)
    {
        if arrangement.needs_go() {
            add("go", peers::go_peer().ok().map(|found| found.version));
        }
        if let Arrangement::Proxy { program, .. } = arrangement {
            add(program.name(), program.find().ok().map(|found| found.version));
            if program.name() == "fabio" {
                add("consul", peers::consul().ok().map(|found| found.version));
            }
        }
    }
    versions
}

fn nats_server() -> Option<String> {
    let finder = repository_root().join("scripts/find_broker.py");
    let path = line_of("python3", &[&finder.display().to_string()])?;
    let version = line_of(&path, &["--version"])?;
    Some(version.rsplit('v').next()?.to_owned())
}

/// The first line that a program prints, if it runs.
fn line_of(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(repository_root()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_machine_are_told() {
        assert!(now().ends_with('Z') && now().len() == 20, "{}", now());
        assert!(machine().starts_with(&format!("{} processors", processors())));
    }
}
