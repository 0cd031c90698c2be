//! One route: what it matches, where it leads, and what it may cost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};

use super::{Pattern, Publish, Selection, Split};

/// A route that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name: unique in a table, a label in metrics.
    pub name: String,
    /// `None` for any host, `example.com` for one, `*.example.com` for all below it; lower case, no
    /// port.
    pub host: Option<String>,
    /// The paths that it answers.
    pub path: Pattern,
    /// The methods that it answers.
    pub methods: Methods,
    /// What is taken off the front of a path before a worker sees it; ends without a slash.
    pub strip_prefix: Option<String>,
    /// The versions behind it.
    pub split: Split,
    /// How a request gets one of them.
    pub selection: Selection,
    /// Where its requests are stored; `None` where they wait for an answer.
    pub publish: Option<Publish>,
    /// Never answered on the public listener.
    pub internal: bool,
    /// How requests are written for its workers.
    pub codec: Codec,
    /// What [`Codec::Args`] makes of them.
    pub args: Arc<natsway_args::Options>,
    /// How they get there.
    pub transport: Transport,
    /// How long a client waits in all, from the request's head to the response's.
    pub timeout: Duration,
    /// How long one worker may take before an idempotent request is tried again elsewhere.
    pub try_timeout: Duration,
    /// Whether a client that goes away cancels the work at the worker.
    pub cancel: bool,
    /// Bounds of its bodies.
    pub limits: RouteLimits,
    /// Bounds of what takes longer than one message.
    pub streams: StreamLimits,
    /// When it tries again.
    pub retry: Retry,
}

/// Bounds of the bodies of one route's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLimits {
    /// The largest body that travels in one message.
    pub inline_body_bytes: usize,
    /// The largest body in all, never less than `inline_body_bytes`; `None` for no bound. Equal to
    /// `inline_body_bytes` where [any NATS client](Codec::is_for_any_client) serves it, and where
    /// requests are stored.
    pub max_body_bytes: Option<u64>,
}

/// Bounds of one route's streams: bodies above `inline_body_bytes`, event streams, upgrades.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamLimits {
    /// How long no byte may come in either direction, if the route says so for all of its streams;
    /// [`body_idle_timeout`](StreamLimits::body_idle_timeout) and
    /// [`session_idle_timeout`](StreamLimits::session_idle_timeout) know what holds if not.
    pub idle_timeout: Option<Duration>,
    /// How long a stream may last in all; `None` for no bound.
    pub max_age: Option<Duration>,
}

impl StreamLimits {
    /// A body that has stood still for so long does not go on.
    const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
    /// Between two events or messages nothing need be wrong.
    const SESSION_IDLE_TIMEOUT: Duration = Duration::from_secs(3_600);

    /// How long a body may stand still.
    pub fn body_idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(Self::BODY_IDLE_TIMEOUT)
    }

    /// How long an upgraded connection or an event stream may be silent.
    pub fn session_idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(Self::SESSION_IDLE_TIMEOUT)
    }
}

/// How requests get to workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// As messages of the broker.
    #[default]
    Broker,
    /// By a tunnel that a worker has dialled where there is one, by the broker otherwise.
    Auto,
}

impl Transport {
    /// As a document has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Auto => "auto",
        }
    }
}

/// When a route tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often at the most, the first try not counted.
    pub most: u32,
    /// How long after the request's start an attempt may still begin.
    pub window: Duration,
}

/// How requests are written for workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The envelope of [`natsway_wire::envelope`].
    #[default]
    Http,
    /// The raw body with NATS headers: [`natsway_wire::native`].
    Native,
    /// One map of all that the request has: [`natsway_args`].
    Args,
}

impl Codec {
    /// Whether any NATS client can serve it: no signals, no streams, no tunnels.
    pub fn is_for_any_client(self) -> bool {
        match self {
            Self::Http => false,
            Self::Native | Self::Args => true,
        }
    }
}

/// A set of methods; the empty set stands for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Methods(Vec<Method>);

impl Methods {
    /// Whether the set has `method`. A set with GET has HEAD.
    pub fn contains(&self, method: &Method) -> bool {
        self.0.is_empty()
            || self.0.contains(method)
            || (*method == Method::HEAD && self.0.contains(&Method::GET))
    }

    /// Whether some method is in both sets.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.is_empty()
            || other.0.is_empty()
            || self.0.iter().any(|method| other.0.contains(method))
    }

    /// The methods of both sets. Of sets that are not empty: those are all methods, and refuse
    /// none.
    pub fn union(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).cloned().collect()
    }
}

