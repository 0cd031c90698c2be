//! `publish = { .. }` of a route: where its requests are stored.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};

use super::check::Check;
use crate::table::{Methods, Publish, StatusPath, SubjectTemplate, Token};

/// As long as a stream of a cluster takes to choose another leader.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a route does with a request.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Waits for a worker's answer.
    #[default]
    Request,
    /// Stores it in a stream.
    Publish,
    /// The same, and its result is kept for its client.
    Enqueue,
}

impl Mode {
    /// As a document has it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Publish => "publish",
            Self::Enqueue => "enqueue",
        }
    }

    /// Whether requests are stored, and no worker is asked.
    pub(super) fn is_durable(self) -> bool {
        match self {
            Self::Request => false,
            Self::Publish | Self::Enqueue => true,
        }
    }
}

/// Where a route of the mode `publish` or `enqueue` stores its requests.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishDocument {
    /// The subject, say `hooks.github` or `hooks.{event}`. A parameter is a whole segment of the
    /// path, a whole token of the subject, not the first, and has its `tokens`. Nothing below
    /// `svc`, `natsway`, `$..` or `_INBOX`.
    subject: String,
    /// The stream that is to store it: another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect_stream: Option<String>,
    /// How long the stream's acknowledgement is waited for, in all.
    #[serde(default, with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    ack_timeout: Option<Duration>,
    /// In the mode `enqueue`, where clients look for the result: `/reports/{id}`, with one
    /// parameter, the last segment. GET answers there for the same host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status_path: Option<String>,
    /// For each parameter of the subject the values that it may have, as a list or as a table from
    /// value to token: `event = ["push", "ping"]`, `event = { pull_request = "pr" }`. All others
    /// are 404. Tokens are letters, digits, `-` and `_`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tokens: BTreeMap<String, Tokens>,
}

/// The values that a parameter may have.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
enum Tokens {
    /// Each is its own token.
    Listed(Vec<String>),
    /// Each has its token.
    Named(BTreeMap<String, String>),
}

impl Tokens {
    /// More are no table that somebody wrote, and each subject costs the stream memory.
    const MOST: usize = 1_024;

    fn table(&self) -> BTreeMap<String, String> {
        match self {
            Self::Listed(values) => {
                values.iter().map(|value| (value.clone(), value.clone())).collect()
            }
            Self::Named(named) => named.clone(),
        }
    }
}

impl PublishDocument {
    /// Checks where requests on `path` are stored, and where their results are.
    pub(super) fn check(&self, path: &str, mode: Mode, check: &mut Check<'_>) -> Option<Publish> {
        let status = self.status(mode, check);
        let used: Vec<Option<Token>> =
            self.subject.split('.').map(|token| self.token(token, path, check)).collect();
        for name in self.tokens.keys().filter(|name| !self.has_parameter(name)) {
            let expected = "expected a parameter of `publish.subject`";
            check.add("publish.tokens", format_args!("{name:?}"), expected);
        }
        if let Some(stream) = &self.expect_stream {
            check.stream("publish.expect_stream", stream);
        }
        let ack_timeout = self.ack_timeout.unwrap_or(ACK_TIMEOUT);
        let ack_timeout = check.bounded("publish.ack_timeout", ack_timeout);
        let tokens = used.into_iter().collect::<Option<Vec<Token>>>()?;
        let subject = SubjectTemplate::new(tokens)
            .map_err(|error| {
                check.add("publish.subject", format_args!("{:?}", self.subject), error);
            })
            .ok()?;
        Some(Publish { subject, expect_stream: self.expect_stream.clone(), ack_timeout, status })
    }

    fn status(&self, mode: Mode, check: &mut Check<'_>) -> Option<StatusPath> {
        match (&self.status_path, mode) {
            (Some(path), Mode::Enqueue) => check.parse("publish.status_path", path),
            (Some(path), Mode::Request | Mode::Publish) => {
                let expected = "expected `mode = \"enqueue\"` beside it";
                check.add("publish.status_path", format_args!("{path:?}"), expected);
                None
            }
            (None, Mode::Enqueue) => {
                let expected = "expected `status_path = \"/..\"` in `publish`";
                check.add("mode", "\"enqueue\"", expected);
                None
            }
            (None, Mode::Request | Mode::Publish) => None,
        }
    }

    fn has_parameter(&self, name: &str) -> bool {
        self.subject.split('.').any(|token| parameter(token) == Some(name))
    }

    fn token(&self, token: &str, path: &str, check: &mut Check<'_>) -> Option<Token> {
        let Some(name) = parameter(token) else {
            if token.contains(['{', '}']) {
                let expected = "expected a parameter as a whole token, `a.{name}.b`";
                check.add("publish.subject", format_args!("{:?}", self.subject), expected);
                return None;
            }
            return Some(Token::Literal(token.to_owned()));
        };
        let segment = path.split('/').position(|segment| parameter(segment) == Some(name));
        if segment.is_none() {
            let expected = format_args!("expected `{{{name}}}` as a whole segment of the path");
            check.add("publish.subject", format_args!("{:?}", self.subject), expected);
        }
        let tokens = self.tokens.get(name).map(Tokens::table).unwrap_or_default();
        if tokens.is_empty() || tokens.len() > Tokens::MOST {
            let expected = format_args!("expected 1 to {} values for {name:?}", Tokens::MOST);
            check.add("publish.tokens", format_args!("{} of {name:?}", tokens.len()), expected);
            return None;
        }
        for (value, token) in &tokens {
            check.name("publish.tokens", token);
            if value.is_empty() || value.contains('/') {
                let expected = "expected a segment of a path";
                check.add("publish.tokens", format_args!("{value:?}"), expected);
            }
        }
        Some(Token::Chosen { name: name.to_owned(), segment: segment?, tokens })
    }
}

/// The name of a parameter that is all of a token or segment.
fn parameter(text: &str) -> Option<&str> {
    let name = text.strip_prefix('{')?.strip_suffix('}')?;
    (!name.is_empty() && !name.contains(['{', '}', '*'])).then_some(name)
}

/// The methods of a durable route: POST where it says none. Those that are safe store nothing,
/// for a crawler or a preview of a link would.
pub(super) fn storing(methods: Methods, check: &mut Check<'_>) -> Methods {
    if methods == Methods::default() {
        return [Method::POST].into_iter().collect();
    }
    for safe in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
        if methods.contains(&safe) {
            let expected = "expected no safe method: a request of this route is stored";
            check.add("methods", format_args!("{:?}", safe.as_str()), expected);
        }
    }
    methods
}
