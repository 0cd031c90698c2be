//! The memory that the system allows this process: the limit of its control group, or of one around
//! it.

use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// What the first version writes where there is no limit, and all above it, is more than any
/// machine has.
const NO_LIMIT: u64 = 1 << 60;

/// Returns the limit in bytes; `None` where there is none, or no control groups.
pub fn memory_limit() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(Path::new(ROOT), &groups)
        .into_iter()
        .filter_map(|file| std::fs::read_to_string(file).ok().and_then(|text| parse_limit(&text)));
    limits.min()
}

/// Returns the files that may hold a limit, of this process's own group and of those around it, by
/// what `/proc/self/cgroup` says. In a container its own group is mounted at the root, and its path
/// leads nowhere.
fn limit_files(root: &Path, groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let own = Path::new(path.trim_start_matches('/'));
        files.extend(own.ancestors().map(|group| base.join(group).join(name)));
    }
    files
}

fn parse_limit(text: &str) -> Option<usize> {
    let bytes = text.trim().parse::<u64>().ok().filter(|bytes| *bytes < NO_LIMIT)?;
    usize::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_looked_at_up_to_the_root() {
        let files = |groups| -> Vec<String> {
            let files = limit_files(Path::new("/c"), groups);
            files.iter().map(|file| file.display().to_string()).collect()
        };
        let second = ["/c/a.slice/b.scope/memory.max", "/c/a.slice/memory.max", "/c/memory.max"];
        assert_eq!(files("0::/a.slice/b.scope\n"), second);
        assert_eq!(files("0::/\n"), ["/c/memory.max"]);
        let first =
            ["/c/memory/docker/1/memory.limit_in_bytes", "/c/memory/docker/memory.limit_in_bytes"];
        let found = files("5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n");
        assert_eq!(found[..2], first);
        assert_eq!(found[2..], ["/c/memory/memory.limit_in_bytes"]);
        assert!(files("nonsense").is_empty());
    }

    #[test]
    fn no_limit_is_none() {
        assert_eq!(parse_limit("536870912\n"), Some(536_870_912));
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
    }
}
