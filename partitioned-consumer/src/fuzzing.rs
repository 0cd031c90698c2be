//! What `crates/fuzz-checks` needs of the decoders that are nobody else's (feature `fuzzing`).
//!
//! Each takes any bytes, and panics where a promise is broken.

use crate::group::config::Document;
use crate::group::settings::GroupSettings;
use crate::member::received::Meta;

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
