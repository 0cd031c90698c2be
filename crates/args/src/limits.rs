//! How much a reader may make of what it reads. The length of the bytes is their owner's to bound.

/// Bounds of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most values in all, those inside others counted: a key of a map and its value are one.
    pub values: usize,
    /// How many maps and arrays may stand inside one another.
    pub depth: usize,
}

impl Limits {
    /// What a route's requests have by default. A few bytes can be a value, which costs some
    /// hundred in memory.
    pub const REQUEST: Self = Self { values: 10_000, depth: 32 };

    /// What a backend's reply has: more, for it is trusted with more.
    pub const REPLY: Self = Self { values: 200_000, depth: 100 };

    /// The deepest that a route may ask for: what is read is walked by recursion.
    pub const MOST_DEPTH: usize = 100;

    /// The most values that a route may ask for.
    pub const MOST_VALUES: usize = 1_000_000;
}

/// Why bytes are no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// They are not of the format, or say what the model has no word for.
    #[error("{0}")]
    Malformed(String),
    /// More values than may be.
    #[error("more than {0} values")]
    TooMany(usize),
    /// Deeper than may be.
    #[error("maps and arrays inside one another deeper than {0}")]
    TooDeep(usize),
}

impl ReadError {
    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }
}

/// What is left of the limits.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    values: usize,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, values: 0 }
    }

    /// Takes one value.
    pub(crate) fn value(&mut self) -> Result<(), ReadError> {
        self.values += 1;
        match self.values > self.limits.values {
            true => Err(ReadError::TooMany(self.limits.values)),
            false => Ok(()),
        }
    }

    /// Checks that a map or an array may stand below so many others.
    pub(crate) fn level(&self, above: usize) -> Result<(), ReadError> {
        match above >= self.limits.depth {
            true => Err(ReadError::TooDeep(self.limits.depth)),
            false => Ok(()),
        }
    }

    /// How much room may be kept for so many values that are only announced.
    pub(crate) fn room(&self, announced: usize) -> usize {
        const MOST_AHEAD: usize = 64;
        announced.min(MOST_AHEAD).min(self.limits.values.saturating_sub(self.values))
    }
}
