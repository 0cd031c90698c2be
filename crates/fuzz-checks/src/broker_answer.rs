//! What a broker, or whoever speaks in its stead, says to consumer groups and to the shipper:
//! acknowledgement subjects, and answers to direct questions.

use natsway_partitioned_consumer::fuzzing as groups;
use natsway_shipper::fuzzing as shipper;

/// See the module.
pub fn check(data: &[u8]) {
    shipper::stored_message(data);
    if let Ok(text) = std::str::from_utf8(data) {
        groups::acknowledgement_subject(text);
    }
}
