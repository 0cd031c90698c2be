//! MessagePack.

use rmp::Marker;
use rmp::decode::RmpRead;
use rmp::encode;

use super::put;
use crate::limits::Budget;
use crate::{Map, ReadError, Value};

pub(super) fn read(mut bytes: &[u8], budget: &mut Budget) -> Result<Value, ReadError> {
    let value = value(&mut bytes, 0, budget)?;
    match bytes.len() {
        0 => Ok(value),
        left => Err(ReadError::malformed(format!("{left} bytes behind the value"))),
    }
}

fn value(bytes: &mut &[u8], above: usize, budget: &mut Budget) -> Result<Value, ReadError> {
    budget.value()?;
    let marker = Marker::from_u8(number(bytes.read_u8())?);
    Ok(match marker {
        Marker::Null => Value::Null,
        Marker::True => Value::Bool(true),
        Marker::False => Value::Bool(false),
        Marker::FixPos(small) => Value::Integer(small.into()),
        Marker::FixNeg(small) => Value::Integer(small.into()),
        Marker::U8 => Value::Integer(number(bytes.read_data_u8())?.into()),
        Marker::U16 => Value::Integer(number(bytes.read_data_u16())?.into()),
        Marker::U32 => Value::Integer(number(bytes.read_data_u32())?.into()),
        Marker::U64 => Value::from(number(bytes.read_data_u64())?),
        Marker::I8 => Value::Integer(number(bytes.read_data_i8())?.into()),
        Marker::I16 => Value::Integer(number(bytes.read_data_i16())?.into()),
        Marker::I32 => Value::Integer(number(bytes.read_data_i32())?.into()),
        Marker::I64 => Value::Integer(number(bytes.read_data_i64())?),
        Marker::F32 => Value::Float(number(bytes.read_data_f32())?.into()),
        Marker::F64 => Value::Float(number(bytes.read_data_f64())?),
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
            Value::Text(text(bytes, marker)?)
        }
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
            let length = length(bytes, marker)?;
            Value::Bytes(take(bytes, length)?.to_vec())
        }
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
            budget.level(above)?;
            let length = length(bytes, marker)?;
            let mut values = Vec::with_capacity(budget.room(length));
            for _ in 0..length {
                values.push(value(bytes, above + 1, budget)?);
            }
            Value::Array(values)
        }
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
            budget.level(above)?;
            let length = length(bytes, marker)?;
            let mut map = Map::with_capacity(budget.room(length));
            for _ in 0..length {
                let key = Marker::from_u8(number(bytes.read_u8())?);
                let key = text(bytes, key)?;
                put(&mut map, key, value(bytes, above + 1, budget)?)?;
            }
            Value::Map(map)
        }
        Marker::FixExt1
        | Marker::FixExt2
        | Marker::FixExt4
        | Marker::FixExt8
        | Marker::FixExt16
        | Marker::Ext8
        | Marker::Ext16
        | Marker::Ext32 => {
            return Err(ReadError::malformed(
                "an extension type, a time for instance: say it as text",
            ));
        }
        Marker::Reserved => return Err(ReadError::malformed("the byte c1 begins no value")),
    })
}

/// Takes one value as it stands, without reading what is in it.
pub(crate) fn take_raw<'b>(bytes: &mut &'b [u8]) -> Result<&'b [u8], ReadError> {
    let all = *bytes;
    let mut values = 1_usize;
    while values > 0 {
        let marker = Marker::from_u8(number(bytes.read_u8())?);
        let inner = match marker {
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => length(bytes, marker)?,
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                length(bytes, marker)?.checked_mul(2).ok_or_else(broken_off)?
            }
            _ => {
                let skipped = content_bytes(bytes, marker)?;
                take(bytes, skipped)?;
                0
            }
        };
        values = (values - 1).checked_add(inner).ok_or_else(broken_off)?;
    }
    Ok(&all[..all.len() - bytes.len()])
}

