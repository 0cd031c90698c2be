//! Runs the seeds of `fuzz/` through their checks, as they are and with a few bytes changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use natsway_fuzz_checks::CHECKS;

/// How often each seed is changed.
const CHANGES: u64 = 1_000;

fn fuzz(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(path)
}

/// The names of what is in a folder, without their endings.
fn names(path: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz(path)).expect("it is part of the checkout");
    let stem = |path: PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
    entries.map(|entry| stem(entry.expect("it can be read").path())).collect()
}

#[test]
fn every_check_has_a_target_and_seeds() {
    let checks = CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names("fuzz_targets"), checks);
    assert_eq!(names("seeds"), checks);
    for name in checks {
        assert!(names(&format!("seeds/{name}")).len() > 1, "{name}: two seeds at the least");
    }
}

#[test]
fn all_holds_of_the_seeds_and_of_what_is_like_them() {
    for (name, check) in CHECKS {
        let mut choices = fastrand::Rng::with_seed(1);
        for seed in fs::read_dir(fuzz(&format!("seeds/{name}"))).expect("it has some") {
            let path = seed.expect("it can be read").path();
            let seed = fs::read(&path).expect("it can be read");
            check(&seed);
            for number in 0..CHANGES {
                let changed = changed(&seed, &mut choices);
                let checked = std::panic::catch_unwind(|| check(&changed));
                assert!(
                    checked.is_ok(),
                    "{name}, {}, change {number}: {changed:?}",
                    path.display()
                );
            }
        }
    }
}

/// A seed of which some bytes are other ones, left out, or said twice.
fn changed(seed: &[u8], choices: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = seed.to_owned();
    for _ in 0..choices.usize(1..4) {
        let place = choices.usize(..bytes.len().max(1)).min(bytes.len());
        let end = (place + choices.usize(1..9)).min(bytes.len());
        match choices.u8(..4) {
            0 => bytes.truncate(place),
            1 => drop(bytes.drain(place..end)),
            2 => bytes.extend_from_within(place..end),
            _ => bytes.get_mut(place).into_iter().for_each(|byte| *byte = choices.u8(..)),
        }
    }
    bytes
}
