//! JSON, with bytes in base64.

use std::cell::RefCell;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::put;
use crate::limits::Budget;
use crate::{Map, ReadError, Value};

/// The one key of a map that is bytes; behind further `$` it is a key like others.
const BASE64: &str = "$base64";

pub(super) fn read(bytes: &[u8], budget: &mut Budget) -> Result<Value, ReadError> {
    let reading = Reading { budget: RefCell::new(budget), fault: RefCell::new(None) };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = Seed { reading: &reading, above: 0 }.deserialize(&mut json);
    let read = read.and_then(|value| json.end().map(|()| value));
    read.map_err(|error| {
        // Ours says more than the library, which only adds where it stands.
        let fault = reading.fault.take();
        fault.unwrap_or_else(|| ReadError::malformed(error.to_string()))
    })
}

/// What is kept while a document is read: errors of the library are text alone.
struct Reading<'b> {
    budget: RefCell<&'b mut Budget>,
    fault: RefCell<Option<ReadError>>,
}

impl Reading<'_> {
    /// Keeps a fault of ours beside the library's error.
    fn keep<T, E: Error>(&self, result: Result<T, ReadError>) -> Result<T, E> {
        result.map_err(|fault| {
            let error = E::custom(&fault);
            self.fault.replace(Some(fault));
            error
        })
    }
}

/// Reads the next value, which stands below so many others.
#[derive(Clone, Copy)]
struct Seed<'r, 'b> {
    reading: &'r Reading<'b>,
    above: usize,
}

impl Seed<'_, '_> {
    fn level<E: Error>(&self) -> Result<Self, E> {
        let level = self.reading.budget.borrow().level(self.above);
        self.reading.keep(level)?;
        Ok(Self { above: self.above + 1, ..*self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let counted = self.reading.budget.borrow_mut().value();
        self.reading.keep(counted)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, yes: bool) -> Result<Value, E> {
        Ok(Value::Bool(yes))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::text(text))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.level()?;
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.level()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(inner)?;
            self.reading.keep(put(&mut map, key, value))?;
        }
        self.reading.keep(unescaped(map))
    }
}

/// What a map of JSON stands for.
fn unescaped(mut map: Map) -> Result<Value, ReadError> {
    let only = if map.len() == 1 { map.pop() } else { None };
    let Some((key, value)) = only else { return Ok(Value::Map(map)) };
    if key == BASE64 {
        let Value::Text(text) = &value else {
            return Err(ReadError::malformed("`$base64` is no text"));
        };
        let bytes = STANDARD.decode(text);
        return bytes
            .map(Value::Bytes)
            .map_err(|_| ReadError::malformed("`$base64` is not base64 with padding"));
    }
    let key = if is_escaped(&key) { key[1..].to_owned() } else { key };
    map.insert(key, value);
    Ok(Value::Map(map))
}

/// Whether a key is `$base64` behind further `$`.
fn is_escaped(key: &str) -> bool {
    key.len() > BASE64.len() && is_like_base64(key)
}

fn is_like_base64(key: &str) -> bool {
    key.strip_suffix(BASE64).is_some_and(|before| before.bytes().all(|byte| byte == b'$'))
}

pub(super) fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(yes) => plain(out, yes),
        Value::Integer(number) => plain(out, number),
        Value::Large(number) => plain(out, number),
        Value::Float(number) => plain(out, number),
        Value::Text(text) => plain(out, text),
        Value::Bytes(bytes) => {
            out.extend_from_slice(b"{\"$base64\":\"");
            out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            out.extend_from_slice(b"\"}");
        }
        Value::Array(values) => {
            out.push(b'[');
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                write(out, value);
            }
            out.push(b']');
        }
        Value::Map(map) => write_map(out, map),
    }
}

pub(super) fn write_map(out: &mut Vec<u8>, map: &Map) {
    let is_alone = map.len() == 1;
    out.push(b'{');
    for (place, (key, value)) in map.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        match is_alone && is_like_base64(key) {
            true => plain(out, &format!("${key}")),
            false => plain(out, key),
        }
        out.push(b':');
        write(out, value);
    }
    out.push(b'}');
}

/// As the library writes it: a number that is not finite is `null` to it.
fn plain<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a vector takes all that is written");
}
