//! Which route answers a request, and which of its versions: pure, built whole, never changed.

mod paths;
mod publish;
mod route;
mod selection;
mod split;

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;

use self::paths::{Entry, PathTable};
pub use self::paths::{Pattern, PatternError};
pub use self::publish::{
    NotListed, Publish, StatusPath, StatusPathError, SubjectTemplate, TemplateError, Token,
};
pub use self::route::{Codec, Methods, Retry, Route, RouteLimits, StreamLimits, Transport};
pub use self::selection::{Key, Rule, Selection};
pub use self::split::{Split, SplitError, Target};

/// All routes, ready to be looked up.
///
/// A request's host chooses up to three sets of paths, tried in this order: those of exactly that
/// host, those of the longest wildcard that holds it, those for any host. The first set with a path
/// that matches answers.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    exact: HashMap<String, PathTable>,
    /// By suffix with its leading dot (`.example.com`), longest first.
    wildcards: Vec<(String, PathTable)>,
    any_host: PathTable,
    /// The places in `routes`, by name.
    names: HashMap<String, usize>,
}

/// What a table says of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'t> {
    /// This route answers; the index is its place in [`RouteTable::routes`].
    Found(usize, &'t Arc<Route>),
    /// The path is known, not with this method; the methods that are, for `Allow`.
    MethodNotAllowed(Methods),
    /// No route.
    NotFound,
}

/// Why a set of routes is not a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Two routes have one name.
    #[error("route {0:?}: there are two routes of that name")]
    DuplicateName(String),
    /// Two routes answer the same requests.
    #[error("route {name:?}: {other:?} already answers {path} for the same host and methods")]
    Overlap {
        /// The later route.
        name: String,
        /// The earlier one.
        other: String,
        /// The pattern of the later one.
        path: String,
    },
    /// The pattern clashes with another one's parameters.
    #[error("route {name:?}: path {path}: {reason}")]
    Path {
        /// The route.
        name: String,
        /// Its pattern.
        path: String,
        /// What is wrong.
        reason: PatternError,
    },
}

impl TableError {
    /// The route that is to blame: the later one of a pair.
    pub fn route(&self) -> &str {
        match self {
            Self::DuplicateName(name) | Self::Overlap { name, .. } | Self::Path { name, .. } => {
                name
            }
        }
    }
}

impl RouteTable {
    /// Builds a table of routes.
    ///
    /// # Errors
    /// Every [`TableError`] that there is, not just the first.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<TableError>> {
        let mut table = Self::default();
        let mut errors = Vec::new();
        for route in routes {
            if table.names.contains_key(&route.name) {
                errors.push(TableError::DuplicateName(route.name));
                continue;
            }
            table.names.insert(route.name.clone(), table.routes.len());
            if let Err(error) = table.insert(Arc::new(route)) {
                errors.push(error);
            }
        }
        // The longest suffix is the most specific one.
        table.wildcards.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        if errors.is_empty() { Ok(table) } else { Err(errors) }
    }

    fn insert(&mut self, route: Arc<Route>) -> Result<(), TableError> {
        if route.internal {
            // Known by name, found by no path.
            self.routes.push(route);
            return Ok(());
        }
        let paths = match route.host.as_deref() {
            None => &mut self.any_host,
            Some(host) => match host.strip_prefix('*') {
                None => self.exact.entry(host.to_owned()).or_default(),
                Some(suffix) => wildcard_entry(&mut self.wildcards, suffix),
            },
        };
        let index = self.routes.len();
        paths.insert(&Entry { index, route: Arc::clone(&route) })?;
        if let Some(status) = route.publish.as_ref().and_then(|publish| publish.status.as_ref()) {
            paths.insert(&Entry { index, route: Arc::new(status.of_route(&route)) })?;
        }
        self.routes.push(route);
        Ok(())
    }

    /// The routes in the order in which they were given.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Finds a route by its name, also one that is internal; the index is its place in
    /// [`RouteTable::routes`].
    pub fn named(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Looks a request up. `host` is the authority's host without its port, in lower case; `path`
    /// is as the client sent it, percent-encoding and all.
    pub fn look_up(&self, host: &str, path: &str, method: &Method) -> Lookup<'_> {
        let exact = self.exact.get(host);
        let wildcard = self
            .wildcards
            .iter()
            .find(|(suffix, _)| in_wildcard(host, suffix))
            .map(|(_, paths)| paths);
        let mut allowed: Option<Methods> = None;
        for paths in [exact, wildcard, Some(&self.any_host)].into_iter().flatten() {
            let Some(entries) = paths.at(path) else { continue };
            if let Some(entry) = entries.iter().find(|entry| entry.route.methods.contains(method)) {
                return Lookup::Found(entry.index, &entry.route);
            }
            let here = entries
                .iter()
                .fold(Methods::default(), |all, entry| all.union(&entry.route.methods));
            allowed = Some(allowed.map_or(here.clone(), |others| others.union(&here)));
        }
        allowed.map_or(Lookup::NotFound, Lookup::MethodNotAllowed)
    }
}

fn wildcard_entry<'w>(
    wildcards: &'w mut Vec<(String, PathTable)>,
    suffix: &str,
) -> &'w mut PathTable {
    let at = wildcards.iter().position(|(other, _)| other == suffix).unwrap_or_else(|| {
        wildcards.push((suffix.to_owned(), PathTable::default()));
        wildcards.len() - 1
    });
    &mut wildcards[at].1
}

