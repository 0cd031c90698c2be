//! The values of a route's document, each checked, and each fault named with the route, the key,
//! the value and what was expected.

use std::fmt;
use std::time::Duration;

use http::{HeaderName, Method, Uri};
use humantime_serde::re::humantime::format_duration;
use natsway_args::WebSocket;
use natsway_wire::{QueueGroup, Subject};

use super::{KeyDocument, MOST_INLINE_BODY_BYTES, RuleDocument, SCHEMA, TargetDocument};
use crate::table::{Key, Methods, Pattern, Rule, Selection, Split, Target};

/// The longest time that a route may give a request.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The shortest time that a stream may be given, idle or in all: below it, a lost packet that is
/// sent again would end one.
const SHORTEST_STREAM: Duration = Duration::from_secs(1);

/// The longest silence that a route may allow a stream: whoever says nothing for longer is gone.
const LONGEST_IDLE: Duration = Duration::from_secs(24 * 3_600);

/// The greatest age that a route may set; it has none when it sets none.
const LONGEST_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The most header fields that a route may take as arguments: each is looked for in each request.
const MOST_ARGUMENT_HEADERS: usize = 64;

/// The faults of one route, as they are found.
pub(super) struct Check<'n> {
    route: &'n str,
    pub(super) found: Vec<String>,
}

impl<'n> Check<'n> {
    /// Begins without faults.
    pub(super) fn new(route: &'n str) -> Self {
        Self { route, found: Vec::new() }
    }
}

