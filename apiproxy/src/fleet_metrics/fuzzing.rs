//! What the check `service_answer` of `crates/fuzz-checks` needs of these decoders (feature
//! `fuzzing`).

use super::registry::Registry;
use super::{targets, workers};

/// Returns the pages that any bytes make as an answer, of workers and of targets.
pub fn pages(answer: &[u8]) -> [String; 2] {
    let mut services = Registry::default();
    services.note(workers::read(answer));
    let mut scaled = Registry::default();
    scaled.note(targets::read(answer));
    [workers::page(&services), targets::page(&scaled)]
}