/// How many bytes follow the marker of what holds no other values.
fn content_bytes(bytes: &mut &[u8], marker: Marker) -> Result<usize, ReadError> {
    Ok(match marker {
        Marker::U8 | Marker::I8 => 1,
        Marker::U16 | Marker::I16 => 2,
        Marker::U32 | Marker::I32 | Marker::F32 => 4,
        Marker::U64 | Marker::I64 | Marker::F64 => 8,
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => length(bytes, marker)?,
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => length(bytes, marker)?,
        Marker::FixExt1 => 2,
        Marker::FixExt2 => 3,
        Marker::FixExt4 => 5,
        Marker::FixExt8 => 9,
        Marker::FixExt16 => 17,
        Marker::Ext8 => 1 + usize::from(number(bytes.read_data_u8())?),
        Marker::Ext16 => 1 + usize::from(number(bytes.read_data_u16())?),
        Marker::Ext32 => {
            let length = usize::try_from(number(bytes.read_data_u32())?).ok();
            length.and_then(|length| length.checked_add(1)).ok_or_else(broken_off)?
        }
        _ => 0,
    })
}

/// Takes a map's head: how many keys it has.
pub(crate) fn take_map(bytes: &mut &[u8]) -> Result<usize, ReadError> {
    let marker = Marker::from_u8(number(bytes.read_u8())?);
    match marker {
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => length(bytes, marker),
        _ => Err(ReadError::malformed("it is no map")),
    }
}

/// Takes a map's key.
pub(crate) fn take_key(bytes: &mut &[u8]) -> Result<String, ReadError> {
    let marker = Marker::from_u8(number(bytes.read_u8())?);
    text(bytes, marker)
}

fn number<T, E>(read: Result<T, E>) -> Result<T, ReadError> {
    read.map_err(|_| broken_off())
}

fn broken_off() -> ReadError {
    ReadError::malformed("it breaks off")
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> Result<&'b [u8], ReadError> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or_else(broken_off)?;
    *bytes = rest;
    Ok(taken)
}

/// The length that follows, or stands in, a marker of text, bytes, arrays and maps.
fn length(bytes: &mut &[u8], marker: Marker) -> Result<usize, ReadError> {
    let length = match marker {
        Marker::FixStr(length) | Marker::FixArray(length) | Marker::FixMap(length) => length.into(),
        Marker::Str8 | Marker::Bin8 => number(bytes.read_data_u8())?.into(),
        Marker::Str16 | Marker::Bin16 | Marker::Array16 | Marker::Map16 => {
            number(bytes.read_data_u16())?.into()
        }
        _ => number(bytes.read_data_u32())?,
    };
    usize::try_from(length).map_err(|_| broken_off())
}

fn text(bytes: &mut &[u8], marker: Marker) -> Result<String, ReadError> {
    if !matches!(marker, Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32) {
        return Err(ReadError::malformed("a map's key is no text"));
    }
    let length = length(bytes, marker)?;
    let text = take(bytes, length)?.to_vec();
    String::from_utf8(text).map_err(|_| ReadError::malformed("a text is not UTF-8"))
}

/// Writing into memory does not fail.
const FITS: &str = "a vector takes all that is written";

pub(super) fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => encode::write_nil(out).expect(FITS),
        Value::Bool(yes) => encode::write_bool(out, *yes).expect(FITS),
        Value::Integer(number) => {
            encode::write_sint(out, *number).expect(FITS);
        }
        Value::Large(number) => {
            encode::write_uint(out, *number).expect(FITS);
        }
        Value::Float(number) => encode::write_f64(out, *number).expect(FITS),
        Value::Text(text) => encode::write_str(out, text).expect(FITS),
        Value::Bytes(bytes) => encode::write_bin(out, bytes).expect(FITS),
        Value::Array(values) => {
            encode::write_array_len(out, count(values.len())).expect(FITS);
            for value in values {
                write(out, value);
            }
        }
        Value::Map(map) => write_map(out, map),
    }
}

pub(super) fn write_map(out: &mut Vec<u8>, map: &Map) {
    encode::write_map_len(out, count(map.len())).expect(FITS);
    for (key, value) in map {
        encode::write_str(out, key).expect(FITS);
        write(out, value);
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("limits are far below")
}
