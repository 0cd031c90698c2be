//! Where workers hear what comes back to them.

/// The inbox prefix of workers, so that their permissions can be written down.
pub(crate) const INBOX_PREFIX: &str = "_INBOX_worker";
