//! A route as operators write it: the same fields in a TOML file and in a JSON document of the
//! routes bucket. Read strictly, checked whole, every fault named.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use natsway_args::{BodyKind, Format, Limits as ArgsLimits, Options, WebSocket};
use serde::{Deserialize, Serialize, Serializer};

use self::check::Check;
use self::publish::{Mode, PublishDocument};
use crate::rollout::Rollout;
use crate::table::{
    Codec, Pattern, Publish, Retry, Route, RouteLimits, Selection, Split, StreamLimits, Transport,
};

mod check;
mod publish;
#[cfg(test)]
mod tests;

/// The newest version of the document that this gateway reads. A document is written as the oldest
/// version that has all of its keys, so that older gateways read what they can.
pub const SCHEMA: u32 = 2;

/// The version before `mode`, `transport`, `inline_body_bytes` and the keys of streams: every body
/// is one message, and `max_body_bytes` alone bounds it.
const MESSAGES_ONLY: u32 = 1;

/// What a route has where it says nothing else.
mod default {
    use std::time::Duration;

    use crate::table::Transport;

    /// Long enough for slow work, short enough that a client still waits.
    pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
    /// Two more attempts fit into the default time-out.
    pub(super) const TRY_TIMEOUT: Duration = Duration::from_secs(10);
    /// What works without a way between workers and gateways but the broker.
    pub(super) const TRANSPORT: Transport = Transport::Broker;
    /// Above this a message would hold up the small ones behind it: bulk does not belong on the
    /// broker.
    pub(super) const INLINE_BODY_BYTES: usize = 64 * 1024;
    /// With the growing delays between them, about as many as fit into the window.
    pub(super) const RETRIES: u32 = 16;
    /// As long as a deploy leaves a gap at worst; clients of a dead service hear of it after this.
    pub(super) const RETRY_WINDOW: Duration = Duration::from_secs(2);
}

/// The largest body that a route may have travel in one message: what a broker takes by default,
/// with room for the head.
pub const MOST_INLINE_BODY_BYTES: usize = 1024 * 1024 - 64 * 1024;

/// One route.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouteDocument {
    /// The version of the document: 2 when it has `mode`, `transport`, `inline_body_bytes`, a key
    /// of streams or the codec `args`, which commands write by themselves. A later one is refused.
    #[serde(default = "schema")]
    schema: u32,
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
    /// `http` for Natsway workers, `native` for any NATS client, `args` for any that wants one map.
    #[serde(default)]
    codec: CodecName,
    /// `request` waits for a worker's answer. `publish` stores the request in a stream, answers
    /// 202 once it is there, and has `publish` and no targets; without `methods` it takes POST.
    /// `enqueue` does the same, and keeps the worker's result at a status URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    /// Never answered on the public listener.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    internal: bool,
    /// In all, from the request's head: 504 after it.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    timeout: Option<Duration>,
    /// One worker's; then an idempotent request is tried elsewhere.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    try_timeout: Option<Duration>,
    /// How requests go to workers: `broker`, or `auto` for tunnels where there are some. Routes of
    /// `native` and `args` go by the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transport: Option<Transport>,
    /// A body up to this travels in one message, a larger one as a stream. At most 983040; less
    /// where `max_body_bytes` is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inline_body_bytes: Option<usize>,
    /// 413 above it, streamed or not. Without: unbounded for `http`, `inline_body_bytes` for
    /// `native` and `args`. A document of schema 1 has it for `inline_body_bytes` as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_body_bytes: Option<u64>,
    /// Ends a stream on which no byte has come for so long, in either direction; 1s to 24h.
    /// Without: 60s for bodies, 1h for upgrades, event streams and gRPC.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    stream_idle_timeout: Option<Duration>,
    /// Ends a stream that is older; 1s to 30days, unbounded without.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    stream_max_age: Option<Duration>,
    /// Further attempts at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    /// Within which they begin.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    retry_window: Option<Duration>,
    /// A client that goes away cancels the work at its worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cancel: Option<bool>,
    /// What `args` makes of requests and replies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<ArgsDocument>,
    /// Its versions.
    #[serde(default, rename = "target")]
    targets: Vec<TargetDocument>,
    /// Who gets a version whatever its weight; the first that fits counts.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleDocument>,
    /// What keeps a client with one version, as far as the weights allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sticky: Option<KeyDocument>,
    /// Where requests are stored, in the modes `publish` and `enqueue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publish: Option<PublishDocument>,
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
    transport: Option<Transport>,
    /// As in a route.
    inline_body_bytes: Option<usize>,
    /// As in a route.
    max_body_bytes: Option<u64>,
    /// As in a route.
    #[serde(default, with = "humantime_serde::option")]
    stream_idle_timeout: Option<Duration>,
    /// As in a route.
    #[serde(default, with = "humantime_serde::option")]
    stream_max_age: Option<Duration>,
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

