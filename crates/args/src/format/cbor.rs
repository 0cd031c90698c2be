//! CBOR.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use super::put;
use crate::limits::Budget;
use crate::{Map, ReadError, Value};

pub(super) fn read(bytes: &[u8], budget: &mut Budget) -> Result<Value, ReadError> {
    let mut decoder = Decoder::new(bytes);
    let value = value(&mut decoder, 0, budget)?;
    match bytes.len() - decoder.position() {
        0 => Ok(value),
        left => Err(ReadError::malformed(format!("{left} bytes behind the value"))),
    }
}

fn value(decoder: &mut Decoder<'_>, above: usize, budget: &mut Budget) -> Result<Value, ReadError> {
    budget.value()?;
    Ok(match kind(decoder)? {
        Type::Null => {
            decoder.null().map_err(malformed)?;
            Value::Null
        }
        Type::Undefined => {
            decoder.undefined().map_err(malformed)?;
            Value::Null
        }
        Type::Bool => Value::Bool(decoder.bool().map_err(malformed)?),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => {
            Value::from(decoder.u64().map_err(malformed)?)
        }
        Type::I8 | Type::I16 | Type::I32 | Type::I64 => {
            Value::Integer(decoder.i64().map_err(malformed)?)
        }
        Type::F16 => Value::Float(half(decoder)?),
        Type::F32 => Value::Float(decoder.f32().map_err(malformed)?.into()),
        Type::F64 => Value::Float(decoder.f64().map_err(malformed)?),
        Type::String | Type::StringIndef => Value::Text(text(decoder)?),
        Type::Bytes | Type::BytesIndef => {
            let mut bytes = Vec::new();
            for piece in decoder.bytes_iter().map_err(malformed)? {
                bytes.extend_from_slice(piece.map_err(malformed)?);
            }
            Value::Bytes(bytes)
        }
        Type::Array | Type::ArrayIndef => {
            budget.level(above)?;
            let length = decoder.array().map_err(malformed)?;
            let mut values = Vec::with_capacity(budget.room(announced(length)));
            let mut left = length;
            while goes_on(decoder, &mut left)? {
                values.push(value(decoder, above + 1, budget)?);
            }
            Value::Array(values)
        }
        Type::Map | Type::MapIndef => {
            budget.level(above)?;
            let length = decoder.map().map_err(malformed)?;
            let mut map = Map::with_capacity(budget.room(announced(length)));
            let mut left = length;
            while goes_on(decoder, &mut left)? {
                if !matches!(kind(decoder)?, Type::String | Type::StringIndef) {
                    return Err(ReadError::malformed("a map's key is no text"));
                }
                let key = text(decoder)?;
                put(&mut map, key, value(decoder, above + 1, budget)?)?;
            }
            Value::Map(map)
        }
        Type::Int => return Err(ReadError::malformed("a number below those of 64 bits")),
        other => return Err(ReadError::malformed(format!("what is {other} has no meaning here"))),
    })
}

/// What comes next. Tags are passed over: they say how to read what they stand before, and all here
/// is read as it is.
fn kind(decoder: &mut Decoder<'_>) -> Result<Type, ReadError> {
    loop {
        match decoder.datatype().map_err(malformed)? {
            Type::Tag => drop(decoder.tag().map_err(malformed)?),
            kind => return Ok(kind),
        }
    }
}

fn announced(length: Option<u64>) -> usize {
    length.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX))
}

/// Whether another element follows; takes the end of one of no known length.
fn goes_on(decoder: &mut Decoder<'_>, left: &mut Option<u64>) -> Result<bool, ReadError> {
    match left {
        Some(0) => Ok(false),
        Some(left) => {
            *left -= 1;
            Ok(true)
        }
        None if decoder.datatype().map_err(malformed)? == Type::Break => {
            decoder.skip().map_err(malformed)?;
            Ok(false)
        }
        None => Ok(true),
    }
}

fn text(decoder: &mut Decoder<'_>) -> Result<String, ReadError> {
    let mut text = String::new();
    for piece in decoder.str_iter().map_err(malformed)? {
        text.push_str(piece.map_err(malformed)?);
    }
    Ok(text)
}

/// A float of 16 bits (RFC 8949, appendix D).
fn half(decoder: &mut Decoder<'_>) -> Result<f64, ReadError> {
    let place = decoder.position();
    let bytes = decoder.input().get(place + 1..place + 3);
    let bytes = bytes.and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
    let bits = u16::from_be_bytes(bytes.ok_or_else(|| ReadError::malformed("it breaks off"))?);
    decoder.set_position(place + 3);
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => mantissa * 2_f64.powi(-24),
        0x1f if mantissa == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (mantissa + 1024.0) * 2_f64.powi(exponent - 25),
    };
    Ok(if bits & 0x8000 == 0 { size } else { -size })
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn malformed(error: minicbor::decode::Error) -> ReadError {
    match error.is_end_of_input() {
        true => ReadError::malformed("it breaks off"),
        false => ReadError::malformed(error.to_string()),
    }
}

/// Writing into memory does not fail.
const FITS: &str = "a vector takes all that is written";

pub(super) fn write(out: &mut Vec<u8>, value: &Value) {
    put_value(&mut Encoder::new(out), value);
}

pub(super) fn write_map(out: &mut Vec<u8>, map: &Map) {
    put_map(&mut Encoder::new(out), map);
}

fn put_value(encoder: &mut Encoder<&mut Vec<u8>>, value: &Value) {
    match value {
        Value::Null => drop(encoder.null().expect(FITS)),
        Value::Bool(yes) => drop(encoder.bool(*yes).expect(FITS)),
        Value::Integer(number) => drop(encoder.i64(*number).expect(FITS)),
        Value::Large(number) => drop(encoder.u64(*number).expect(FITS)),
        Value::Float(number) => drop(encoder.f64(*number).expect(FITS)),
        Value::Text(text) => drop(encoder.str(text).expect(FITS)),
        Value::Bytes(bytes) => drop(encoder.bytes(bytes).expect(FITS)),
        Value::Array(values) => {
            encoder.array(values.len() as u64).expect(FITS);
            for value in values {
                put_value(encoder, value);
            }
        }
        Value::Map(map) => put_map(encoder, map),
    }
}

fn put_map(encoder: &mut Encoder<&mut Vec<u8>>, map: &Map) {
    encoder.map(map.len() as u64).expect(FITS);
    for (key, value) in map {
        encoder.str(key).expect(FITS);
        put_value(encoder, value);
    }
}