impl FromIterator<Method> for Methods {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        let mut unique = Vec::new();
        for method in methods {
            if !unique.contains(&method) {
                unique.push(method);
            }
        }
        Self(unique)
    }
}

impl fmt::Display for Methods {
    /// As the `Allow` header has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for method in &self.0 {
            write!(f, "{separator}{method}")?;
            separator = ", ";
            if *method == Method::GET && !self.0.contains(&Method::HEAD) {
                write!(f, ", HEAD")?;
            }
        }
        Ok(())
    }
}

impl Route {
    /// The path and query that a worker sees for the ones that the client sent.
    pub fn forwarded_path<'p>(&self, path_and_query: &'p str) -> std::borrow::Cow<'p, str> {
        let stripped =
            self.strip_prefix.as_deref().and_then(|prefix| path_and_query.strip_prefix(prefix));
        let rest = stripped.unwrap_or(path_and_query);
        match rest.as_bytes().first() {
            Some(b'/') => rest.into(),
            // The prefix was all of it, or the target is one like `http://host?query`.
            None | Some(b'?') => format!("/{rest}").into(),
            // `/api` is no prefix of `/apis`.
            Some(_) => path_and_query.into(),
        }
    }

    /// What [`forwarded_path`](Self::forwarded_path) takes off, without a slash at its end.
    pub fn stripped_prefix(&self, path_and_query: &str) -> Option<&str> {
        let prefix = self.strip_prefix.as_deref()?;
        let rest = path_and_query.strip_prefix(prefix)?;
        let is_taken_off = matches!(rest.as_bytes().first(), None | Some(b'/' | b'?'));
        let prefix = prefix.trim_end_matches('/');
        (is_taken_off && !prefix.is_empty()).then_some(prefix)
    }

    /// A route with everything at its default, for tests.
    #[cfg(test)]
    pub(crate) fn test(name: &str, path: &str) -> Self {
        use super::Target;
        let target = Target {
            version: "blue".to_owned(),
            subject: format!("svc.{name}.blue").parse().expect("a test's name is a token"),
            queue_group: natsway_wire::QueueGroup::default(),
            weight: 1,
        };
        Self {
            name: name.to_owned(),
            host: None,
            path: path.parse().expect("a test's path is a pattern"),
            methods: Methods::default(),
            strip_prefix: None,
            split: Split::new(vec![target]).expect("one target is a split"),
            selection: Selection::default(),
            publish: None,
            internal: false,
            codec: Codec::Http,
            args: Arc::default(),
            transport: Transport::Broker,
            timeout: Duration::from_secs(30),
            try_timeout: Duration::from_secs(10),
            cancel: true,
            limits: RouteLimits { inline_body_bytes: 65_536, max_body_bytes: None },
            streams: StreamLimits::default(),
            retry: Retry { most: 8, window: Duration::from_secs(2) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_stripped_in_whole_segments_only() {
        let mut route = Route::test("x", "/{*rest}");
        route.strip_prefix = Some("/api".to_owned());
        for (sent, forwarded) in [
            ("/api/users?x=1", "/users?x=1"),
            ("/api", "/"),
            ("/api?x=1", "/?x=1"),
            ("/api/", "/"),
            ("/apis/x", "/apis/x"),
            ("/other", "/other"),
        ] {
            assert_eq!(route.forwarded_path(sent), forwarded, "{sent}");
        }
    }

    #[test]
    fn what_is_taken_off_is_told() {
        let mut route = Route::test("x", "/{*rest}");
        assert_eq!(route.stripped_prefix("/api/users"), None);
        route.strip_prefix = Some("/api".to_owned());
        for (sent, told) in [
            ("/api/users?x=1", Some("/api")),
            ("/api", Some("/api")),
            ("/apis/x", None),
            ("/", None),
        ] {
            assert_eq!(route.stripped_prefix(sent), told, "{sent}");
        }
    }

    #[test]
    fn a_target_without_a_path_is_the_root() {
        // `GET http://host?x=1`: RFC 9112 section 3.2.2 has it in absolute form.
        let route = Route::test("x", "/{*rest}");
        for (sent, forwarded) in [("?x=1", "/?x=1"), ("", "/"), ("/", "/"), ("/a", "/a")] {
            assert_eq!(route.forwarded_path(sent), forwarded, "{sent:?}");
        }
    }
}
