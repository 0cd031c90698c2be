//! The few MessagePack forms that the messages use, written by hand and read with bounds.
//!
//! A reader of one's own, because a derived one cannot skip what it does not know, default what is
//! missing, or check a count before it allocates. Format:
//! <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use rmp::Marker;

use crate::{Error, ErrorKind, Limits};

/// Reads values one after the other from a message.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    limits: Limits,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8], limits: Limits) -> Self {
        Reader { rest: message, limits }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// What lies behind the last value read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Passes over bytes whose values were read from a copy of them.
    ///
    /// # Panics
    /// When there are not so many.
    pub(crate) fn pass(&mut self, length: usize) {
        self.rest = &self.rest[length..];
    }

    #[inline]
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(truncated(what))?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn take_array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(truncated(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    fn marker(&mut self, what: &'static str) -> Result<Marker, Error> {
        let [byte] = self.take_array(what)?;
        Ok(Marker::from_u8(byte))
    }

    #[inline]
    fn length8(&mut self, what: &'static str) -> Result<usize, Error> {
        self.take_array(what).map(|[byte]| usize::from(byte))
    }

    #[inline]
    fn length16(&mut self, what: &'static str) -> Result<usize, Error> {
        self.take_array(what).map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    fn length32(&mut self, what: &'static str) -> Result<usize, Error> {
        let length = u32::from_be_bytes(self.take_array(what)?);
        usize::try_from(length).map_err(|_| Error::too_large(what))
    }

    /// The number of elements of the array that starts here. The caller bounds it.
    #[inline]
    pub(crate) fn array(&mut self, what: &'static str) -> Result<usize, Error> {
        match self.marker(what)? {
            Marker::FixArray(count) => Ok(usize::from(count)),
            Marker::Array16 => self.length16(what),
            Marker::Array32 => self.length32(what),
            _ => Err(Error::malformed(what)),
        }
    }

    /// Whether the next value is an array.
    pub(crate) fn is_array(&self) -> bool {
        let marker = self.rest.first().map(|byte| Marker::from_u8(*byte));
        matches!(marker, Some(Marker::FixArray(_) | Marker::Array16 | Marker::Array32))
    }

    /// An integer that is not negative, of any width. Some writers use the signed forms for all
    /// their integers.
    #[inline]
    pub(crate) fn unsigned(&mut self, what: &'static str) -> Result<u64, Error> {
        let signed = match self.marker(what)? {
            Marker::FixPos(value) => return Ok(u64::from(value)),
            Marker::U8 => return self.take_array(what).map(|[byte]| u64::from(byte)),
            Marker::U16 => {
                return self.take_array(what).map(|bytes| u64::from(u16::from_be_bytes(bytes)));
            }
            Marker::U32 => {
                return self.take_array(what).map(|bytes| u64::from(u32::from_be_bytes(bytes)));
            }
            Marker::U64 => return self.take_array(what).map(u64::from_be_bytes),
            Marker::I8 => i64::from(i8::from_be_bytes(self.take_array(what)?)),
            Marker::I16 => i64::from(i16::from_be_bytes(self.take_array(what)?)),
            Marker::I32 => i64::from(i32::from_be_bytes(self.take_array(what)?)),
            Marker::I64 => i64::from_be_bytes(self.take_array(what)?),
            _ => return Err(Error::malformed(what)),
        };
        u64::try_from(signed).map_err(|_| Error::malformed(what))
    }

    /// Passes over a nil if the next value is one, and says so.
    pub(crate) fn nil(&mut self) -> bool {
        let rest = self.rest.strip_prefix(&[Marker::Null.to_u8()]);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// A string or binary value, as the bytes that it holds, of any length that the message has.
    #[inline]
    pub(crate) fn blob(&mut self, what: &'static str) -> Result<&'a [u8], Error> {
        let length = match self.marker(what)? {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 | Marker::Bin8 => self.length8(what)?,
            Marker::Str16 | Marker::Bin16 => self.length16(what)?,
            Marker::Str32 | Marker::Bin32 => self.length32(what)?,
            _ => return Err(Error::malformed(what)),
        };
        self.take(length, what)
    }

    /// A string or binary value of at most [`Limits::field_bytes`].
    #[inline]
    pub(crate) fn field(&mut self, what: &'static str) -> Result<&'a [u8], Error> {
        let field = self.blob(what)?;
        if field.len() > self.limits.field_bytes {
            return Err(Error::too_large(what));
        }
        Ok(field)
    }

    /// Passes over `count` values of any kind.
    ///
    /// Nested values are counted, not descended into, so that depth costs neither stack nor memory;
    /// each takes a byte at least, so that a count which lies ends with the message.
    pub(crate) fn skip(&mut self, count: usize) -> Result<(), Error> {
        let mut values = count as u64;
        while values > 0 {
            values = (values - 1).saturating_add(self.skip_one()?);
        }
        Ok(())
    }

    /// The bytes that the next `count` values take, whatever they are; passes over them.
    pub(crate) fn span(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Error> {
        let start = self.rest;
        self.skip(count).map_err(|error| Error::new(error.kind(), what))?;
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// Passes over one value without what is nested in it, and gives the number of values that is.
    fn skip_one(&mut self) -> Result<u64, Error> {
        const WHAT: &str = "extension";
        let bytes = match self.marker(WHAT)? {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
                0
            }
            Marker::U8 | Marker::I8 => 1,
            Marker::U16 | Marker::I16 | Marker::FixExt1 => 2,
            Marker::FixExt2 => 3,
            Marker::U32 | Marker::I32 | Marker::F32 => 4,
            Marker::FixExt4 => 5,
            Marker::U64 | Marker::I64 | Marker::F64 => 8,
            Marker::FixExt8 => 9,
            Marker::FixExt16 => 17,
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 | Marker::Bin8 => self.length8(WHAT)?,
            Marker::Str16 | Marker::Bin16 => self.length16(WHAT)?,
            Marker::Str32 | Marker::Bin32 => self.length32(WHAT)?,
            // An extension's type is one byte more.
            Marker::Ext8 => self.length8(WHAT)? + 1,
            Marker::Ext16 => self.length16(WHAT)? + 1,
            Marker::Ext32 => self.length32(WHAT)?.saturating_add(1),
            Marker::FixArray(count) => return Ok(u64::from(count)),
            Marker::Array16 => return Ok(self.length16(WHAT)? as u64),
            Marker::Array32 => return Ok(self.length32(WHAT)? as u64),
            Marker::FixMap(pairs) => return Ok(2 * u64::from(pairs)),
            Marker::Map16 => return Ok(2 * self.length16(WHAT)? as u64),
            Marker::Map32 => return Ok(2 * self.length32(WHAT)? as u64),
            Marker::Reserved => return Err(Error::malformed(WHAT)),
        };
        self.take(bytes, WHAT).map(|_| 0)
    }
}

fn truncated(what: &'static str) -> Error {
    Error::new(ErrorKind::Truncated, what)
}

pub(crate) fn put_array(out: &mut Vec<u8>, count: u8) {
    debug_assert!(count < 16, "only short arrays are written with their count known");
    out.push(0x90 | count);
}

/// Leaves room for the count of an array that is known only later; see [`patch_array16`].
pub(crate) fn reserve_array16(out: &mut Vec<u8>) -> usize {
    out.push(Marker::Array16.to_u8());
    let at = out.len();
    out.extend_from_slice(&[0, 0]);
    at
}

pub(crate) fn patch_array16(out: &mut [u8], at: usize, count: u16) {
    out[at..at + 2].copy_from_slice(&count.to_be_bytes());
}

pub(crate) fn put_nil(out: &mut Vec<u8>) {
    out.push(Marker::Null.to_u8());
}

pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.push(Marker::U32.to_u8());
    out.extend_from_slice(&value.to_be_bytes());
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.push(Marker::U64.to_u8());
    out.extend_from_slice(&value.to_be_bytes());
}

/// Writes a small integer (a version, a flag, a status) in its shortest form.
pub(crate) fn put_u16(out: &mut Vec<u8>, value: u16) {
    match u8::try_from(value) {
        Ok(small @ 0..=0x7f) => out.push(small),
        Ok(byte) => out.extend_from_slice(&[Marker::U8.to_u8(), byte]),
        Err(_) => {
            let [high, low] = value.to_be_bytes();
            out.extend_from_slice(&[Marker::U16.to_u8(), high, low]);
        }
    }
}

pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        length @ 0..=31 => out.push(0xa0 | length as u8),
        length => put_length(out, [Marker::Str8, Marker::Str16, Marker::Str32], length),
    }
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, [Marker::Bin8, Marker::Bin16, Marker::Bin32], bytes.len());
    out.extend_from_slice(bytes);
}

/// Writes the narrowest of three markers that holds `length`, and the length.
#[inline]
fn put_length(out: &mut Vec<u8>, [narrow, middle, wide]: [Marker; 3], length: usize) {
    match length {
        0..=0xff => out.extend_from_slice(&[narrow.to_u8(), length as u8]),
        0x100..=0xffff => {
            let [high, low] = (length as u16).to_be_bytes();
            out.extend_from_slice(&[middle.to_u8(), high, low]);
        }
        _ => {
            out.push(wide.to_u8());
            let length = u32::try_from(length).expect("a message is bounded far below 4 GiB");
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
}
