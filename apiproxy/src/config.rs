//! The route file: TOML, read strictly, refused whole with every reason at once.
//!
//! ```toml
//! [defaults]
//! timeout = "30s"
//!
//! [[route]]
//! name = "math"
//! path = "/math/{*rest}"
//! strip_prefix = "/math"
//!
//! [[route.target]]
//! version = "blue"
//! subject = "svc.math.blue"
//! weight = 100
//! ```

use std::fmt;
use std::time::Duration;

use http::Method;
use natsway_wire::{QueueGroup, Subject};
use serde::{Deserialize, Deserializer};

use crate::table::{Codec, Methods, Pattern, Retry, Route, RouteLimits, RouteTable, Split, Target};

/// What a route has where it says nothing else.
mod default {
    use std::time::Duration;

    /// Long enough for slow work, short enough that a client still waits.
    pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
    /// Two more tries fit into the default time-out.
    pub(super) const TRY_TIMEOUT: Duration = Duration::from_secs(10);
    /// Above this a message would hold up the small ones behind it: bulk does not belong on the broker.
    pub(super) const BODY_BYTES: usize = 64 * 1024;
    /// With the growing delays between them, about as many as fit into the window.
    pub(super) const RETRIES: u32 = 16;
    /// As long as a deploy leaves a gap at worst; clients of a dead service hear of it after this.
    pub(super) const RETRY_WINDOW: Duration = Duration::from_secs(2);
}

/// The longest time that a route may give a request.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// A route file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDocument {
    /// When set, every target's subject must lie below it, so that permissions can be static.
    subject_prefix: Option<String>,
    #[serde(default)]
    defaults: Tuning,
    #[serde(default, rename = "route")]
    routes: Vec<RouteDocument>,
}

