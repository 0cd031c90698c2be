//! Why a broker cannot be described that way, and what may be shown of it.

use std::io;
use std::path::{Path, PathBuf};

/// A broker that cannot be described that way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerConfigError {
    /// A URL is no broker's.
    #[error(
        "broker url {url:?}: expected nats://host:port or tls://host:port, several with commas \
         between; what is neither letter nor digit in a user name or password must be \
         percent-encoded"
    )]
    Url {
        /// The URLs, without their user parts.
        url: String,
    },
    /// A file of credentials or certificates cannot be read, or is not one. What was given for its
    /// path is shown only where it is one: it may be the secret itself, put where a path belongs.
    #[error("{what} {}", shown(path))]
    File {
        /// What the file should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        source: io::Error,
    },
    /// The seed of an NKey is none.
    #[error("the nkey is no seed of a user: expected SU and 56 more letters and digits")]
    Seed,
    /// Options that exclude each other, or half of a pair.
    #[error("{0}")]
    Conflict(&'static str),
    /// An inbox prefix is none.
    #[error(
        "inbox prefix {0:?}: expected a subject that begins with _INBOX, such as _INBOX_apiproxy, \
         without wildcards"
    )]
    InboxPrefix(String),
}

/// What `read` makes of a file, or its name and what is wrong with it.
pub(crate) fn checked<T>(
    what: &'static str,
    path: &Path,
    read: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, BrokerConfigError> {
    read(path).map_err(|source| BrokerConfigError::File { what, path: path.to_owned(), source })
}

pub(crate) fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// What was given for a path, where it is one that exists, or could: else only how long it is.
pub(crate) fn shown(path: &Path) -> String {
    let is_directory = |parent: &Path| parent.parent().is_some() && parent.is_dir();
    if path.symlink_metadata().is_ok() || path.parent().is_some_and(is_directory) {
        return path.display().to_string();
    }
    let length = path.as_os_str().len();
    format!(
        "({length} bytes that name no file; not shown, for they may be the secret itself: give the \
         path of a file)"
    )
}