/// How requests become one map, and replies what clients ask for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct ArgsDocument {
    /// How messages are written: `msgpack`, which is the default, `json` or `cbor`.
    #[serde(default, skip_serializing_if = "is_default")]
    format: Format,
    /// The header fields that are arguments, in lower case there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<String>,
    /// The bodies that it takes, 415 for others: `json`, `msgpack`, `cbor`, `form`, `multipart`,
    /// `text`, `other`. All without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bodies: Vec<BodyKind>,
    /// `a[b]=1` in a query or form is the key `b` of the map `a`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    nested: bool,
    /// `?callback=f` of a GET has the answer call `f` in a script: any page may read it then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    jsonp: bool,
    /// A WebSocket may be opened, each of whose messages is a request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    websocket: bool,
    /// The most requests of one WebSocket at a time, 1 to 1000; 16 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    websocket_concurrency: Option<usize>,
    /// The origins whose pages may open one, as `https://app.example`, or `*` for all. Without, the
    /// gateway's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    websocket_origins: Vec<String>,
    /// 413 above so many values in a request, 1 to 1000000; 10000 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_values: Option<usize>,
    /// 413 where maps and arrays stand deeper inside one another, 1 to 100; 32 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_depth: Option<usize>,
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
    Args,
}

fn is_default(format: &Format) -> bool {
    *format == Format::default()
}

