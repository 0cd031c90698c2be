//! How a part of a play ends.

use std::{fmt, io};

/// What a part of a play gives, or why the play ends.
pub(super) type Played<T> = Result<T, PlayError>;

/// Why a play ends before it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PlayError {
    /// Something did not do its work; the text says what.
    Failed(String),
    /// The broker did not permit something to the role that is watched.
    Violated {
        /// What it did.
        operation: &'static str,
        /// Where.
        subject: String,
    },
}

impl fmt::Display for PlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(what) => f.write_str(what),
            Self::Violated { operation, subject } => write!(f, "{operation} {subject}"),
        }
    }
}

impl std::error::Error for PlayError {}

impl From<io::Error> for PlayError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}
