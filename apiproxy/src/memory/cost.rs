//! What a request and an answer cost in memory: pure. Measured with `prove memory`, and rounded up.

use http::HeaderMap;

/// A request without fields: its task with all that it waits for, its stream, its head, its
/// message.
pub const REQUEST_BYTES: usize = 8 * 1024;

/// A header field besides its text: its entry and its share of the table, in the request and in its
/// message.
const FIELD_BYTES: usize = 256;

/// How often the text of a head is there: as it came, and in the message. NATS headers are made of
/// pieces.
const TEXT_COPIES: usize = 3;

/// How often a body is there: as it came, and in the message.
const BODY_COPIES: usize = 2;

/// An answer without fields and body: its stream, and what HTTP keeps of it until it is taken.
pub const REPLY_BYTES: usize = 6 * 1024;

/// A field of an answer besides its text: its entry and its share of the table.
const REPLY_FIELD_BYTES: usize = 128;

/// Bodies up to this are copied out of what was read from the broker. Larger ones are kept as they
/// came, and with each the whole piece that was read with it.
pub const COPIED_BYTES: usize = 16 * 1024;

/// The piece that is read from the broker at once, at the least.
const READ_BYTES: usize = 64 * 1024;

/// Answers up to this are small: they may use room that is kept from larger ones.
pub const SMALL_REPLY_BYTES: usize = 64 * 1024;

/// Returns what the head of a request costs that has so many fields; `text_bytes` are its path and
/// the names and values of these.
pub fn head_bytes(fields: usize, text_bytes: usize) -> usize {
    REQUEST_BYTES + FIELD_BYTES * fields + TEXT_COPIES * text_bytes
}

/// Returns what a request's body costs.
pub fn body_bytes(length: usize) -> usize {
    BODY_COPIES.saturating_mul(length)
}

/// Returns what an answer with a body of this length costs.
pub fn reply_bytes(length: usize) -> usize {
    let body = match length <= COPIED_BYTES {
        true => length,
        // Buffers double until a message fits.
        false => length.max(READ_BYTES).checked_next_power_of_two().unwrap_or(usize::MAX / 4),
    };
    REPLY_BYTES + body
}

/// Returns what the fields of an answer cost.
pub fn reply_fields_bytes(headers: &HeaderMap) -> usize {
    let text_bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    REPLY_FIELD_BYTES * headers.len() + text_bytes.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_fields_cost_more_than_their_text() {
        let names = (0..60).map(|number| format!("x{number}").len() + 1);
        let bytes = head_bytes(60, 1 + names.sum::<usize>());
        assert!((20_000..40_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_body_that_is_not_copied_keeps_the_buffer_that_it_came_in() {
        assert_eq!(reply_bytes(0), REPLY_BYTES);
        assert_eq!(reply_bytes(COPIED_BYTES), REPLY_BYTES + COPIED_BYTES);
        assert_eq!(reply_bytes(COPIED_BYTES + 1), REPLY_BYTES + READ_BYTES);
        assert_eq!(reply_bytes(900_000), REPLY_BYTES + (1 << 20));
        assert!(reply_bytes(usize::MAX) > usize::MAX / 8, "and adding to it does not wrap");
    }
}
