//! See [`crate::fuzzing`].

use super::{file_index, unreadable};

/// An answer says that a message is readable, that it is not, or nothing.
pub(crate) fn stored_message(data: &[u8]) {
    drop(unreadable::read_answer(data));
}

/// What a journal says is the same when it is written anew, and half a line behind it changes
/// nothing.
pub(crate) fn file_index(data: &[u8]) {
    let entries = file_index::replay(data);
    let mut journal: Vec<u8> =
        entries.iter().flat_map(|(path, entry)| file_index::line(path, Some(entry))).collect();
    assert_eq!(file_index::replay(&journal), entries);
    journal.extend_from_slice(b"{\"path\":\"c\",\"sou");
    assert_eq!(file_index::replay(&journal), entries);
}
