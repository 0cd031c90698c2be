//! What a crash left in the shipper's files - index, commit, checkpoint - is read without harm, and
//! what can be read is written again and reads the same.

use natsway_shipper::fuzzing;

/// See the module.
pub fn check(data: &[u8]) {
    fuzzing::file_index(data);
    fuzzing::commit(data);
    fuzzing::checkpoint(data);
}
