//! Why no connection could be had.

/// Why no session could be had.
#[derive(Debug, thiserror::Error)]
#[error("broker {server} {reason}")]
pub struct DialError {
    pub(super) kind: DialErrorKind,
    pub(super) server: String,
    pub(super) reason: String,
}

/// The kinds of [`DialError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialErrorKind {
    /// Not reachable, or not now: worth another try.
    Unavailable,
    /// It refused who we are.
    Refused,
    /// TLS failed: one of us does not trust the other, or only one speaks it.
    Untrusted,
    /// It is older than Natsway needs.
    TooOld,
}

impl DialError {
    /// What kind of failure this is.
    pub fn kind(&self) -> DialErrorKind {
        self.kind
    }
}
