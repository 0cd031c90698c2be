//! Which finished files to remove: by age, then the oldest until the total fits.

use std::time::Duration;

/// How long and how much to keep; `None` sets no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// Since a file was last written.
    pub age: Option<Duration>,
    /// All files together, those that are being written included.
    pub total_bytes: Option<u64>,
}

/// A file that a consumer wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its path, relative to the directory.
    pub path: String,
    /// Since it was last written.
    pub age: Duration,
    /// Its length.
    pub bytes: u64,
    /// It may still grow: it is counted, and kept.
    pub open: bool,
}

impl Retention {
    /// The files to remove, oldest first.
    pub fn expired<'a>(&self, files: &'a [Written]) -> Vec<&'a str> {
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        let mut finished: Vec<&Written> = files.iter().filter(|file| !file.open).collect();
        finished.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.path.cmp(&b.path)));
        let mut expired = Vec::new();
        for file in finished {
            let too_old = self.age.is_some_and(|limit| file.age > limit);
            let too_much = self.total_bytes.is_some_and(|limit| total > limit);
            if too_old || too_much {
                total -= file.bytes;
                expired.push(file.path.as_str());
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, age: u64, bytes: u64, open: bool) -> Written {
        Written { path: path.into(), age: Duration::from_secs(age), bytes, open }
    }

    #[test]
    fn age_and_size_remove_the_oldest_and_never_an_open_file() {
        let files = [
            file("a", 100, 10, false),
            file("b", 50, 10, false),
            file("c", 900, 10, true),
            file("d", 1, 10, false),
        ];
        let expired = |age, total_bytes| Retention { age, total_bytes }.expired(&files);
        assert!(expired(None, None).is_empty());
        assert_eq!(expired(Some(Duration::from_secs(60)), None), ["a"]);
        assert_eq!(expired(None, Some(25)), ["a", "b"]);
        assert_eq!(expired(None, Some(0)), ["a", "b", "d"]);
    }
}
