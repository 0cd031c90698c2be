//! Path patterns: `/users/{id}`, `/files/{*rest}`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Route, TableError};

/// A path pattern that was checked: literal segments, `{name}` for one segment or a part of it,
/// `{*name}` at the end for everything behind a slash, nothing included.
///
/// Paths are compared as clients send them: nothing is decoded or normalised, so `/a%2Fb` has one
/// segment.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    /// Finds the parameters in a path.
    matcher: Arc<matchit::Router<Parameters>>,
}

/// What is written at a path: the pattern, or the directory of its tail.
#[derive(Clone, Copy)]
enum Parameters {
    Said,
    /// The tail is empty.
    WithoutTail,
}

/// Why something is not a path pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// Paths begin with a slash.
    #[error("must begin with a slash")]
    NoSlash,
    /// A pattern is matched against a path alone.
    #[error("must not have a query or a fragment")]
    NotAPath,
    /// Braces are wrong, or a tail stands elsewhere than at the end behind a slash.
    #[error("{0} (write {{name}} for a segment, {{*name}} at the end for all that follows)")]
    Syntax(String),
    /// Another pattern is the same but for the names of its parameters.
    #[error("clashes with {0}")]
    Clash(String),
}

impl Pattern {
    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the parameters of a path with their names, percent-encoded as they came. Of a path
    /// that does not match there are none.
    pub fn parameters(&self, path: &str) -> Vec<(String, String)> {
        let Ok(found) = self.matcher.at(path) else { return Vec::new() };
        let said = found.params.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut said: Vec<_> = said.collect();
        if let (Parameters::WithoutTail, Some(tail)) = (found.value, self.tail_name()) {
            said.push((tail.to_owned(), String::new()));
        }
        said
    }

    /// Returns the names of its parameters.
    pub fn parameter_names(&self) -> impl Iterator<Item = &str> {
        let inside = self.text.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
        inside.map(|name| name.trim_start_matches('*'))
    }

    fn tail_name(&self) -> Option<&str> {
        self.text.rsplit_once("{*")?.1.strip_suffix('}')
    }

    /// The directory of a tail pattern, which the tail holds as well: `/files/` for
    /// `/files/{*rest}`.
    fn tail_directory(&self) -> Option<&str> {
        self.text.rfind("/{*").map(|slash| &self.text[..=slash])
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if !text.starts_with('/') {
            return Err(PatternError::NoSlash);
        }
        if text.contains(['?', '#']) {
            return Err(PatternError::NotAPath);
        }
        let mut matcher = matchit::Router::new();
        matcher.insert(text, Parameters::Said).map_err(syntax)?;
        if text.contains("{*") && !text.contains("/{*") {
            return Err(PatternError::Syntax("a tail must follow a slash".to_owned()));
        }
        let mut pattern = Self { text: text.to_owned(), matcher: Arc::default() };
        if let Some(directory) = pattern.tail_directory() {
            matcher.insert(directory, Parameters::WithoutTail).map_err(syntax)?;
        }
        pattern.matcher = Arc::new(matcher);
        Ok(pattern)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

fn syntax(error: matchit::InsertError) -> PatternError {
    match error {
        matchit::InsertError::Conflict { with } => PatternError::Clash(with),
        other => PatternError::Syntax(other.to_string()),
    }
}

/// A route and its place in the table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) index: usize,
    pub(super) route: Arc<Route>,
}

/// The patterns of one host, each with its routes.
#[derive(Default)]
pub(super) struct PathTable {
    router: matchit::Router<Vec<Entry>>,
}

impl PathTable {
    pub(super) fn insert(&mut self, entry: &Entry) -> Result<(), TableError> {
        let pattern = &entry.route.path;
        self.insert_at(pattern.as_str(), entry)?;
        // matchit's tail wants one character at least.
        match pattern.tail_directory() {
            Some(directory) => self.insert_at(directory, entry),
            None => Ok(()),
        }
    }

    fn insert_at(&mut self, path: &str, entry: &Entry) -> Result<(), TableError> {
        let route = &entry.route;
        // A pattern matches itself literally, so this finds the entries of the same pattern, or of
        // a wider one.
        if let Ok(found) = self.router.at_mut(path)
            && found.value.iter().any(|other| is_written_at(&other.route, path))
        {
            if let Some(other) =
                found.value.iter().find(|other| other.route.methods.overlaps(&route.methods))
            {
                let (name, other) = (route.name.clone(), other.route.name.clone());
                return Err(TableError::Overlap { name, other, path: path.to_owned() });
            }
            found.value.push(entry.clone());
            return Ok(());
        }
        self.router.insert(path, vec![entry.clone()]).map_err(|error| TableError::Path {
            name: route.name.clone(),
            path: path.to_owned(),
            reason: syntax(error),
        })
    }

    /// The routes of the pattern that matches best.
    pub(super) fn at(&self, path: &str) -> Option<&[Entry]> {
        self.router.at(path).ok().map(|found| found.value.as_slice())
    }
}

fn is_written_at(route: &Route, path: &str) -> bool {
    route.path.as_str() == path || route.path.tail_directory() == Some(path)
}

impl fmt::Debug for PathTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PathTable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_path_as_it_came() {
        for (pattern, path, expected) in [
            ("/users/{id}", "/users/7%2F8", &[("id", "7%2F8")][..]),
            ("/a/{x}/b/{*rest}", "/a/1/b/c/d", &[("x", "1"), ("rest", "c/d")]),
            ("/a/{x}/b/{*rest}", "/a/1/b/", &[("x", "1"), ("rest", "")]),
            ("/{*all}", "/", &[("all", "")]),
            ("/plain", "/plain", &[]),
            ("/users/{id}", "/other", &[]),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let expected: Vec<_> = expected.iter().map(owned).collect();
            assert_eq!(parsed.parameters(path), expected, "{pattern} {path}");
            if !expected.is_empty() {
                let names = expected.iter().map(|(name, _)| name.as_str());
                assert!(parsed.parameter_names().eq(names), "{pattern}");
            }
        }
    }

    #[test]
    fn patterns_are_checked_one_by_one() {
        for good in ["/", "/a/b", "/users/{id}", "/{*all}", "/a/{id}/b/{*rest}", "/a%20b"] {
            assert!(good.parse::<Pattern>().is_ok(), "{good}");
        }
        for bad in ["", "a", "/a?b", "/a#b", "/{", "/{}", "/{*}", "/{*a}/b", "/x{*a}", "/{a}{b}"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
