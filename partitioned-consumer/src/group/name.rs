//! Names that are safe to build keys, streams and consumers from.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// A group on a stream; both names are checked once, here.
///
/// The stream and group names become one key (`stream.group`) of a bucket, a stream
/// (`stream-group`) and the beginning of consumer names, so they hold only letters, digits, `-`,
/// `_` and `=`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName {
    stream: String,
    group: String,
}

impl GroupName {
    /// Checks both names.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] naming the part, the value and what is expected.
    pub fn new(stream: impl Into<String>, group: impl Into<String>) -> Result<Self, Error> {
        let (stream, group) = (stream.into(), group.into());
        check_key_token("stream name", &stream)?;
        check_key_token("group name", &group)?;
        Ok(Self { stream, group })
    }

    /// The source stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The key of the group's entry in its bucket.
    pub fn key(&self) -> String {
        format!("{}.{}", self.stream, self.group)
    }

    /// The work-queue stream of an elastic group.
    pub fn work_queue(&self) -> String {
        format!("{}-{}", self.stream, self.group)
    }

    /// The durable consumer of one member of a static group.
    pub fn durable(&self, member: &str) -> String {
        format!("{}-{member}", self.group)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stream, self.group)
    }
}

pub(crate) fn check_key_token(what: &str, name: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '=');
    if name.is_empty() || name.len() > 200 || !name.chars().all(allowed) {
        return Err(ErrorKind::InvalidName.with(format!(
            "{what} {name:?}: expected 1 to 200 letters, digits, '-', '_' or '=', since it becomes \
             part of a key"
        )));
    }
    Ok(())
}

/// Checks a member name: it becomes (part of) a consumer name.
///
/// # Errors
/// [`ErrorKind::InvalidName`].
pub fn check_member(name: &str) -> Result<(), Error> {
    let refused = |c: char| {
        c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\' | ':' | ',')
    };
    if name.is_empty() || name.len() > 100 || name.chars().any(refused) {
        return Err(ErrorKind::InvalidName.with(format!(
            "member name {name:?}: expected 1 to 100 bytes without white space or any of . * > / \
             \\ : , since it becomes a consumer name"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_build_keys_streams_and_consumers() {
        let name = GroupName::new("ORDERS", "billing").unwrap();
        assert_eq!(name.key(), "ORDERS.billing");
        assert_eq!(name.work_queue(), "ORDERS-billing");
        assert_eq!(name.durable("m1"), "billing-m1");
    }

    #[test]
    fn names_that_would_escape_their_place_are_refused() {
        for bad in ["", "a.b", "a b", "a*", ">", "a/b", "é", "a\tb"] {
            assert_eq!(
                GroupName::new("S", bad).unwrap_err().kind(),
                ErrorKind::InvalidName,
                "{bad:?}"
            );
            assert_eq!(
                GroupName::new(bad, "g").unwrap_err().kind(),
                ErrorKind::InvalidName,
                "{bad:?}"
            );
        }
        for bad in ["", "a.b", "a b", "*", ">", "a/b", "a\\b", "m:1", "a,b"] {
            assert_eq!(check_member(bad).unwrap_err().kind(), ErrorKind::InvalidName, "{bad:?}");
        }
        assert!(check_member("node-7_é").is_ok());
    }
}
