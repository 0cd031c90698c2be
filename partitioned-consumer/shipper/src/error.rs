//! Why the shipper cannot begin, or go on: a kind to act on, a sentence to read, and the cause.

use std::fmt;
use std::io;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why something failed. Decide by [`Error::kind`], never by the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// What was done; nothing where the cause says it all.
    doing: String,
    source: Option<Source>,
}

/// What went wrong, in terms a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The settings cannot be used, whoever tries again: the text says which, and what is expected.
    InvalidConfig,
    /// Another process has the directory, or ships the source.
    Taken,
    /// What is there was begun for something else: another mode, another version, a stream of
    /// others.
    Mismatch,
    /// A file or directory cannot be read or written.
    Disk,
    /// A disk is full, which passes.
    DiskFull,
    /// The broker refused or failed a request, or cannot do what is asked of it.
    Broker,
    /// It was asked to stop before it had what it waited for.
    Stopped,
    /// A defect of this program was met.
    Defect,
}

impl ErrorKind {
    pub(crate) fn with(self, message: impl Into<String>) -> Error {
        Error { kind: self, doing: message.into(), source: None }
    }

    pub(crate) fn caused(self, doing: impl Into<String>, source: impl Into<Source>) -> Error {
        Error { kind: self, doing: doing.into(), source: Some(source.into()) }
    }
}

impl Error {
    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// An error that says all by itself.
    pub(crate) fn from_kind(kind: ErrorKind, error: impl Into<Source>) -> Self {
        kind.caused("", error)
    }

    /// The failure of a disk, with what it was about.
    pub(crate) fn disk(about: impl Into<String>, error: io::Error) -> Self {
        disk_kind(&error).caused(about, error)
    }
}

/// What the failure of a disk is to a caller.
pub(crate) fn disk_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::DiskFull,
        // That of a lock which another process holds.
        io::ErrorKind::ResourceBusy => ErrorKind::Taken,
        _ => ErrorKind::Disk,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) if self.doing.is_empty() => source.fmt(f),
            _ => f.write_str(&self.doing),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_deref()?;
        if self.doing.is_empty() { source.source() } else { Some(source) }
    }
}

/// Returns an error with all that it comes from, each said once: some errors name their cause
/// themselves.
pub(crate) fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_its_kind_and_a_cause_is_said_once() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::disk("web1.json", full());
        assert_eq!(error.kind(), ErrorKind::DiskFull);
        assert_eq!(whole(&error), format!("web1.json: {}", full()));
        let named = ErrorKind::Broker.caused(format!("web1.json: {}", full()), full());
        assert_eq!(whole(&named), format!("web1.json: {}", full()));
        assert_eq!(
            whole(&Error::from_kind(ErrorKind::Disk, named)),
            format!("web1.json: {}", full())
        );
        assert_eq!(Error::disk("a", io::Error::other("b")).kind(), ErrorKind::Disk);
    }
}
