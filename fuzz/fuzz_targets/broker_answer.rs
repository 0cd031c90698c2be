//! What a broker, or whoever speaks in its stead, says to consumer groups and to the shipper: acknowledgement subjects, and answers
//! to direct questions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use natsway_partitioned_consumer::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::stored_message(data);
    if let Ok(text) = std::str::from_utf8(data) {
        fuzzing::acknowledgement_subject(text);
    }
});
