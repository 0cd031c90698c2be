//! The few MessagePack forms that the envelope uses, read with bounds and written in their shortest form.
//!
//! A reader of one's own, because a derived one cannot skip what it does not know, default what is missing, or check
//! a count before it allocates. Format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use bytes::{BufMut, BytesMut};
use rmp::Marker;

use crate::{Error, ErrorKind, Limits};

/// Reads values one after the other from a message.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    limits: Limits,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], limits: Limits) -> Reader<'a> {
        Reader { bytes, at: 0, limits }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Error::new(ErrorKind::Truncated, what))?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn marker(&mut self, what: &'static str) -> Result<Marker, Error> {
        Ok(Marker::from_u8(self.take(1, what)?[0]))
    }

    /// A big-endian unsigned integer of `width` bytes, 8 at the most.
    fn big_endian(&mut self, width: usize, what: &'static str) -> Result<u64, Error> {
        let bytes = self.take(width, what)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn length(&mut self, width: usize, what: &'static str) -> Result<usize, Error> {
        usize::try_from(self.big_endian(width, what)?).map_err(|_| Error::too_large(what))
    }

    /// The number of elements of the array that starts here. The caller bounds it.
    pub(crate) fn array(&mut self, what: &'static str) -> Result<usize, Error> {
        match self.marker(what)? {
            Marker::FixArray(count) => Ok(usize::from(count)),
            Marker::Array16 => self.length(2, what),
            Marker::Array32 => self.length(4, what),
            _ => Err(Error::malformed(what)),
        }
    }

    /// An unsigned integer of any width.
    pub(crate) fn unsigned(&mut self, what: &'static str) -> Result<u64, Error> {
        match self.marker(what)? {
            Marker::FixPos(value) => Ok(u64::from(value)),
            Marker::U8 => self.big_endian(1, what),
            Marker::U16 => self.big_endian(2, what),
            Marker::U32 => self.big_endian(4, what),
            Marker::U64 => self.big_endian(8, what),
            _ => Err(Error::malformed(what)),
        }
    }

    /// A string or binary value, as the bytes that it holds, of any length that the message has.
    pub(crate) fn blob(&mut self, what: &'static str) -> Result<&'a [u8], Error> {
        let length = match self.marker(what)? {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 | Marker::Bin8 => self.length(1, what)?,
            Marker::Str16 | Marker::Bin16 => self.length(2, what)?,
            Marker::Str32 | Marker::Bin32 => self.length(4, what)?,
            _ => return Err(Error::malformed(what)),
        };
        self.take(length, what)
    }

    /// A string or binary value of at most [`Limits::field_bytes`].
    pub(crate) fn field(&mut self, what: &'static str) -> Result<&'a [u8], Error> {
        let field = self.blob(what)?;
        if field.len() > self.limits.field_bytes {
            return Err(Error::too_large(what));
        }
        Ok(field)
    }

    /// Passes over `count` values of any kind, nested at most [`Limits::skip_depth`] deep.
    pub(crate) fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.skip_nested(count, self.limits.skip_depth)
    }

    fn skip_nested(&mut self, count: usize, depth: usize) -> Result<(), Error> {
        const WHAT: &str = "extension";
        let deeper = depth.checked_sub(1).ok_or(Error::too_large("nesting"))?;
        // Each value takes a byte at least, so a huge count ends at the end of the message.
        for _ in 0..count {
            let scalar_bytes = match self.marker(WHAT)? {
                Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => 0,
                Marker::U8 | Marker::I8 => 1,
                Marker::U16 | Marker::I16 | Marker::FixExt1 => 2,
                Marker::FixExt2 => 3,
                Marker::U32 | Marker::I32 | Marker::F32 => 4,
                Marker::FixExt4 => 5,
                Marker::U64 | Marker::I64 | Marker::F64 => 8,
                Marker::FixExt8 => 9,
                Marker::FixExt16 => 17,
                Marker::FixStr(length) => usize::from(length),
                Marker::Str8 | Marker::Bin8 => self.length(1, WHAT)?,
                Marker::Str16 | Marker::Bin16 => self.length(2, WHAT)?,
                Marker::Str32 | Marker::Bin32 => self.length(4, WHAT)?,
                Marker::Ext8 => self.length(1, WHAT)?.saturating_add(1),
                Marker::Ext16 => self.length(2, WHAT)?.saturating_add(1),
                Marker::Ext32 => self.length(4, WHAT)?.saturating_add(1),
                Marker::FixArray(count) => {
                    self.skip_nested(usize::from(count), deeper)?;
                    0
                }
                Marker::Array16 => {
                    let count = self.length(2, WHAT)?;
                    self.skip_nested(count, deeper)?;
                    0
                }
                Marker::Array32 => {
                    let count = self.length(4, WHAT)?;
                    self.skip_nested(count, deeper)?;
                    0
                }
                Marker::FixMap(count) => {
                    self.skip_nested(usize::from(count) * 2, deeper)?;
                    0
                }
                Marker::Map16 => {
                    let count = self.length(2, WHAT)?;
                    self.skip_nested(count * 2, deeper)?;
                    0
                }
                Marker::Map32 => {
                    let count = self.length(4, WHAT)?;
                    self.skip_nested(count.saturating_mul(2), deeper)?;
                    0
                }
                Marker::Reserved => return Err(Error::malformed(WHAT)),
            };
            self.take(scalar_bytes, WHAT)?;
        }
        Ok(())
    }

    /// What lies behind the last value read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }
}

pub(crate) fn put_array(out: &mut BytesMut, count: u8) {
    debug_assert!(count < 16, "only short arrays are written with their count known");
    out.put_u8(0x90 | count);
}

/// Leaves room for the count of an array that is known only later; see [`patch_array16`].
pub(crate) fn reserve_array16(out: &mut BytesMut) -> usize {
    out.put_u8(Marker::Array16.to_u8());
    let at = out.len();
    out.put_u16(0);
    at
}

pub(crate) fn patch_array16(out: &mut BytesMut, at: usize, count: u16) {
    out[at..at + 2].copy_from_slice(&count.to_be_bytes());
}

pub(crate) fn put_unsigned(out: &mut BytesMut, value: u64) {
    match value {
        0..=0x7f => out.put_u8(value as u8),
        0x80..=0xff => {
            out.put_u8(Marker::U8.to_u8());
            out.put_u8(value as u8);
        }
        0x100..=0xffff => {
            out.put_u8(Marker::U16.to_u8());
            out.put_u16(value as u16);
        }
        0x1_0000..=0xffff_ffff => {
            out.put_u8(Marker::U32.to_u8());
            out.put_u32(value as u32);
        }
        _ => {
            out.put_u8(Marker::U64.to_u8());
            out.put_u64(value);
        }
    }
}

pub(crate) fn put_str(out: &mut BytesMut, text: &str) {
    match text.len() {
        length @ 0..=31 => out.put_u8(0xa0 | length as u8),
        length @ 32..=0xff => {
            out.put_u8(Marker::Str8.to_u8());
            out.put_u8(length as u8);
        }
        length @ 0x100..=0xffff => {
            out.put_u8(Marker::Str16.to_u8());
            out.put_u16(length as u16);
        }
        length => {
            out.put_u8(Marker::Str32.to_u8());
            out.put_u32(u32::try_from(length).expect("a field is bounded far below 4 GiB"));
        }
    }
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_bin(out: &mut BytesMut, bytes: &[u8]) {
    match bytes.len() {
        length @ 0..=0xff => {
            out.put_u8(Marker::Bin8.to_u8());
            out.put_u8(length as u8);
        }
        length @ 0x100..=0xffff => {
            out.put_u8(Marker::Bin16.to_u8());
            out.put_u16(length as u16);
        }
        length => {
            out.put_u8(Marker::Bin32.to_u8());
            out.put_u32(u32::try_from(length).expect("a message is bounded far below 4 GiB"));
        }
    }
    out.put_slice(bytes);
}
