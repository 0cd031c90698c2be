//! A route as operators write it: the same fields in a TOML file and in a JSON document of the
//! routes bucket. Read strictly, checked whole, every fault named.

use std::fmt;
use std::time::Duration;

use http::{HeaderName, Method};
use natsway_wire::{QueueGroup, Subject};
use serde::{Deserialize, Serialize, Serializer};

use crate::rollout::Rollout;
use crate::table::{
    Codec, Key, Methods, Pattern, Retry, Route, RouteLimits, Rule, Selection, Split, Target,
};

/// The version of the document that this gateway writes, and the newest that it reads.
pub const SCHEMA: u32 = 1;

/// What a route has where it says nothing else.
mod default {
    use std::time::Duration;

    /// Long enough for slow work, short enough that a client still waits.
    pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
    /// Two more tries fit into the default time-out.
    pub(super) const TRY_TIMEOUT: Duration = Duration::from_secs(10);
    /// Above this a message would hold up the small ones behind it: bulk does not belong on the
    /// broker.
    pub(super) const BODY_BYTES: usize = 64 * 1024;
    /// With the growing delays between them, about as many as fit into the window.
    pub(super) const RETRIES: u32 = 16;
    /// As long as a deploy leaves a gap at worst; clients of a dead service hear of it after this.
    pub(super) const RETRY_WINDOW: Duration = Duration::from_secs(2);
}

/// The longest time that a route may give a request.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// One route.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouteDocument {
    /// The version of the document, 1; a later one is refused.
    #[serde(default = "schema")]
    pub schema: u32,
    /// Unique; the key in the bucket, a label in metrics.
    pub name: String,
    /// `example.com`, or `*.example.com` for all below it; any host without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// `/users/{id}`, `/files/{*rest}`; compared as the client sent it.
    path: String,
    /// Those that it answers, all without; others get 405 with `Allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    methods: Vec<String>,
    /// Taken off the path before a worker sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strip_prefix: Option<String>,
    /// `http` for Natsway workers, `native` for any NATS client.
    #[serde(default)]
    codec: CodecName,
    /// Never answered on the public listener.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    internal: bool,
    /// In all, from the request's head: 504 after it.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    timeout: Option<Duration>,
    /// One worker's; then an idempotent request is tried elsewhere.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    try_timeout: Option<Duration>,
    /// 413 above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_body_bytes: Option<usize>,
    /// Further tries at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    /// Within which they begin.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    retry_window: Option<Duration>,
    /// A client that goes away cancels the work at its worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cancel: Option<bool>,
    /// Its versions.
    #[serde(default, rename = "target")]
    targets: Vec<TargetDocument>,
    /// Who gets a version whatever its weight; the first that fits counts.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleDocument>,
    /// What keeps a client with one version, as far as the weights allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sticky: Option<KeyDocument>,
    /// The change of version that is under way, or was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// What a route may tune, and what `[defaults]` of a file sets for all of its routes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// As in a route.
    #[serde(default, with = "humantime_serde::option")]
    timeout: Option<Duration>,
    /// As in a route.
    #[serde(default, with = "humantime_serde::option")]
    try_timeout: Option<Duration>,
    /// As in a route.
    max_body_bytes: Option<usize>,
    /// As in a route.
    retries: Option<u32>,
    /// As in a route.
    #[serde(default, with = "humantime_serde::option")]
    retry_window: Option<Duration>,
    /// As in a route.
    cancel: Option<bool>,
}

/// A version of the service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct TargetDocument {
    /// Its name; a label in metrics.
    version: String,
    /// Where its workers listen, say `svc.math.blue`.
    subject: String,
    /// Their queue group; `q` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue_group: Option<String>,
    /// Its share of the requests, beside the others' weights; 0 gets nothing. Without, 100 in a new
    /// route; `apiproxy routes` gives a version that is added to a route 0, and leaves those that
    /// are there as they are.
    #[serde(default, serialize_with = "said_weight")]
    weight: Option<u32>,
}

impl TargetDocument {
    fn weight(&self) -> u32 {
        self.weight.unwrap_or(WHOLE_WEIGHT)
    }
}

/// `header` or `cookie`, a value (any, when there is none), and the version that it chooses.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct RuleDocument {
    /// Name of a header field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    /// Name of a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cookie: Option<String>,
    /// Its value; any without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// The version that it gets.
    version: String,
}

/// One of `header = "name"`, `cookie = "name"`, `client = true`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyDocument {
    /// Name of a header field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    /// Name of a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cookie: Option<String>,
    /// The client's address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    client: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CodecName {
    #[default]
    Http,
    Native,
}

fn schema() -> u32 {
    SCHEMA
}

/// What a version of a new route has that does not say its weight.
const WHOLE_WEIGHT: u32 = 100;

/// A document that is written says every weight, so that readers need not know what is meant
/// without.
fn said_weight<S: Serializer>(weight: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(weight.unwrap_or(WHOLE_WEIGHT))
}

