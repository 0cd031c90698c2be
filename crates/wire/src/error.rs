//! Why a message could not be read or written.

use std::fmt;

/// A message that this crate refuses to read or to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    what: &'static str,
}

/// The kinds of [`Error`]: decisions read these, never the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes end before the message does.
    Truncated,
    /// The bytes are not a message of this protocol.
    Malformed,
    /// A count or a length is above its limit.
    TooLarge,
    /// A message of a later version, or one that demands a feature unknown here.
    Unsupported,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: &'static str) -> Self {
        Self { kind, what }
    }

    pub(crate) fn malformed(what: &'static str) -> Self {
        Self::new(ErrorKind::Malformed, what)
    }

    pub(crate) fn too_large(what: &'static str) -> Self {
        Self::new(ErrorKind::TooLarge, what)
    }

    /// What kind of refusal this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The part of the message that was refused.
    pub fn what(&self) -> &'static str {
        self.what
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what;
        match self.kind {
            ErrorKind::Truncated => write!(f, "message ends inside {what}"),
            ErrorKind::Malformed => write!(f, "malformed {what}"),
            ErrorKind::TooLarge => write!(f, "{what} above its limit"),
            ErrorKind::Unsupported => write!(f, "unsupported {what}"),
        }
    }
}

impl std::error::Error for Error {}
