//! Which files to ship: paths as they are, globs as they match, standard input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
use crate::name::{NameError, Source, file_token};

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
        "{one} and {other} would both be {token:?}: ship them with two producers of different \
         SHIPPER_SUBJECT"
    )]
    SameToken { one: PathBuf, other: PathBuf, token: String },
    #[error("{0}")]
    Refused(String),
}

impl From<SourcesError> for Error {
    fn from(error: SourcesError) -> Self {
        Self::from_kind(ErrorKind::InvalidConfig, error)
    }
}

impl Sources {
    pub(super) fn new(host: &str, files: &[String]) -> Result<Self, SourcesError> {
        let is_glob = |file: &&String| file.contains(['*', '?', '[']);
        let globs: Vec<String> = files.iter().filter(is_glob).cloned().collect();
        for glob in &globs {
            glob::Pattern::new(glob).map_err(|error| SourcesError::Glob {
                glob: glob.clone(),
                reason: error.to_string(),
            })?;
        }
        let stdin = files.iter().any(|file| file == "-");
        let paths =
            files.iter().filter(|file| !is_glob(file) && *file != "-").map(PathBuf::from).collect();
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

    /// The files that there are now, by the source that each would be; what rotation made of one is
    /// not another. Where several would be the same source, named ones come first.
    pub(super) fn files(&self) -> Found {
        let mut found = Found::default();
        for path in &self.paths {
            if !path.exists() {
                found.problems.push(Problem { path: path.clone(), kind: ProblemKind::Missing });
            }
            found.add(&self.host, path.clone(), self.with_file.then(|| file_token(&name_of(path))));
        }
        for pattern in &self.globs {
            // It was checked when it was read.
            let matches = glob::glob(pattern).into_iter().flatten();
            let paths: Vec<PathBuf> =
                matches.filter_map(Result::ok).filter(|path| path.is_file()).collect();
            if paths.is_empty() {
                found.problems.push(Problem { path: pattern.into(), kind: ProblemKind::NoMatch });
            }
            let live = paths.iter().filter(|path| !is_rotation_of_one(path, &paths));
            live.for_each(|path| found.add(&self.host, path.clone(), Some(token(pattern, path))));
        }
        found
    }

    /// Whether files that are named, not matched, can be told apart.
    pub(super) fn check(&self) -> Result<(), SourcesError> {
        let named = Self { globs: Vec::new(), ..self.clone() }.files();
        for (source, paths) in named.by_source {
            if let [one, other, ..] = &paths[..] {
                let (one, other) = (one.clone(), other.clone());
                let token = source.file().unwrap_or_default().to_owned();
                return Err(SourcesError::SameToken { one, other, token });
            }
        }
        let refused =
            named.problems.into_iter().find(|problem| problem.kind != ProblemKind::Missing);
        refused.map_or(Ok(()), |problem| Err(SourcesError::Refused(problem.to_string())))
    }
}

/// What a poll at the paths and globs has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The files that would be a source; more than one where their names differ too little.
    pub(super) by_source: BTreeMap<Source, Vec<PathBuf>>,
    /// What is not shipped, and why.
    pub(super) problems: Vec<Problem>,
}

impl Found {
    fn add(&mut self, host: &str, path: PathBuf, token: Option<String>) {
        match Source::new(host, token.as_deref()) {
            Ok(source) => {
                let paths = self.by_source.entry(source).or_default();
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
            Err(error) => {
                self.problems.push(Problem { path, kind: ProblemKind::Refused(error.to_string()) });
            }
        }
    }
}

/// Something that the user named and that is not shipped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    /// A path, or a glob.
    pub(super) path: PathBuf,
    pub(super) kind: ProblemKind,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ProblemKind {
    /// It is shipped when it turns up.
    Missing,
    /// Files are shipped when they turn up.
    NoMatch,
    /// It stays away until somebody does something about it.
    Refused(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match &self.kind {
            ProblemKind::Missing => {
                write!(
                    f,
                    "{path} does not exist; it is shipped when it does: is SHIPPER_FILE right"
                )
            }
            ProblemKind::NoMatch => {
                write!(
                    f,
                    "no file matches {path}; files are shipped when they do: is SHIPPER_FILE right"
                )
            }
            ProblemKind::Refused(reason) => write!(f, "{path} is not shipped: {reason}"),
        }
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
            && (crate::tail::is_rotated_name(&name_of(other), packed.unwrap_or(&name))
                || packed.is_some_and(|name| name == name_of(other)))
    })
}

/// The file's token: its path from the first part on that the pattern leaves open, so that
/// `*/app.log` keeps its files apart.
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
        sources.files().by_source.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn one_file_needs_no_token_and_may_not_exist_yet() {
        let sources = Sources::new("web1", &["/no/such/app.log".into()]).unwrap();
        assert_eq!(tokens(&sources), ["web1"]);
        assert_eq!(sources.files().problems[0].kind, ProblemKind::Missing);
        sources.check().unwrap();
        let glob = Sources::new("web1", &["/no/such/*.log".into()]).unwrap();
        assert_eq!(glob.files().problems[0].kind, ProblemKind::NoMatch);
    }

    #[test]
    fn a_glob_keeps_files_apart_and_leaves_rotated_ones_out() {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "a/app.log",
            "a/app.log.1",
            "a/app.log.2.gz",
            "a/app.log.gz",
            "b/app.log",
            "b/other.txt",
        ] {
            std::fs::create_dir_all(directory.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let glob = |pattern: &str| directory.path().join(pattern).display().to_string();
        let sources = Sources::new("web1", &[glob("*/app.log*")]).unwrap();
        assert_eq!(tokens(&sources), ["web1.a_app_log", "web1.b_app_log"]);
    }

    #[test]
    fn two_named_files_of_one_name_are_refused_and_of_a_glob_the_second_one() {
        let sources = Sources::new("web1", &["/a/app.log".into(), "/b/app.log".into()]).unwrap();
        assert!(sources.check().unwrap_err().to_string().contains("app_log"));
        let directory = tempfile::tempdir().unwrap();
        for name in ["ok.log", "ok_log", "other.log", "---"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let sources =
            Sources::new("web1", &[directory.path().join("*").display().to_string()]).unwrap();
        sources.check().unwrap();
        let found = sources.files();
        let counts: Vec<_> =
            found.by_source.iter().map(|(it, paths)| (it.to_string(), paths.len())).collect();
        assert_eq!(counts, [("web1.ok_log".into(), 2), ("web1.other_log".into(), 1)]);
        assert!(
            found.problems[0].to_string().contains("--- is not shipped"),
            "{:?}",
            found.problems
        );
    }
}