/// Everything that is wrong with a document or a file, one fault a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Faults {}

impl RouteDocument {
    /// Reads a document of the bucket.
    ///
    /// # Errors
    /// It is no JSON document of a route, or has unknown members.
    pub fn from_json(bytes: &[u8]) -> Result<RouteDocument, Faults> {
        serde_json::from_slice(bytes).map_err(|error| Faults(vec![error.to_string()]))
    }

    /// The document as it is kept in the bucket.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a route's document is plain values")
    }

    /// Takes what it does not say itself from a file's defaults, so that it stands alone.
    pub fn fill_in(&mut self, defaults: &Tuning) {
        self.timeout = self.timeout.or(defaults.timeout);
        self.try_timeout = self.try_timeout.or(defaults.try_timeout);
        self.max_body_bytes = self.max_body_bytes.or(defaults.max_body_bytes);
        self.retries = self.retries.or(defaults.retries);
        self.retry_window = self.retry_window.or(defaults.retry_window);
        self.cancel = self.cancel.or(defaults.cancel);
    }

    /// Its versions and their weights.
    pub fn weights(&self) -> impl Iterator<Item = (&str, u32)> {
        self.targets.iter().map(|target| (target.version.as_str(), target.weight()))
    }

    /// Fills in the weights that it does not say, beside the document that it takes the place of: a
    /// version that is there keeps its own, one that is added gets nothing yet, so that a rollout
    /// moves the traffic. Gives those that are added.
    pub fn fill_in_weights(&mut self, stored: Option<&RouteDocument>) -> Vec<String> {
        let mut added = Vec::new();
        for target in self.targets.iter_mut().filter(|target| target.weight.is_none()) {
            let known = stored
                .map(|stored| stored.weights().find(|(version, _)| *version == target.version));
            target.weight = match known {
                None => Some(WHOLE_WEIGHT),
                Some(Some((_, weight))) => Some(weight),
                Some(None) => {
                    added.push(target.version.clone());
                    Some(0)
                }
            };
        }
        added
    }

    /// Takes the weights of the versions that another document has as well.
    pub fn take_weights(&mut self, other: &RouteDocument) {
        for (version, weight) in other.weights() {
            self.set_weight(version, weight);
        }
    }

    /// Gives the weight to the version, if it is one.
    pub fn set_weight(&mut self, version: &str, weight: u32) {
        for target in self.targets.iter_mut().filter(|target| target.version == version) {
            target.weight = Some(weight);
        }
    }

    /// Whether a rule sends requests to the version whatever its weight.
    pub fn has_rule_for(&self, version: &str) -> bool {
        self.rules.iter().any(|rule| rule.version == version)
    }

    /// Checks the document and makes the route of it. `subject_prefix`, when set, must hold every
    /// subject.
    ///
    /// # Errors
    /// Every fault, each naming the route, the key, the value and what was expected.
    pub fn check(&self, subject_prefix: Option<&str>) -> Result<Route, Faults> {
        let mut check = Check { route: &self.name, found: Vec::new() };
        let route = self.route(subject_prefix, &mut check);
        match route {
            Some(route) if check.found.is_empty() => Ok(route),
            _ => Err(Faults(check.found)),
        }
    }

    fn route(&self, subject_prefix: Option<&str>, check: &mut Check<'_>) -> Option<Route> {
        if self.schema != SCHEMA {
            check.add(
                "schema",
                self.schema,
                format_args!("expected {SCHEMA}: a newer gateway wrote this"),
            );
        }
        check.name("name", &self.name);
        let host = self.host.as_deref().map(|host| check.host(host));
        let path: Option<Pattern> = check.parse("path", &self.path);
        let methods = check.methods(&self.methods);
        let strip_prefix = self.strip_prefix.as_deref().map(|prefix| check.prefix(prefix));
        let timeout = check.bounded("timeout", self.timeout.unwrap_or(default::TIMEOUT));
        let try_timeout =
            check.bounded("try_timeout", self.try_timeout.unwrap_or(default::TRY_TIMEOUT));
        let split = check.targets(&self.targets, subject_prefix)?;
        let selection = check.selection(&self.rules, self.sticky.as_ref(), &split);
        if let Some(rollout) = &self.rollout {
            let is_version = |name: &str| self.targets.iter().any(|target| target.version == name);
            for (key, value, expected) in rollout.faults(is_version) {
                check.add(key, value, expected);
            }
        }
        Some(Route {
            name: self.name.clone(),
            host,
            path: path?,
            methods,
            strip_prefix,
            split,
            selection,
            internal: self.internal,
            codec: match self.codec {
                CodecName::Http => Codec::Http,
                CodecName::Native => Codec::Native,
            },
            timeout,
            try_timeout: try_timeout.min(timeout),
            cancel: self.cancel.unwrap_or(true),
            limits: RouteLimits { body_bytes: self.max_body_bytes.unwrap_or(default::BODY_BYTES) },
            retry: Retry {
                most: self.retries.unwrap_or(default::RETRIES),
                window: self.retry_window.unwrap_or(default::RETRY_WINDOW),
            },
        })
    }
}

