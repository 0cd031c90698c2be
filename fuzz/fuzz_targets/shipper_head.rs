//! A header of the shipper that can be read is written again and reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use natsway_shipper::head::Head;

fuzz_target!(|text: &str| {
    let Ok(head) = text.parse::<Head>() else { return };
    assert!(head.start <= head.end && head.floor <= head.start && head.since <= head.floor);
    assert_eq!(head.to_string().parse(), Ok(head));
});