/// A document that does not say its version has the keys of the first; those of a later one raise
/// it.
fn schema() -> u32 {
    MESSAGES_ONLY
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
    /// It is no JSON document of a route, has unknown members, or is of a later schema.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Faults> {
        let mut document: Self = serde_json::from_slice(bytes).map_err(|error| {
            // The schema says more than the first member of it that is not known here.
            Faults(vec![later_schema(bytes).unwrap_or_else(|| error.to_string())])
        })?;
        document.raise_schema();
        Ok(document)
    }

    /// The version of the document: a gateway that reads only earlier ones refuses it.
    pub fn schema(&self) -> u32 {
        self.schema
    }

    /// Says the version that its keys need, where it says an earlier one or none.
    fn raise_schema(&mut self) {
        let has_later_key = self.transport.is_some()
            || self.mode.is_some()
            || self.publish.is_some()
            || self.inline_body_bytes.is_some()
            || self.stream_idle_timeout.is_some()
            || self.stream_max_age.is_some()
            || self.args.is_some()
            || self.codec == CodecName::Args;
        if has_later_key && self.schema == MESSAGES_ONLY {
            self.schema = SCHEMA;
        }
    }

    /// The document as it is kept in the bucket.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a route's document is plain values")
    }

    /// Takes what it does not say itself from a file's defaults, so that it stands alone.
    pub fn fill_in(&mut self, defaults: &Tuning) {
        self.timeout = self.timeout.or(defaults.timeout);
        self.try_timeout = self.try_timeout.or(defaults.try_timeout);
        self.transport = self.transport.or(defaults.transport);
        self.inline_body_bytes = self.inline_body_bytes.or(defaults.inline_body_bytes);
        self.max_body_bytes = self.max_body_bytes.or(defaults.max_body_bytes);
        self.stream_idle_timeout = self.stream_idle_timeout.or(defaults.stream_idle_timeout);
        self.stream_max_age = self.stream_max_age.or(defaults.stream_max_age);
        self.retries = self.retries.or(defaults.retries);
        self.retry_window = self.retry_window.or(defaults.retry_window);
        self.cancel = self.cancel.or(defaults.cancel);
        self.raise_schema();
    }

    /// Its versions and their weights.
    pub fn weights(&self) -> impl Iterator<Item = (&str, u32)> {
        self.targets.iter().map(|target| (target.version.as_str(), target.weight()))
    }

    /// Fills in the weights that it does not say, beside the document that it takes the place of: a
    /// version that is there keeps its own, one that is added gets nothing yet, so that a rollout
    /// moves the traffic. Gives those that are added.
    pub fn fill_in_weights(&mut self, stored: Option<&Self>) -> Vec<String> {
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
    pub fn take_weights(&mut self, other: &Self) {
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
        let mut check = Check::new(&self.name);
        let route = self.route(subject_prefix, &mut check);
        match route {
            Some(route) if check.found.is_empty() => Ok(route),
            _ => Err(Faults(check.found)),
        }
    }

    fn route(&self, subject_prefix: Option<&str>, check: &mut Check<'_>) -> Option<Route> {
        check.schema(self.schema);
        check.name("name", &self.name);
        let host = self.host.as_deref().map(|host| check.host(host));
        let path: Option<Pattern> = check.parse("path", &self.path);
        let methods = check.methods(&self.methods);
        let publish = self.publish(check);
        let methods = match self.is_durable() {
            true => publish::storing(methods, check),
            false => methods,
        };
        let strip_prefix = self.strip_prefix.as_deref().map(|prefix| check.prefix(prefix));
        let timeout = check.bounded("timeout", self.timeout.unwrap_or(default::TIMEOUT));
        let try_timeout =
            check.bounded("try_timeout", self.try_timeout.unwrap_or(default::TRY_TIMEOUT));
        let limits = self.limits(check);
        let streams = StreamLimits {
            idle_timeout: self.stream_idle_timeout.map(|time| check.stream_idle_timeout(time)),
            max_age: self.stream_max_age.map(|age| check.stream_max_age(age)),
        };
        let args = self.args(check, path.as_ref());
        let (split, selection) = match self.is_durable() {
            true => self.no_versions(check),
            false => {
                let split = check.targets(&self.targets, subject_prefix)?;
                let selection = check.selection(&self.rules, self.sticky.as_ref(), &split);
                (split, selection)
            }
        };
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
            publish,
            internal: self.internal,
            codec: self.codec(),
            args: Arc::new(args),
            transport: match self.is_one_message() {
                false => self.transport.unwrap_or(default::TRANSPORT),
                true => Transport::Broker,
            },
            timeout,
            try_timeout: try_timeout.min(timeout),
            cancel: self.cancel.unwrap_or(true),
            limits,
            streams,
            retry: Retry {
                most: self.retries.unwrap_or(default::RETRIES),
                window: self.retry_window.unwrap_or(default::RETRY_WINDOW),
            },
        })
    }

    /// Whether its requests are stored, and no worker is asked.
    fn is_durable(&self) -> bool {
        self.mode().is_durable()
    }

    fn mode(&self) -> Mode {
        self.mode.unwrap_or_default()
    }

    /// Whether each request is one message: any NATS client reads it, or a stream keeps it.
    fn is_one_message(&self) -> bool {
        self.is_durable() || self.codec().is_for_any_client()
    }

    fn publish(&self, check: &mut Check<'_>) -> Option<Publish> {
        match (&self.publish, self.is_durable()) {
            (Some(publish), true) => {
                if self.mode() == Mode::Enqueue && self.codec != CodecName::Http {
                    let codec = serde_json::json!(self.codec);
                    check.add("codec", codec, "expected `http` in a route of the mode `enqueue`");
                }
                publish.check(&self.path, self.mode(), check)
            }
            (Some(_), false) => {
                check.add("publish", "{..}", "expected `mode = \"publish\"` beside it");
                None
            }
            (None, true) => {
                let mode = format_args!("{:?}", self.mode().as_str());
                check.add("mode", mode, "expected `publish = { subject = \"..\" }`");
                None
            }
            (None, false) => None,
        }
    }

    /// What stands where other routes have versions, none of which a durable route may have.
    fn no_versions(&self, check: &mut Check<'_>) -> (Split, Selection) {
        let has = [
            ("target", !self.targets.is_empty()),
            ("rule", !self.rules.is_empty()),
            ("sticky", self.sticky.is_some()),
        ];
        for (key, _) in has.into_iter().filter(|(_, has)| *has) {
            let mode = self.mode().as_str();
            let expected = format_args!("expected none in a route of the mode `{mode}`");
            check.add(key, "[..]", expected);
        }
        (Split::default(), Selection::default())
    }

    fn codec(&self) -> Codec {
        match self.codec {
            CodecName::Http => Codec::Http,
            CodecName::Native => Codec::Native,
            CodecName::Args => Codec::Args,
        }
    }

    fn args(&self, check: &mut Check<'_>, path: Option<&Pattern>) -> Options {
        if let (CodecName::Args, Some(path)) = (self.codec, path) {
            check.argument_names(path);
        }
        let Some(args) = &self.args else { return Options::default() };
        if self.codec != CodecName::Args {
            check.add("args", "{..}", "expected codec = \"args\" beside it");
        }
        let headers = check.argument_headers(&args.headers, path);
        let default = ArgsLimits::REQUEST;
        let limits = ArgsLimits {
            values: args.max_values.unwrap_or(default.values),
            depth: args.max_depth.unwrap_or(default.depth),
        };
        check.argument_limits(limits);
        let websocket = self.websocket(args, check);
        Options {
            format: args.format,
            headers,
            nested: args.nested,
            jsonp: args.jsonp,
            bodies: args.bodies.clone(),
            limits,
            websocket,
        }
    }

    fn websocket(&self, args: &ArgsDocument, check: &mut Check<'_>) -> Option<WebSocket> {
        let concurrency = args.websocket_concurrency;
        let origins = check.origins(&args.websocket_origins);
        if !args.websocket {
            if concurrency.is_some() || !origins.is_empty() {
                check.add("args.websocket", false, "expected true beside its other keys");
            }
            return None;
        }
        check.posts("args.websocket", self.is_durable(), &self.methods, &["GET", "POST"]);
        let concurrency = check.websocket_concurrency(concurrency);
        Some(WebSocket { concurrency, origins })
    }

    fn limits(&self, check: &mut Check<'_>) -> RouteLimits {
        let inline = self.inline_body_bytes.unwrap_or(default::INLINE_BODY_BYTES);
        check.inline_body_bytes(inline);
        // Where pointers are narrower, so are bodies in one message.
        let most = self.max_body_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let inline_body_bytes = match most {
            None => inline,
            Some(most) if self.schema == MESSAGES_ONLY => most.min(MOST_INLINE_BODY_BYTES),
            Some(most) => most.min(inline),
        };
        let max_body_bytes = match self.is_one_message() {
            false => self.max_body_bytes,
            true => Some(inline_body_bytes as u64),
        };
        RouteLimits { inline_body_bytes, max_body_bytes }
    }
}

/// The fault of a document of a later schema, whatever else it has.
fn later_schema(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        name: String,
        schema: u32,
    }
    let Head { name, schema } = serde_json::from_slice(bytes).ok()?;
    if schema <= SCHEMA {
        return None;
    }
    let mut check = Check::new(&name);
    check.schema(schema);
    Some(Faults(check.found).to_string())
}