/// The faults of one route, as they are found.
struct Check<'n> {
    route: &'n str,
    found: Vec<String>,
}

impl Check<'_> {
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
            self.add(
                key,
                humantime_serde::re::humantime::format_duration(value),
                "expected 1ms to 1h",
            );
        }
        value
    }

    /// Names become metric labels and keys of the bucket: letters, digits, `-` and `_`.
    fn name(&mut self, key: &str, name: &str) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            self.add(key, format_args!("{name:?}"), "expected 1 to 64 letters, digits, `-` or `_`");
        }
    }

    fn host(&mut self, host: &str) -> String {
        let host = host.to_ascii_lowercase();
        let literal = host.strip_prefix("*.").unwrap_or(&host);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let is_address = literal.parse::<std::net::Ipv6Addr>().is_ok();
        let is_name = !literal.split('.').any(str::is_empty) && literal.bytes().all(plain);
        if !is_address && !is_name {
            self.add(
                "host",
                format_args!("{host:?}"),
                "expected a host name or `*.` before one, without a port",
            );
        }
        host
    }

    fn methods(&mut self, names: &[String]) -> Methods {
        let mut parse = |name: &String| {
            let method = Method::from_bytes(name.as_bytes())
                .ok()
                .filter(|method| *method != Method::CONNECT);
            if method.is_none() || name.bytes().any(|byte| byte.is_ascii_lowercase()) {
                self.add(
                    "methods",
                    format_args!("{name:?}"),
                    "expected a method in capitals, not CONNECT",
                );
            }
            method
        };
        names.iter().filter_map(&mut parse).collect()
    }

    fn prefix(&mut self, prefix: &str) -> String {
        if !prefix.starts_with('/') || prefix.ends_with('/') {
            let expected = "expected a path that begins with a slash and does not end with one";
            self.add("strip_prefix", format_args!("{prefix:?}"), expected);
        }
        prefix.to_owned()
    }

    fn targets(
        &mut self,
        documents: &[TargetDocument],
        subject_prefix: Option<&str>,
    ) -> Option<Split> {
        let faults_before = self.found.len();
        let mut targets = Vec::new();
        for document in documents {
            self.name("version", &document.version);
            let subject: Option<Subject> = self.parse("subject", &document.subject);
            let queue_group = match &document.queue_group {
                None => Some(QueueGroup::default()),
                Some(name) => self.parse("queue_group", name),
            };
            if let (Some(prefix), Some(subject)) = (subject_prefix, &subject)
                && !subject.is_below(prefix)
            {
                let subject = subject.as_str();
                self.add(
                    "subject",
                    format_args!("{subject:?}"),
                    format_args!("expected one below {prefix:?}"),
                );
            }
            if let (Some(subject), Some(queue_group)) = (subject, queue_group) {
                let (version, weight) = (document.version.clone(), document.weight());
                targets.push(Target { version, subject, queue_group, weight });
            }
        }
        if targets.is_empty() && self.found.len() > faults_before {
            return None;
        }
        Split::new(targets).map_err(|error| self.add("target", "[..]", error)).ok()
    }

    fn selection(
        &mut self,
        rules: &[RuleDocument],
        sticky: Option<&KeyDocument>,
        split: &Split,
    ) -> Selection {
        let mut checked = Vec::new();
        for rule in rules {
            let key = self.key("rule", rule.header.as_deref(), rule.cookie.as_deref(), false);
            let target = split.targets().iter().position(|target| target.version == rule.version);
            if target.is_none() {
                self.add(
                    "rule",
                    format_args!("{:?}", rule.version),
                    "expected a version of this route",
                );
            }
            if let (Some(key), Some(target)) = (key, target) {
                checked.push(Rule { key, value: rule.value.clone(), target });
            }
        }
        let sticky = sticky.and_then(|key| {
            self.key("sticky", key.header.as_deref(), key.cookie.as_deref(), key.client)
        });
        Selection { rules: checked, sticky }
    }

    /// Exactly one of the three.
    fn key(
        &mut self,
        what: &str,
        header: Option<&str>,
        cookie: Option<&str>,
        client: bool,
    ) -> Option<Key> {
        match (header, cookie, client) {
            (Some(header), None, false) => self.parse::<HeaderName>(what, header).map(Key::Header),
            (None, Some(cookie), false) => Some(Key::Cookie(cookie.to_owned())),
            (None, None, true) => Some(Key::Client),
            _ => {
                self.add(
                    what,
                    "{..}",
                    "expected exactly one of header, cookie and (sticky only) client",
                );
                None
            }
        }
    }
}
