//! What `crates/fuzz-checks` needs of the decoders that are nobody else's (feature `fuzzing`).
//!
//! Each takes any bytes, and panics where a promise is broken.

use crate::commit::Commit;
use crate::consumer::fuzzing as consumer;
use crate::tail::checkpoint::Checkpoint;

/// Checks that an answer to a direct question for a message is read without harm.
pub fn stored_message(data: &[u8]) {
    consumer::stored_message(data);
}

/// Checks that the index of a consumer's files survives being written.
pub fn file_index(data: &[u8]) {
    consumer::file_index(data);
}

/// Checks that a commit survives being written.
pub fn commit(data: &[u8]) {
    let Ok(commit) = serde_json::from_slice::<Commit>(data) else { return };
    let json = serde_json::to_vec(&commit).expect("plain fields serialize");
    assert_eq!(serde_json::from_slice::<Commit>(&json).expect("it is ours"), commit);
}

/// Checks that a checkpoint that can be read can be written and read again.
pub fn checkpoint(data: &[u8]) {
    let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(data) else { return };
    let json = serde_json::to_vec(&checkpoint).expect("plain fields serialize");
    let again: Checkpoint = serde_json::from_slice(&json).expect("it is ours");
    assert_eq!(serde_json::to_vec(&again).expect("plain fields serialize"), json);
}