/// Whether `host` is one label or more in front of `suffix`, which starts with a dot.
fn in_wildcard(host: &str, suffix: &str) -> bool {
    host.len() > suffix.len() && host.ends_with(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, host: Option<&str>, path: &str, methods: &[&str]) -> Route {
        let mut route = Route::test(name, path);
        route.host = host.map(str::to_owned);
        route.methods = methods.iter().map(|method| method.parse().unwrap()).collect();
        route
    }

    fn found(table: &RouteTable, host: &str, path: &str, method: Method) -> String {
        match table.look_up(host, path, &method) {
            Lookup::Found(_, route) => route.name.clone(),
            Lookup::MethodNotAllowed(methods) => format!("allow {methods}"),
            Lookup::NotFound => "none".to_owned(),
        }
    }

    #[test]
    fn the_most_specific_host_and_path_answer() {
        let table = RouteTable::new(vec![
            route("any", None, "/{*rest}", &[]),
            route("user", None, "/users/{id}", &[]),
            route("me", None, "/users/me", &[]),
            route("sub", Some("*.example.com"), "/{*rest}", &[]),
            route("deep", Some("*.eu.example.com"), "/{*rest}", &[]),
            route("api", Some("api.example.com"), "/v1/{*rest}", &[]),
        ])
        .unwrap();
        for (host, path, expected) in [
            ("x", "/", "any"),
            ("x", "/a/b", "any"),
            ("x", "/users/7", "user"),
            ("x", "/users/me", "me"),
            ("x", "/users/7/edit", "any"),
            ("www.example.com", "/", "sub"),
            ("a.eu.example.com", "/", "deep"),
            ("example.com", "/", "any"),
            ("api.example.com", "/v1/", "api"),
            ("api.example.com", "/v1/x", "api"),
            // Falls through to the wildcard, because the exact host knows no such path.
            ("api.example.com", "/v2", "sub"),
        ] {
            assert_eq!(found(&table, host, path, Method::GET), expected, "{host}{path}");
        }
    }

    #[test]
    fn a_tail_holds_its_own_directory_but_not_the_name_without_its_slash() {
        let table = RouteTable::new(vec![route("files", None, "/files/{*rest}", &[])]).unwrap();
        assert_eq!(found(&table, "x", "/files/", Method::GET), "files");
        assert_eq!(found(&table, "x", "/files/a/b", Method::GET), "files");
        assert_eq!(found(&table, "x", "/files", Method::GET), "none");
    }

    #[test]
    fn methods_share_a_path_and_the_others_are_told_which() {
        let table = RouteTable::new(vec![
            route("read", None, "/x", &["GET"]),
            route("write", None, "/x", &["POST", "PUT"]),
        ])
        .unwrap();
        assert_eq!(found(&table, "h", "/x", Method::GET), "read");
        assert_eq!(found(&table, "h", "/x", Method::HEAD), "read", "HEAD goes where GET goes");
        assert_eq!(found(&table, "h", "/x", Method::PUT), "write");
        assert_eq!(found(&table, "h", "/x", Method::DELETE), "allow GET, HEAD, POST, PUT");
    }

    /// A route that keeps results.
    fn enqueue(name: &str, path: &str, status_path: &str) -> Route {
        let mut route = route(name, None, path, &["POST"]);
        let subject = SubjectTemplate::new(vec![Token::Literal("jobs".to_owned())]).unwrap();
        let status = Some(status_path.parse().unwrap());
        let ack_timeout = std::time::Duration::from_secs(5);
        route.publish = Some(Publish { subject, expect_stream: None, ack_timeout, status });
        route
    }

    #[test]
    fn a_status_path_leads_to_its_route_by_get_and_head_alone() {
        let table = RouteTable::new(vec![
            enqueue("jobs", "/jobs", "/jobs/{id}"),
            route("other", None, "/jobs/{id}", &["DELETE"]),
        ])
        .unwrap();
        for (path, method, expected) in [
            ("/jobs", Method::POST, "jobs"),
            ("/jobs/0a", Method::GET, "jobs"),
            ("/jobs/0a", Method::HEAD, "jobs"),
            ("/jobs/0a", Method::DELETE, "other"),
            ("/jobs", Method::GET, "allow POST"),
            ("/jobs/0a", Method::POST, "allow GET, HEAD, DELETE"),
        ] {
            assert_eq!(found(&table, "h", path, method.clone()), expected, "{method} {path}");
        }
        assert_eq!(table.routes().len(), 2);
        let Lookup::Found(index, _) = table.look_up("h", "/jobs/0a", &Method::GET) else {
            panic!("it is found")
        };
        assert_eq!(table.routes()[index].path.as_str(), "/jobs", "the route is the same");
    }

    #[test]
    fn two_routes_cannot_have_one_status_path() {
        let clashing = vec![enqueue("a", "/a", "/status/{id}"), enqueue("b", "/b", "/status/{x}")];
        let errors = RouteTable::new(clashing).unwrap_err();
        assert!(errors.len() == 1 && errors[0].route() == "b", "{errors:?}");
    }

    #[test]
    fn every_clash_is_reported() {
        let errors = RouteTable::new(vec![
            route("a", None, "/x", &["GET"]),
            route("a", None, "/y", &[]),
            route("b", None, "/x", &["GET"]),
            route("c", None, "/x/{id}", &[]),
            route("d", None, "/x/{name}", &["POST"]),
        ])
        .unwrap_err();
        let text: Vec<String> = errors.iter().map(TableError::to_string).collect();
        assert_eq!(text.len(), 3, "{text:#?}");
        assert!(text[0].contains("two routes of that name"), "{text:#?}");
        assert!(text[1].contains("already answers"), "{text:#?}");
        assert!(text[2].contains("\"d\""), "{text:#?}");
    }
}