/// What a route may tune, and what `[defaults]` sets for all of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuning {
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    try_timeout: Option<Duration>,
    max_body_bytes: Option<usize>,
    retries: Option<u32>,
    #[serde(default, deserialize_with = "duration")]
    retry_window: Option<Duration>,
    cancel: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteDocument {
    name: String,
    host: Option<String>,
    path: String,
    #[serde(default)]
    methods: Vec<String>,
    strip_prefix: Option<String>,
    #[serde(default)]
    codec: CodecName,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    try_timeout: Option<Duration>,
    max_body_bytes: Option<usize>,
    retries: Option<u32>,
    #[serde(default, deserialize_with = "duration")]
    retry_window: Option<Duration>,
    cancel: Option<bool>,
    #[serde(default, rename = "target")]
    targets: Vec<TargetDocument>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetDocument {
    version: String,
    subject: String,
    #[serde(default)]
    queue_group: Option<String>,
    #[serde(default = "whole_weight")]
    weight: u32,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CodecName {
    #[default]
    Http,
    Native,
}

fn whole_weight() -> u32 {
    100
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    humantime_serde::deserialize(deserializer)
}

/// Everything that is wrong with a route file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads a route file's text.
///
/// # Errors
/// Every fault that there is, one a line, each naming the route, the key, the value and what was expected.
pub fn read_routes(text: &str) -> Result<RouteTable, ConfigErrors> {
    let document: FileDocument =
        toml::from_str(text).map_err(|error| ConfigErrors(vec![error.to_string().trim_end().to_owned()]))?;
    let mut errors = Vec::new();
    let mut routes = Vec::new();
    for route in document.routes {
        let mut faults = Faults { route: route.name.clone(), found: Vec::new() };
        let checked = check_route(route, &document.defaults, document.subject_prefix.as_deref(), &mut faults);
        errors.append(&mut faults.found);
        routes.extend(checked);
    }
    if routes.is_empty() && errors.is_empty() {
        errors.push("no [[route]]: a gateway without routes answers nothing".to_owned());
    }
    let table = RouteTable::new(routes);
    match table {
        Ok(table) if errors.is_empty() => Ok(table),
        Ok(_) => Err(ConfigErrors(errors)),
        Err(clashes) => {
            errors.extend(clashes.iter().map(ToString::to_string));
            Err(ConfigErrors(errors))
        }
    }
}

/// The faults of one route.
struct Faults {
    route: String,
    found: Vec<String>,
}

impl Faults {
    fn add(&mut self, key: &str, value: impl fmt::Display, expected: impl fmt::Display) {
        self.found.push(format!("route {:?}: {key}={value}: {expected}", self.route));
    }

    /// Parses a value, or notes why it is none.
    fn parse<T>(&mut self, key: &str, value: &str) -> Option<T>
    where
        T: std::str::FromStr<Err: fmt::Display>,
    {
        value.parse().map_err(|error| self.add(key, format_args!("{value:?}"), error)).ok()
    }

    /// A duration within its bounds.
    fn bounded(&mut self, key: &str, value: Duration) -> Duration {
        if value.is_zero() || value > LONGEST_TIMEOUT {
            self.add(key, humantime_serde::re::humantime::format_duration(value), "expected 1ms to 1h");
        }
        value
    }
}

/// A route of its document, or `None` with its faults noted.
fn check_route(
    document: RouteDocument,
    defaults: &Tuning,
    subject_prefix: Option<&str>,
    faults: &mut Faults,
) -> Option<Route> {
    let name = check_name("name", document.name, faults);
    let host = document.host.map(|host| check_host(host, faults));
    let path: Option<Pattern> = faults.parse("path", &document.path);
    let methods = check_methods(&document.methods, faults);
    let strip_prefix = document.strip_prefix.map(|prefix| check_prefix(prefix, faults));
    let timeout = document.timeout.or(defaults.timeout).unwrap_or(default::TIMEOUT);
    let timeout = faults.bounded("timeout", timeout);
    let try_timeout = document.try_timeout.or(defaults.try_timeout).unwrap_or(default::TRY_TIMEOUT);
    let try_timeout = faults.bounded("try_timeout", try_timeout).min(timeout);
    let window = document.retry_window.or(defaults.retry_window).unwrap_or(default::RETRY_WINDOW);
    let body_bytes = document.max_body_bytes.or(defaults.max_body_bytes).unwrap_or(default::BODY_BYTES);
    let split = check_targets(document.targets, subject_prefix, faults);
    Some(Route {
        name,
        host,
        path: path?,
        methods,
        strip_prefix,
        split: split?,
        codec: match document.codec {
            CodecName::Http => Codec::Http,
            CodecName::Native => Codec::Native,
        },
        timeout,
        try_timeout,
        cancel: document.cancel.or(defaults.cancel).unwrap_or(true),
        limits: RouteLimits { body_bytes },
        retry: Retry { most: document.retries.or(defaults.retries).unwrap_or(default::RETRIES), window },
    })
}

/// Names become metric labels and, later, keys: letters, digits, `-` and `_`.
fn check_name(key: &str, name: String, faults: &mut Faults) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        faults.add(key, format_args!("{name:?}"), "expected 1 to 64 letters, digits, `-` or `_`");
    }
    name
}

fn check_host(host: String, faults: &mut Faults) -> String {
    let host = host.to_ascii_lowercase();
    let literal = host.strip_prefix("*.").unwrap_or(&host);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_address = literal.parse::<std::net::Ipv6Addr>().is_ok();
    let is_name = !literal.split('.').any(str::is_empty) && literal.bytes().all(plain);
    if !is_address && !is_name {
        faults.add(
            "host",
            format_args!("{host:?}"),
            "expected a host name or `*.` before one, without a port",
        );
    }
    host
}

fn check_methods(names: &[String], faults: &mut Faults) -> Methods {
    let mut parse = |name: &String| {
        let method = Method::from_bytes(name.as_bytes()).ok().filter(|method| *method != Method::CONNECT);
        if method.is_none() || name.bytes().any(|byte| byte.is_ascii_lowercase()) {
            faults.add("methods", format_args!("{name:?}"), "expected a method in capitals, not CONNECT");
        }
        method
    };
    names.iter().filter_map(&mut parse).collect()
}

