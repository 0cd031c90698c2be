//! The judge: every line once over all directories of a cluster, and in order per host.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What is wrong with the output of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutputReport {
    /// Lines found, repeated ones included.
    pub lines: u64,
    /// Lines that were written and are nowhere.
    pub missing: u64,
    /// Lines that are there more than once.
    pub repeated: u64,
    /// Lines behind a later one of their host in the same directory.
    pub out_of_order: u64,
    /// Lines that nobody wrote: torn, glued or under another host's name.
    pub torn: u64,
    /// The first few of these, for people.
    pub examples: Vec<String>,
}

impl OutputReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.missing + self.repeated + self.out_of_order + self.torn == 0
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < 10 {
            self.examples.push(text());
        }
    }
}

/// Judges directories that belong to one cluster. `written` is how many lines each host has
/// written, numbered from 1.
///
/// # Errors
/// The disk's.
pub fn judge(directories: &[PathBuf], written: &BTreeMap<String, u64>) -> io::Result<OutputReport> {
    let mut verdict = OutputReport::default();
    let mut seen: BTreeMap<&str, Vec<u8>> =
        written.iter().map(|(host, lines)| (host.as_str(), vec![0; *lines as usize + 1])).collect();
    for directory in directories {
        for (host, times) in &mut seen {
            let mut last = 0;
            for file in files(&directory.join(host))? {
                let mut reader = BufReader::new(fs::File::open(&file)?);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line)? > 0 {
                    let number = number(&line, host)
                        .filter(|number| *number > 0 && (*number as usize) < times.len());
                    match number {
                        None => {
                            verdict.torn += 1;
                            let text = String::from_utf8_lossy(&line).into_owned();
                            verdict.example(|| format!("torn: {text:?} in {}", file.display()));
                        }
                        Some(number) => {
                            verdict.lines += 1;
                            let count = &mut times[number as usize];
                            *count = count.saturating_add(1);
                            if *count > 1 {
                                verdict.repeated += 1;
                                verdict.example(|| {
                                    format!("repeated: {host} {number} in {}", file.display())
                                });
                            } else if number < last {
                                verdict.out_of_order += 1;
                                verdict.example(|| {
                                    format!(
                                        "out of order: {host} {number} behind {last} in {}",
                                        file.display()
                                    )
                                });
                            }
                            last = last.max(number);
                        }
                    }
                    line.clear();
                }
            }
        }
    }
    for (host, times) in &seen {
        for (number, _) in times.iter().enumerate().skip(1).filter(|(_, count)| **count == 0) {
            verdict.missing += 1;
            verdict.example(|| format!("missing: {host} {number}"));
        }
    }
    Ok(verdict)
}

/// How many whole lines there are, whatever they say: quick, to see how far things are.
///
/// # Errors
/// The disk's.
pub fn count(
    directories: &[PathBuf],
    hosts: impl Iterator<Item = String> + Clone,
) -> io::Result<u64> {
    let mut lines = 0;
    for directory in directories {
        for host in hosts.clone() {
            for file in files(&directory.join(host))? {
                lines += fs::read(file)?.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
        }
    }
    Ok(lines)
}

fn number(line: &[u8], host: &str) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    line.strip_prefix(host)?.strip_prefix(' ')?.parse().ok()
}

/// The files of a host in the order in which they were begun: by date, then `x`, `x.1`, `x.2`.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort_by_cached_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.split_once('.') {
            Some((base, part)) => (base.to_owned(), part.parse().unwrap_or(u64::MAX)),
            None => (name, 0),
        }
    });
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(contents: &[&[&str]]) -> OutputReport {
        let base = tempfile::tempdir().expect("a temporary directory can be made");
        let directories: Vec<PathBuf> =
            (0..contents.len()).map(|n| base.path().join(n.to_string())).collect();
        for (directory, files) in directories.iter().zip(contents) {
            fs::create_dir_all(directory.join("h")).expect("it can be written");
            for (part, text) in files.iter().enumerate() {
                let name = if part == 0 { "log-1".to_owned() } else { format!("log-1.{part}") };
                fs::write(directory.join("h").join(name), text).expect("it can be written");
            }
        }
        judge(&directories, &[("h".to_owned(), 4)].into()).expect("it can be read")
    }

    #[test]
    fn a_clean_output_may_be_spread_over_directories() {
        let clean = verdict(&[&["h 1\nh 2\n", "h 4\n"], &["h 3\n"]]);
        assert!(clean.is_clean(), "{clean:?}");
        assert_eq!(clean.lines, 4);
    }

    #[test]
    fn every_fault_is_found() {
        assert_eq!(verdict(&[&["h 1\nh 2\nh 4\n"]]).missing, 1);
        assert_eq!(verdict(&[&["h 1\nh 2\nh 3\nh 4\n"], &["h 3\n"]]).repeated, 1);
        assert_eq!(verdict(&[&["h 1\nh 3\nh 2\nh 4\n"]]).out_of_order, 1);
        assert_eq!(verdict(&[&["h 1\nh 2h 3\nh 4\n"]]).torn, 1);
        assert_eq!(verdict(&[&["h 1\nh 2\nh 3\nh 4"]]).torn, 1);
        assert_eq!(verdict(&[&["h 1\nh 2\nh 3\nh 4\nx 5\n"]]).torn, 1);
    }
}
