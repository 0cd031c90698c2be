//! What both libraries agree on in JSON.

use serde::{Deserialize, Deserializer};

/// Reads `null` as if the field was not there: the other library writes it for empty lists.
pub(super) fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Option::deserialize(input).map(Option::unwrap_or_default)
}
