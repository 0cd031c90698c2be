//! A header of the shipper that can be read is written again and reads the same.

use natsway_shipper::head::Head;

/// See the module.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(head) = text.parse::<Head>() else { return };
    assert!(head.start <= head.end && head.floor <= head.start && head.since <= head.floor);
    assert_eq!(head.to_string().parse(), Ok(head));
}
