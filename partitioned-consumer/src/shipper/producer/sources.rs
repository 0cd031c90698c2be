//! Which files to ship: paths as they are, globs as they match, standard input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::shipper::name::{NameError, Source, file_token};

/// What the user named.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    host: String,
    paths: Vec<PathBuf>,
    globs: Vec<String>,
    stdin: bool,
    /// Subjects have a token for the file, since there may be several.
    with_file: bool,
}

/// Why the files cannot be shipped together.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourcesError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("glob {glob:?}: {reason}")]
    Glob { glob: String, reason: String },
    #[error(
        "{one} and {other} would both be {token:?}: ship them with two producers of different SHIPPER_SUBJECT"
    )]
    SameToken { one: PathBuf, other: PathBuf, token: String },
}

impl Sources {
    pub(super) fn new(host: &str, files: &[String]) -> Result<Self, SourcesError> {
        let is_glob = |file: &&String| file.contains(['*', '?', '[']);
        let globs: Vec<String> = files.iter().filter(is_glob).cloned().collect();
        for glob in &globs {
            glob::Pattern::new(glob)
                .map_err(|error| SourcesError::Glob { glob: glob.clone(), reason: error.to_string() })?;
        }
        let stdin = files.iter().any(|file| file == "-");
        let paths = files.iter().filter(|file| !is_glob(file) && *file != "-").map(PathBuf::from).collect();
        let with_file = files.len() > 1 || !globs.is_empty();
        Ok(Self { host: host.to_owned(), paths, globs, stdin, with_file })
    }

    /// Whether new files may turn up.
    pub(super) fn has_globs(&self) -> bool {
        !self.globs.is_empty()
    }

    /// Standard input as a source.
    pub(super) fn stdin(&self) -> Result<Option<Source>, SourcesError> {
        let file = self.with_file.then_some("stdin");
        self.stdin.then(|| Source::new(&self.host, file).map_err(SourcesError::from)).transpose()
    }

    /// The files that there are now, each with its source. What rotation made of one is not another.
    pub(super) fn files(&self) -> Result<BTreeMap<Source, PathBuf>, SourcesError> {
        let mut found: Vec<(PathBuf, String)> =
            self.paths.iter().map(|path| (path.clone(), file_token(&name_of(path)))).collect();
        for pattern in &self.globs {
            let matches = glob::glob(pattern)
                .map_err(|error| SourcesError::Glob { glob: pattern.clone(), reason: error.to_string() })?;
            let paths: Vec<PathBuf> = matches.filter_map(Result::ok).filter(|path| path.is_file()).collect();
            let live = paths.iter().filter(|path| !is_rotation_of_one(path, &paths));
            found.extend(live.map(|path| (path.clone(), token(pattern, path))));
        }
        let mut sources = BTreeMap::new();
        for (path, token) in found {
            let source = Source::new(&self.host, self.with_file.then_some(token.as_str()))?;
            match sources.insert(source, path.clone()) {
                Some(other) if other != path => {
                    return Err(SourcesError::SameToken { one: other, other: path, token });
                }
                _ => {}
            }
        }
        Ok(sources)
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_rotation_of_one(path: &Path, all: &[PathBuf]) -> bool {
    let name = name_of(path);
    let packed = [".gz", ".zst", ".xz", ".bz2"].iter().find_map(|suffix| name.strip_suffix(suffix));
    all.iter().any(|other| {
        other != path
            && other.parent() == path.parent()
            && (crate::shipper::tail::is_rotated_name(&name_of(other), packed.unwrap_or(&name))
                || packed.is_some_and(|name| name == name_of(other)))
    })
}

/// The file's token: its path from the first part on that the pattern leaves open, so that `*/app.log` keeps its files apart.
fn token(pattern: &str, path: &Path) -> String {
    let fixed = Path::new(pattern)
        .components()
        .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']));
    let open: PathBuf = path.components().skip(fixed.count()).collect();
    file_token(&open.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(sources: &Sources) -> Vec<String> {
        sources.files().unwrap().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn one_file_needs_no_token_and_may_not_exist_yet() {
        let sources = Sources::new("web1", &["/no/such/app.log".into()]).unwrap();
        assert_eq!(tokens(&sources), ["web1"]);
    }

    #[test]
    fn a_glob_keeps_files_apart_and_leaves_rotated_ones_out() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a/app.log", "a/app.log.1", "a/app.log.2.gz", "a/app.log.gz", "b/app.log", "b/other.txt"]
        {
            std::fs::create_dir_all(directory.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let glob = |pattern: &str| directory.path().join(pattern).display().to_string();
        let sources = Sources::new("web1", &[glob("*/app.log*")]).unwrap();
        assert_eq!(tokens(&sources), ["web1.a_app_log", "web1.b_app_log"]);
    }

    #[test]
    fn two_files_of_one_name_are_refused() {
        let sources = Sources::new("web1", &["/a/app.log".into(), "/b/app.log".into()]).unwrap();
        assert!(sources.files().unwrap_err().to_string().contains("app_log"));
    }
}
