//! What all formats can say: the model that every body is read into and every message written from.

use indexmap::IndexMap;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A whole number that fits into 64 bits with a sign.
    Integer(i64),
    /// A whole number above all of those; never one that [`Value::Integer`] could be.
    Large(u64),
    /// Any other number. JSON says those that are not finite as `null`.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes. JSON has them in base64, see [`Format::Json`](crate::Format::Json).
    Bytes(Vec<u8>),
    /// Values in order.
    Array(Vec<Self>),
    /// Values by name.
    Map(Map),
}

/// Values by name, in the order in which they were put in. Two maps are equal whatever their order.
pub type Map = IndexMap<String, Value>;

impl Value {
    /// Makes a text of it.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or(Self::Large(number), Self::Integer)
    }
}
