//! What a broker, or whoever speaks in its stead, says to consumer groups, to the shipper and to
//! gateways: acknowledgement subjects, answers to direct questions, acknowledgements of a stream.

use natsway_caller::publish::read_ack;
use natsway_partitioned_consumer::fuzzing as groups;
use natsway_shipper::fuzzing as shipper;

/// See the module.
pub fn check(data: &[u8]) {
    shipper::stored_message(data);
    if let Ok(stored) = read_ack(data) {
        assert!(stored.sequence > 0 && !stored.stream.is_empty(), "{stored:?}");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        groups::acknowledgement_subject(text);
    }
}