fn check_prefix(prefix: String, faults: &mut Faults) -> String {
    if !prefix.starts_with('/') || prefix.ends_with('/') {
        let expected = "expected a path that begins with a slash and does not end with one";
        faults.add("strip_prefix", format_args!("{prefix:?}"), expected);
    }
    prefix
}

fn check_targets(
    documents: Vec<TargetDocument>,
    subject_prefix: Option<&str>,
    faults: &mut Faults,
) -> Option<Split> {
    let mut targets = Vec::new();
    for document in documents {
        let version = check_name("version", document.version, faults);
        let subject: Option<Subject> = faults.parse("subject", &document.subject);
        let queue_group = match &document.queue_group {
            None => Some(QueueGroup::default()),
            Some(name) => faults.parse("queue_group", name),
        };
        if let (Some(prefix), Some(subject)) = (subject_prefix, &subject)
            && !subject.is_below(prefix)
        {
            faults.add("subject", format_args!("{subject:?}"), format_args!("expected one below {prefix:?}"));
        }
        if let (Some(subject), Some(queue_group)) = (subject, queue_group) {
            targets.push(Target { version, subject, queue_group, weight: document.weight });
        }
    }
    if !faults.found.is_empty() && targets.is_empty() {
        return None;
    }
    Split::new(targets).map_err(|error| faults.add("target", "[..]", error)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        read_routes(text).unwrap_err().to_string()
    }

    #[test]
    fn the_demo_file_is_a_table() {
        let table = read_routes(include_str!("../routes.demo.toml")).unwrap();
        assert!(table.routes().iter().any(|route| route.name == "demo"));
    }

    #[test]
    fn defaults_reach_the_routes_that_say_nothing() {
        let table = read_routes(
            r#"
            defaults = { timeout = "5s", max_body_bytes = 10 }
            [[route]]
            name = "a"
            path = "/a"
            target = [{ version = "v1", subject = "svc.a.v1" }]
            [[route]]
            name = "b"
            path = "/b"
            timeout = "1m"
            target = [{ version = "v1", subject = "svc.b.v1", weight = 0 }]
            "#,
        )
        .unwrap();
        let [a, b] = table.routes() else { panic!("two routes") };
        assert_eq!(
            (a.timeout, a.try_timeout, a.limits.body_bytes),
            (Duration::from_secs(5), Duration::from_secs(5), 10)
        );
        assert_eq!((b.timeout, b.try_timeout), (Duration::from_secs(60), Duration::from_secs(10)));
        assert_eq!(b.split.pick(0), None);
    }

    #[test]
    fn every_fault_is_named_with_its_route_key_and_expectation() {
        let text = faults(
            r#"
            subject_prefix = "svc"
            [[route]]
            name = "bad name"
            path = "nope"
            host = "a:80"
            methods = ["get"]
            strip_prefix = "/x/"
            timeout = "0s"
            target = [
                { version = "v1", subject = "svc.*" },
                { version = "v2", subject = "other.x" },
                { version = "v3", subject = "svc.x", weight = 2000000 },
            ]
            "#,
        );
        for expected in [
            "name=\"bad name\"",
            "path=\"nope\"",
            "host=\"a:80\"",
            "methods=\"get\"",
            "strip_prefix=\"/x/\"",
            "timeout=0s",
            "subject=\"svc.*\"",
            "one below \"svc\"",
            "expected 0..=1000000",
        ] {
            assert!(text.contains(expected), "{expected} is not in:\n{text}");
        }
    }

    #[test]
    fn unknown_keys_and_empty_files_are_refused() {
        assert!(faults("rout = []").contains("unknown field `rout`"));
        assert!(faults("").contains("no [[route]]"));
        let empty = "[[route]]\nname = \"a\"\npath = \"/a\"";
        assert!(faults(empty).contains("needs one target"));
    }
}
