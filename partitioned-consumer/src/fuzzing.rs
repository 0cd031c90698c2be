//! What the fuzz targets of `fuzz/` need of the decoders that are nobody else's. Compiled by `cargo fuzz` alone (`cfg(fuzzing)`).
//!
//! Each takes any bytes, and panics where a promise is broken.

use crate::config::Document;
use crate::message::Meta;
use crate::settings::GroupSettings;
use crate::shipper::commit::Commit;
use crate::shipper::consumer::fuzzing as consumer;
use crate::shipper::tail::checkpoint::Checkpoint;

/// An entry that is edited in place keeps what is not edited.
pub fn group_document(data: &[u8]) {
    let Ok(mut document) = Document::parse(data) else { return };
    let before = document.to_json();
    assert_eq!(Document::parse(&before).expect("it is ours").to_json(), before);
    document.set_partitions(7);
    Document::parse(&document.to_json()).expect("it is ours");
}

/// The settings of a group survive being written.
pub fn group_settings(data: &[u8]) {
    let Ok(settings) = GroupSettings::from_json(data) else { return };
    let json = serde_json::to_vec(&settings).expect("plain fields serialize");
    assert_eq!(GroupSettings::from_json(&json).expect("it is ours"), settings);
}

/// An acknowledgement subject says numbers or nothing.
pub fn acknowledgement_subject(text: &str) {
    if let Some(meta) = Meta::parse(text) {
        assert!(text.starts_with("$JS.ACK."));
        assert!(meta.stored_at_ns >= 0);
    }
}

/// An answer to a direct question for a message.
pub fn stored_message(data: &[u8]) {
    consumer::stored_message(data);
}

/// The index of a consumer's files.
pub fn file_index(data: &[u8]) {
    consumer::file_index(data);
}

/// A commit survives being written.
pub fn commit(data: &[u8]) {
    let Ok(commit) = serde_json::from_slice::<Commit>(data) else { return };
    let json = serde_json::to_vec(&commit).expect("plain fields serialize");
    assert_eq!(serde_json::from_slice::<Commit>(&json).expect("it is ours"), commit);
}

/// A checkpoint that can be read can be written and read again.
pub fn checkpoint(data: &[u8]) {
    let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(data) else { return };
    let json = serde_json::to_vec(&checkpoint).expect("plain fields serialize");
    let again: Checkpoint = serde_json::from_slice(&json).expect("it is ours");
    assert_eq!(serde_json::to_vec(&again).expect("plain fields serialize"), json);
}
