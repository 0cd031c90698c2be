//! One error type for the library: a kind to act on, a sentence to read, and the cause.

use std::fmt;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why something failed. Decide by [`Error::kind`], never by the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Source>,
}

/// What went wrong, in terms a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A stream, group or member name cannot be used.
    InvalidName,
    /// A configuration breaks a rule of section "validation": the text names the field and the
    /// expectation.
    InvalidConfig,
    /// The entry in the bucket is not the JSON of a group.
    CorruptEntry,
    /// The source stream (or, for an elastic group, its work-queue stream) does not exist.
    StreamNotFound,
    /// No group of that name exists on that stream.
    GroupNotFound,
    /// A group of that name exists with another configuration.
    GroupExists,
    /// Another group's streams or consumers would have the same names.
    NameCollision,
    /// The member is not in the group's membership.
    NotAMember,
    /// The operation does not fit the group, for example adding members to a group that uses
    /// mappings.
    NotAllowed,
    /// Somebody else changed the entry between our read and our write, too many times in a row.
    Conflict,
    /// The member's consumer exists with settings other than this instance's: all instances of a
    /// member must agree.
    ConsumerMismatch,
    /// The member's consumer was deleted by somebody else, and its position is lost (static
    /// groups).
    ConsumerDeleted,
    /// No consumer with a pinned instance was found for the member.
    NotActive,
    /// The group's configuration was changed in a way that this member cannot follow.
    ConfigChanged,
    /// The bucket that holds the groups was deleted.
    BucketNotFound,
    /// The connection is closed for good.
    Closed,
    /// The broker did not answer in time.
    Timeout,
    /// A defect of this library was met. The member has ended, its handlers were cancelled; nothing
    /// else was touched.
    Defect,
    /// The message cannot be acknowledged: it was already settled.
    AlreadySettled,
    /// The broker refused or failed the request; the source says why.
    Broker,
}

impl ErrorKind {
    pub(crate) fn with(self, message: impl Into<String>) -> Error {
        Error { kind: self, message: message.into(), source: None }
    }

    pub(crate) fn caused(self, message: impl Into<String>, source: impl Into<Source>) -> Error {
        Error { kind: self, message: message.into(), source: Some(source.into()) }
    }
}

impl Error {
    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