impl Check<'_> {
    pub(super) fn schema(&mut self, schema: u32) {
        match schema {
            1..=SCHEMA => {}
            0 => self.add("schema", schema, format_args!("expected 1 to {SCHEMA}")),
            _ => self.add(
                "schema",
                schema,
                format_args!("expected 1 to {SCHEMA}: a newer gateway wrote this"),
            ),
        }
    }

    pub(super) fn add(&mut self, key: &str, value: impl fmt::Display, expected: impl fmt::Display) {
        self.found.push(format!("route {:?}: {key}={value}: {expected}", self.route));
    }

    /// Parses a value, or notes why it is none.
    pub(super) fn parse<T>(&mut self, key: &str, value: &str) -> Option<T>
    where
        T: std::str::FromStr<Err: fmt::Display>,
    {
        value.parse().map_err(|error| self.add(key, format_args!("{value:?}"), error)).ok()
    }

    /// The time of a request or of one attempt.
    pub(super) fn bounded(&mut self, key: &str, value: Duration) -> Duration {
        if value.is_zero() || value > LONGEST_TIMEOUT {
            self.add(key, format_duration(value), "expected 1ms to 1h");
        }
        value
    }

    pub(super) fn inline_body_bytes(&mut self, bytes: usize) {
        if bytes > MOST_INLINE_BODY_BYTES {
            let expected = format_args!("expected 0 to {MOST_INLINE_BODY_BYTES}");
            self.add("inline_body_bytes", bytes, expected);
        }
    }

    pub(super) fn stream_idle_timeout(&mut self, timeout: Duration) -> Duration {
        if !(SHORTEST_STREAM..=LONGEST_IDLE).contains(&timeout) {
            self.add("stream_idle_timeout", format_duration(timeout), "expected 1s to 24h");
        }
        timeout
    }

    pub(super) fn stream_max_age(&mut self, age: Duration) -> Duration {
        if !(SHORTEST_STREAM..=LONGEST_AGE).contains(&age) {
            self.add("stream_max_age", format_duration(age), "expected 1s to 30days");
        }
        age
    }

    /// Names become metric labels and keys of the bucket: letters, digits, `-` and `_`.
    pub(super) fn name(&mut self, key: &str, name: &str) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            self.add(key, format_args!("{name:?}"), "expected 1 to 64 letters, digits, `-` or `_`");
        }
    }

    /// As JetStream has it: what would be more than one token of a subject, or a path, is none.
    pub(super) fn stream(&mut self, key: &str, name: &str) {
        let plain = |byte: u8| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte);
        if name.is_empty() || name.len() > 255 || !name.bytes().all(plain) {
            let expected = "expected the name of a stream: no white space, `.`, `*`, `>` or slash";
            self.add(key, format_args!("{name:?}"), expected);
        }
    }

    pub(super) fn host(&mut self, host: &str) -> String {
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

    pub(super) fn methods(&mut self, names: &[String]) -> Methods {
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

    /// The header fields that are arguments. What the route names is never a client's, so neither
    /// may a parameter of its path be named like what the gateway or such a field says.
    pub(super) fn argument_headers(
        &mut self,
        names: &[String],
        path: Option<&Pattern>,
    ) -> Vec<HeaderName> {
        let mut headers: Vec<HeaderName> = Vec::new();
        for name in names {
            let Some(header) = self.parse::<HeaderName>("args.headers", name) else { continue };
            if headers.contains(&header) {
                self.add("args.headers", format_args!("{name:?}"), "expected each once");
            }
            headers.push(header);
        }
        if headers.len() > MOST_ARGUMENT_HEADERS {
            let expected = format_args!("expected {MOST_ARGUMENT_HEADERS} at the most");
            self.add("args.headers", format_args!("[{} names]", headers.len()), expected);
        }
        headers
            .into_iter()
            .filter(|header| {
                let is_parameter = path
                    .is_some_and(|path| path.parameter_names().any(|name| name == header.as_str()));
                if is_parameter {
                    let expected = "expected no name of a parameter of the path";
                    self.add("args.headers", format_args!("{:?}", header.as_str()), expected);
                }
                !is_parameter
            })
            .collect()
    }

    /// The parameters of a path whose route has the codec `args`.
    pub(super) fn argument_names(&mut self, path: &Pattern) {
        for name in [natsway_args::REQUEST, natsway_args::REPLY] {
            if path.parameter_names().any(|parameter| parameter == name) {
                let expected = format_args!("expected no parameter of the name {name:?}");
                self.add("path", format_args!("{:?}", path.as_str()), expected);
            }
        }
    }

    pub(super) fn argument_limits(&mut self, limits: natsway_args::Limits) {
        type Limits = natsway_args::Limits;
        for (key, value, most) in [
            ("args.max_values", limits.values, Limits::MOST_VALUES),
            ("args.max_depth", limits.depth, Limits::MOST_DEPTH),
        ] {
            if !(1..=most).contains(&value) {
                self.add(key, value, format_args!("expected 1 to {most}"));
            }
        }
    }

    /// A route whose requests also come in messages: each is a POST, and its answer the backend's.
    pub(super) fn posts(
        &mut self,
        key: &str,
        is_durable: bool,
        methods: &[String],
        needs: &[&str],
    ) {
        if is_durable {
            self.add(key, true, "expected false in a route of the mode `publish`");
        }
        let has = |method: &str| methods.iter().any(|name| name.eq_ignore_ascii_case(method));
        if !methods.is_empty() && !needs.iter().all(|method| has(method)) {
            let expected = format_args!("expected {} among the methods", needs.join(" and "));
            self.add(key, true, expected);
        }
    }

    pub(super) fn websocket_concurrency(&mut self, concurrency: Option<usize>) -> usize {
        let concurrency = concurrency.unwrap_or(WebSocket::CONCURRENCY);
        let most = WebSocket::MOST_CONCURRENCY;
        if !(1..=most).contains(&concurrency) {
            let expected = format_args!("expected 1 to {most}");
            self.add("args.websocket_concurrency", concurrency, expected);
        }
        concurrency
    }

    /// Origins as browsers send them (RFC 6454 section 6.2), or `*`.
    pub(super) fn origins(&mut self, origins: &[String]) -> Vec<String> {
        for origin in origins.iter().filter(|origin| !is_origin(origin)) {
            let expected =
                "expected `*` or an origin like \"https://app.example:8443\", in lower case";
            self.add("args.websocket_origins", format_args!("{origin:?}"), expected);
        }
        origins.to_vec()
    }

    pub(super) fn prefix(&mut self, prefix: &str) -> String {
        if !prefix.starts_with('/') || prefix.ends_with('/') {
            let expected = "expected a path that begins with a slash and does not end with one";
            self.add("strip_prefix", format_args!("{prefix:?}"), expected);
        }
        prefix.to_owned()
    }

    pub(super) fn targets(
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

    pub(super) fn selection(
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

/// Whether it is written as a browser writes one: a scheme, a host, and a port if need be.
fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    !authority.as_str().contains('@')
        && text == format!("{scheme}://{authority}").to_ascii_lowercase()
}
