//! Where a durable route stores its requests: the subject, made of the operator's own tokens.
//!
//! A subject says who may read a message and which stream keeps it, so no byte of a request ever
//! becomes part of one. A parameter of the path chooses among tokens that the route lists, and
//! nothing else does.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use http::Method;
use natsway_wire::Subject;

use super::{Pattern, PatternError, Route};

/// What a route does that stores its requests in a stream and waits for no worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where to.
    pub subject: SubjectTemplate,
    /// The stream that is to store them, if the route names it.
    pub expect_stream: Option<String>,
    /// How long the stream's acknowledgement is waited for, over all attempts.
    pub ack_timeout: Duration,
    /// Where clients look for the result; `None` where none is kept.
    pub status: Option<StatusPath>,
}

/// The path of a route's results: literal segments, and a parameter as the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPath {
    pattern: Pattern,
    /// All of it before the parameter, with the slash.
    before: String,
}

/// Why a pattern is no status path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatusPathError {
    /// It is no pattern at all.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The last segment is no parameter, or not the only one.
    #[error("expected one parameter, as the last segment: `/reports/{{id}}`")]
    Parameters,
    /// A header field names it, and takes no other letters.
    #[error("expected printable ASCII characters")]
    NotAscii,
}

impl FromStr for StatusPath {
    type Err = StatusPathError;

    fn from_str(text: &str) -> Result<Self, StatusPathError> {
        let pattern: Pattern = text.parse()?;
        let parameter = text.rfind('/').and_then(|slash| text.split_at_checked(slash + 1));
        let (before, last) = parameter.ok_or(StatusPathError::Parameters)?;
        let name = last.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
        let is_parameter = name.is_some_and(|name| !name.contains(['{', '}', '*']));
        if !is_parameter || before.contains(['{', '}']) {
            return Err(StatusPathError::Parameters);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(StatusPathError::NotAscii);
        }
        let before = before.to_owned();
        Ok(Self { pattern, before })
    }
}

impl StatusPath {
    /// Returns where the result with this token is.
    pub fn of_token(&self, token: &str) -> String {
        format!("{}{token}", self.before)
    }

    /// Returns the token that a path of this pattern has, as the client sent it.
    pub fn token<'p>(&self, path: &'p str) -> Option<&'p str> {
        path.strip_prefix(self.before.as_str())
    }

    /// Returns a route as it answers on this path.
    pub(super) fn of_route(&self, route: &Route) -> Route {
        let methods = [Method::GET].into_iter().collect();
        Route { path: self.pattern.clone(), methods, ..route.clone() }
    }
}

impl std::fmt::Display for StatusPath {
    /// As a document has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.pattern.fmt(f)
    }
}

/// A subject some of whose tokens are chosen by segments of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectTemplate(Vec<Token>);

/// One token of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// Always the same.
    Literal(String),
    /// What the table has for a segment of the path.
    Chosen {
        /// The parameter's name.
        name: String,
        /// The place of its segment, as parted by slashes; 0 is before the first one.
        segment: usize,
        /// The token for each segment that the route takes, compared as the client sent it.
        tokens: BTreeMap<String, String>,
    },
}

/// Why a template has no subject for a path: the table has nothing for this parameter's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotListed {
    /// The parameter's name.
    pub parameter: String,
}

/// Why tokens are no template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The first token decides in whose space a subject is.
    #[error("must begin with a token that is no parameter")]
    BeginsWithParameter,
    /// Workers listen there and would answer it.
    #[error("is reserved: not below `svc`, where workers listen")]
    OfWorkers,
    /// It is none, whatever the parameters.
    #[error(transparent)]
    Subject(#[from] natsway_wire::SubjectError),
}

impl SubjectTemplate {
    /// The first token of the subjects on which workers listen.
    const WORKERS_PREFIX: &str = "svc";

    /// Checks that every subject of the template may be published to.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn new(tokens: Vec<Token>) -> Result<Self, TemplateError> {
        let longest: Vec<&str> = tokens.iter().map(Token::longest).collect();
        longest.join(".").parse::<Subject>()?;
        match tokens.first() {
            Some(Token::Literal(first)) if first == Self::WORKERS_PREFIX => {
                Err(TemplateError::OfWorkers)
            }
            Some(Token::Literal(_)) => Ok(Self(tokens)),
            Some(Token::Chosen { .. }) | None => Err(TemplateError::BeginsWithParameter),
        }
    }

    /// Returns the subject for a path that the route's pattern matched.
    ///
    /// # Errors
    /// [`NotListed`].
    pub fn subject(&self, path: &str) -> Result<String, NotListed> {
        let mut subject = String::new();
        for token in &self.0 {
            if !subject.is_empty() {
                subject.push('.');
            }
            subject.push_str(token.of(path)?);
        }
        Ok(subject)
    }

    /// Returns its tokens.
    pub fn tokens(&self) -> &[Token] {
        &self.0
    }
}

