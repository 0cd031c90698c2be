//! Names that go into the broker's protocol, checked once, when they are configured.

use std::fmt;
use std::str::FromStr;

/// The first token of every subject that Natsway itself speaks on; no service may live below it.
pub const CONTROL_PREFIX: &str = "natsway";

/// Longest subject or queue group accepted, in bytes: far below the broker's control line of 4,096,
/// which also holds the reply subject.
const NAME_BYTES: usize = 256;

/// A subject that may be published to and subscribed to: literal, complete, outside every reserved
/// space.
///
/// ```
/// use natsway_wire::Subject;
/// assert!("svc.math.blue".parse::<Subject>().is_ok());
/// assert!("svc.*.blue".parse::<Subject>().is_err());
/// assert!("$SYS.REQ.SERVER.PING".parse::<Subject>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(String);

/// The name of a queue group: printable ASCII, no wildcard, no white space; dots have no meaning in
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueGroup(String);

/// Why a subject or a queue group was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// Nothing was given.
    #[error("is empty")]
    Empty,
    /// More than 256 bytes.
    #[error("is longer than 256 bytes")]
    TooLong,
    /// A dot at an end, or two in a row.
    #[error("has an empty token: no dot at either end, no two dots in a row")]
    EmptyToken,
    /// `*` or `>` anywhere.
    #[error("has a wildcard: name one subject, without `*` or `>`")]
    Wildcard,
    /// White space, a control character, or anything outside printable ASCII.
    #[error("has a character outside printable ASCII, or white space")]
    Character,
    /// The first token is reserved by the broker or by Natsway.
    #[error("is reserved: not below `$...`, `_INBOX` or `natsway`")]
    Reserved,
}

impl Subject {
    /// The subject as it goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the first tokens of this subject are those of `prefix` (`svc` holds `svc.math.blue`,
    /// not `svcs.math`).
    pub fn is_below(&self, prefix: &str) -> bool {
        self.0.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl QueueGroup {
    /// The queue group that ADR-32 names as the default.
    pub const DEFAULT: &str = "q";

    /// The name as it goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for QueueGroup {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

/// Whether a name is complete, literal and of a length that the broker takes.
pub(crate) fn is_plain(subject: &str) -> bool {
    check_characters(subject).is_ok() && !subject.split('.').any(str::is_empty)
}

fn check_characters(name: &str) -> Result<(), SubjectError> {
    match name {
        "" => Err(SubjectError::Empty),
        _ if name.len() > NAME_BYTES => Err(SubjectError::TooLong),
        _ if !name.bytes().all(|byte| byte.is_ascii_graphic()) => Err(SubjectError::Character),
        _ if name.contains(['*', '>']) => Err(SubjectError::Wildcard),
        _ => Ok(()),
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(name: &str) -> Result<Self, SubjectError> {
        check_characters(name)?;
        if name.split('.').any(str::is_empty) {
            return Err(SubjectError::EmptyToken);
        }
        let first = name.split('.').next().unwrap_or_default();
        // `_INBOX_apiproxy` and its like are the roles' own inboxes.
        if first.starts_with('$') || first.starts_with("_INBOX") || first == CONTROL_PREFIX {
            return Err(SubjectError::Reserved);
        }
        Ok(Self(name.to_owned()))
    }
}

impl FromStr for QueueGroup {
    type Err = SubjectError;

    fn from_str(name: &str) -> Result<Self, SubjectError> {
        check_characters(name)?;
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for QueueGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str) -> SubjectError {
        name.parse::<Subject>().unwrap_err()
    }

    #[test]
    fn ordinary_subjects_are_accepted() {
        for name in ["svc.math.blue", "a", "orders.v1_2-rc", "Svc.A", "natswayish.x", "x._INBOX"] {
            assert_eq!(name.parse::<Subject>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn unsafe_subjects_are_refused_with_their_reason() {
        assert_eq!(refusal(""), SubjectError::Empty);
        assert_eq!(refusal(&"x".repeat(257)), SubjectError::TooLong);
        for name in [".", "a.", ".a", "a..b"] {
            assert_eq!(refusal(name), SubjectError::EmptyToken, "{name}");
        }
        for name in ["*", "a.*", ">", "a.>", "a*b"] {
            assert_eq!(refusal(name), SubjectError::Wildcard, "{name}");
        }
        for name in ["a b", "a\tb", "a\r\nPUB x 0", "a\0", "caf\u{e9}", "a\u{7f}"] {
            assert_eq!(refusal(name), SubjectError::Character, "{name:?}");
        }
        for name in
            ["$SYS.x", "$JS.API", "_INBOX.1", "_INBOX_apiproxy.1", "natsway.worker.1", "natsway"]
        {
            assert_eq!(refusal(name), SubjectError::Reserved, "{name}");
        }
    }

    #[test]
    fn below_compares_whole_tokens() {
        let subject: Subject = "svc.math.blue".parse().unwrap();
        assert!(subject.is_below("svc"));
        assert!(subject.is_below("svc.math"));
        assert!(!subject.is_below("sv"));
        assert!(!subject.is_below("svc.math.blue"));
    }
}
