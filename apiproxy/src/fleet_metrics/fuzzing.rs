//! What the fuzz target `service_answer` needs of these decoders. Compiled by `cargo fuzz` alone
//! (`cfg(fuzzing)`).

use super::roster::Roster;
use super::{targets, workers};

/// Returns the pages that any bytes make as an answer, of workers and of targets.
pub fn pages(answer: &[u8]) -> [String; 2] {
    let mut services = Roster::default();
    services.note(workers::read(answer));
    let mut scaled = Roster::default();
    scaled.note(targets::read(answer));
    [workers::page(&services), targets::page(&scaled)]
}