impl Token {
    fn of(&self, path: &str) -> Result<&str, NotListed> {
        match self {
            Self::Literal(token) => Ok(token),
            Self::Chosen { name, segment, tokens } => {
                let token = path.split('/').nth(*segment).and_then(|value| tokens.get(value));
                token.map(String::as_str).ok_or_else(|| NotListed { parameter: name.clone() })
            }
        }
    }

    /// The longest that it can be.
    fn longest(&self) -> &str {
        match self {
            Self::Literal(token) => token,
            Self::Chosen { tokens, .. } => {
                tokens.values().max_by_key(|token| token.len()).map_or("", String::as_str)
            }
        }
    }
}

impl std::fmt::Display for SubjectTemplate {
    /// As a document has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, token) in self.0.iter().enumerate() {
            let dot = if place == 0 { "" } else { "." };
            match token {
                Token::Literal(token) => write!(f, "{dot}{token}")?,
                Token::Chosen { name, .. } => write!(f, "{dot}{{{name}}}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn literal(token: &str) -> Token {
        Token::Literal(token.to_owned())
    }

    fn hooks() -> SubjectTemplate {
        let tokens = [("push", "push"), ("pull_request", "pr"), ("%C3%A9", "e")];
        let tokens = tokens.map(|(value, token)| (value.to_owned(), token.to_owned())).into();
        let event = Token::Chosen { name: "event".to_owned(), segment: 2, tokens };
        SubjectTemplate::new(vec![literal("hooks"), event]).unwrap()
    }

    #[test]
    fn a_segment_chooses_a_token_of_the_table() {
        let hooks = hooks();
        assert_eq!(hooks.subject("/hooks/push").unwrap(), "hooks.push");
        assert_eq!(hooks.subject("/hooks/pull_request").unwrap(), "hooks.pr");
        assert_eq!(hooks.subject("/hooks/%C3%A9").unwrap(), "hooks.e");
        assert_eq!(hooks.to_string(), "hooks.{event}");
    }

    #[test]
    fn what_is_not_in_the_table_has_no_subject() {
        for value in [
            "",
            "Push",
            "push ",
            "pr",
            ".",
            "*",
            ">",
            "a.b",
            "push.x",
            "%70ush",
            "%2e",
            "pu\u{e9}sh",
        ] {
            let refused = hooks().subject(&format!("/hooks/{value}")).unwrap_err();
            assert_eq!(refused.parameter, "event", "{value:?}");
        }
        assert!(hooks().subject("/hooks").is_err());
    }

    #[test]
    fn templates_outside_of_an_operators_space_are_refused() {
        for (first, refused) in [
            ("svc", TemplateError::OfWorkers),
            ("$JS", TemplateError::Subject(natsway_wire::SubjectError::Reserved)),
            ("_INBOX_apiproxy", TemplateError::Subject(natsway_wire::SubjectError::Reserved)),
            ("natsway", TemplateError::Subject(natsway_wire::SubjectError::Reserved)),
            ("*", TemplateError::Subject(natsway_wire::SubjectError::Wildcard)),
            ("", TemplateError::Subject(natsway_wire::SubjectError::EmptyToken)),
        ] {
            let tokens = vec![literal(first), literal("x")];
            assert_eq!(SubjectTemplate::new(tokens).unwrap_err(), refused, "{first:?}");
        }
        let tokens = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let chosen = Token::Chosen { name: "x".to_owned(), segment: 1, tokens };
        let refused = SubjectTemplate::new(vec![chosen]).unwrap_err();
        assert_eq!(refused, TemplateError::BeginsWithParameter);
    }

    #[test]
    fn a_status_path_ends_with_its_only_parameter() {
        let path: StatusPath = "/reports/{id}".parse().unwrap();
        assert_eq!(path.of_token("0a"), "/reports/0a");
        assert_eq!(path.token("/reports/0a"), Some("0a"));
        assert_eq!(path.token("/report"), None);
        let shortest: StatusPath = "/{id}".parse().unwrap();
        assert_eq!(shortest.of_token("0a"), "/0a");
        assert!("/x{id}".parse::<StatusPath>().is_err() && "/{id}x".parse::<StatusPath>().is_err());
        for wrong in ["/reports", "/{a}/{id}", "/{*id}", "/{id}/", "/"] {
            let error = wrong.parse::<StatusPath>().unwrap_err();
            assert_eq!(error, StatusPathError::Parameters, "{wrong}");
        }
        let error = "/\u{e9}/{id}".parse::<StatusPath>().unwrap_err();
        assert_eq!(error, StatusPathError::NotAscii);
        assert_eq!(
            "x/{id}".parse::<StatusPath>().unwrap_err(),
            StatusPathError::Pattern(PatternError::NoSlash)
        );
    }

    proptest! {
        #[test]
        fn whatever_the_path_a_subject_is_one_of_the_operators(path in "/hooks/\\PC{0,20}") {
            let known = ["hooks.push", "hooks.pr", "hooks.e"];
            if let Ok(subject) = hooks().subject(&path) {
                prop_assert!(known.contains(&subject.as_str()), "{subject}");
            }
        }
    }
}
