//! The formats in which a message is written.

mod cbor;
mod json;
pub(crate) mod msgpack;

use crate::limits::Budget;
use crate::{Limits, Map, ReadError, Value};

/// How a message is written.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// MessagePack.
    #[default]
    Msgpack,
    /// JSON (RFC 8259). Bytes are `{"$base64": "…"}`; a map whose one key is `$base64` behind any
    /// number of further `$` has one more of them, and loses it when it is read.
    Json,
    /// CBOR (RFC 8949).
    Cbor,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Msgpack, Self::Json, Self::Cbor];

    /// Returns its name, as a route has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Msgpack => "msgpack",
            Self::Json => "json",
            Self::Cbor => "cbor",
        }
    }

    /// Returns its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Msgpack => "application/msgpack",
            Self::Json => "application/json",
            Self::Cbor => "application/cbor",
        }
    }

    /// Reads one value, which must be all of the bytes.
    ///
    /// # Errors
    /// [`ReadError`]: not of the format, a map with two equal keys or with one that is no text, a
    /// number beyond 64 bits, an extension of MessagePack, or above the limits.
    pub fn read(self, bytes: &[u8], limits: Limits) -> Result<Value, ReadError> {
        self.read_within(bytes, &mut Budget::new(limits))
    }

    pub(crate) fn read_within(self, bytes: &[u8], budget: &mut Budget) -> Result<Value, ReadError> {
        match self {
            Self::Msgpack => msgpack::read(bytes, budget),
            Self::Json => json::read(bytes, budget),
            Self::Cbor => cbor::read(bytes, budget),
        }
    }

    /// Writes a value.
    pub fn write(self, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Msgpack => msgpack::write(&mut out, value),
            Self::Json => json::write(&mut out, value),
            Self::Cbor => cbor::write(&mut out, value),
        }
        out
    }

    /// Writes a map.
    pub fn write_map(self, map: &Map) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        match self {
            Self::Msgpack => msgpack::write_map(&mut out, map),
            Self::Json => json::write_map(&mut out, map),
            Self::Cbor => cbor::write_map(&mut out, map),
        }
        out
    }
}

/// Writes a value as JSON for a script: without the two letters that end a line there but not in
/// JSON.
pub(crate) fn write_for_script(value: &Value) -> String {
    let mut out = Vec::new();
    json::write(&mut out, value);
    let text = String::from_utf8(out).expect("JSON is written as UTF-8");
    text.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// Puts a value into a map that is being read: each key is there once.
fn put(map: &mut Map, key: String, value: Value) -> Result<(), ReadError> {
    match map.entry(key) {
        indexmap::map::Entry::Occupied(taken) => {
            Err(ReadError::malformed(format!("a map has the key {:?} twice", taken.key())))
        }
        indexmap::map::Entry::Vacant(free) => {
            free.insert(value);
            Ok(())
        }
    }
}
