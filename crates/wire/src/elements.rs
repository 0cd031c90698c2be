//! The array that every message is, read element by element, so that old and new read each other.

use crate::msgpack::Reader;
use crate::{Error, ErrorKind, Limits, WIRE_VERSION};

/// Reads the elements of a message in order; absent ones are told apart from malformed ones, and
/// those that a newer writer added are skipped.
pub(crate) struct Elements<'a> {
    reader: Reader<'a>,
    left: usize,
    what: &'static str,
}

impl<'a> Elements<'a> {
    /// Reads the array's head; `what` names the message in errors.
    pub(crate) fn begin(
        message: &'a [u8],
        limits: Limits,
        what: &'static str,
    ) -> Result<Self, Error> {
        let mut reader = Reader::new(message, limits);
        let left = reader.array(what)?;
        Ok(Elements { reader, left, what })
    }

    /// Reads the version, the first element of every message, and refuses one that is not ours.
    pub(crate) fn version(&mut self) -> Result<(), Error> {
        match self.required("version", Reader::unsigned)? {
            version if version == u64::from(WIRE_VERSION) => Ok(()),
            _ => Err(Error::new(ErrorKind::Unsupported, "version")),
        }
    }

    /// The next element, read by `read`, which is told its name.
    #[inline]
    pub(crate) fn required<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Reader<'a>, &'static str) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.left = self.left.checked_sub(1).ok_or(Error::malformed(self.what))?;
        read(&mut self.reader, what)
    }

    /// The next element, or its default when the message ends before it.
    #[inline]
    pub(crate) fn optional<T: Default>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Reader<'a>, &'static str) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.left {
            0 => Ok(T::default()),
            _ => self.required(what, read),
        }
    }

    /// Passes over what a newer writer added, and refuses bytes behind the array.
    #[inline]
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.reader.skip(self.left)?;
        match self.reader.rest() {
            [] => Ok(()),
            _ => Err(Error::malformed("message: bytes behind its end")),
        }
    }
}
